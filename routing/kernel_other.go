//go:build !linux

package routing

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"runtime"
	"time"
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

// watchEvery is how late a change is seen.
const watchEvery = 5 * time.Second

// Look returns what this machine's links and addresses tell of its network. Of
// routes it knows those that follow from them; the first link that leads
// somewhere stands for the default route.
func Look() (Host, error) {
	links, err := net.Interfaces()
	if err != nil {
		return Host{}, fmt.Errorf("list links: %w", err)
	}
	var h Host
	for _, l := range links {
		link := Link{
			Name: l.Name, Index: l.Index, MTU: l.MTU, Up: l.Flags&net.FlagUp != 0,
			Virtual: l.Flags&net.FlagLoopback != 0, Tunnel: l.Flags&net.FlagPointToPoint != 0,
		}
		addrs, err := l.Addrs()
		if err != nil {
			return Host{}, fmt.Errorf("list addresses of %s: %w", l.Name, err)
		}
		v4 := false
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err != nil {
				continue
			}
			link.Addrs = append(link.Addrs, p)
			v4 = v4 || p.Addr().Is4() && p.Addr().IsGlobalUnicast()
		}
		h.Links = append(h.Links, link)
		if v4 && link.Up && !link.Virtual && !link.Tunnel && len(h.Default) == 0 {
			h.Default = append(h.Default, Gateway{Link: l.Name})
		}
	}
	return h, nil
}

// Watch calls changed, never concurrently, when a link or an address of this
// machine changed, at most five seconds later. It returns nil when ctx ends.
func Watch(ctx context.Context, changed func()) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	last, _ := Look() // what cannot be listed now can be in the next round
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if now, err := Look(); err == nil && !reflect.DeepEqual(now, last) {
			last = now
			changed()
		}
	}
}
