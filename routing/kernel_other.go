//go:build !linux

package routing

import (
	"context"
	"errors"
	"fmt"
	"runtime"
)

var errSystem = fmt.Errorf("routes and rules on %s: %w", runtime.GOOS, errors.ErrUnsupported)

// Kernel makes the machine match a State.
type Kernel struct{}

// NewKernel says that this system is not supported.
func NewKernel(Options) (*Kernel, error) { return nil, errSystem }

// Apply says that this system is not supported.
func (*Kernel) Apply(context.Context, State) error { return errSystem }

// Clear says that this system is not supported.
func (*Kernel) Clear(context.Context, string) error { return errSystem }

// Look says that this system is not supported.
func Look() (Host, error) { return Host{}, errSystem }

// Watch says that this system is not supported.
func Watch(context.Context, func()) error { return errSystem }
