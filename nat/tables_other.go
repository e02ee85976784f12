//go:build !linux

package nat

import (
	"context"
	"errors"
	"fmt"
	"runtime"
)

var errSystem = fmt.Errorf("iptables on %s: %w", runtime.GOOS, errors.ErrUnsupported)

// Tables makes the firewall match a Ruleset.
type Tables struct{}

// New says that this system is not supported.
func New(Options) (*Tables, error) { return nil, errSystem }

// Apply says that this system is not supported.
func (*Tables) Apply(context.Context, Ruleset) error { return errSystem }

// Clear says that this system is not supported.
func (*Tables) Clear(context.Context) error { return errSystem }
