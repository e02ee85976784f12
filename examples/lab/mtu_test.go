//go:build linux

package lab_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"overlayd/examples/lab"
	"overlayd/examples/lab/labtest"
)

const (
	// mtuStall is the longest that a transfer may stand still while the path
	// under it changes.
	mtuStall = 5 * time.Second
	// mtuLook is how long a transfer is watched after the new width is known, for
	// stalls that come later.
	mtuLook = time.Second
)

// packetIn returns the longest packet whose datagram fits a path of IPv4: less
// IPv4's and UDP's headers, WireGuard's header and tag, in its steps of 16.
func packetIn(mtu int) int { return min((mtu-20-8-32)/16*16, 1420) }

// measured waits until a machine has found out what the path to a peer carries.
func measured(ctx context.Context, t *testing.T, m *lab.Machine, peer, kind string, want int) {
	t.Helper()
	waitFor(ctx, t, m, func(s status) error {
		for _, p := range s.Peers {
			if p.Name == peer && p.Path.Kind == kind && p.Path.MTU == want {
				return nil
			}
		}
		return fmt.Errorf("%s: %+v, want a path of %s by %s", m.Name, s.Peers, fmt.Sprint(want), kind)
	})
}

// TestPathMTU changes the wires in the middle under a transfer, with all ICMP
// about it filtered: directly and by the relay, where fragments pass and where
// they do not.
func TestPathMTU(t *testing.T) {
	steps := []int{1400, 1280}
	if long {
		steps = []int{1400, 1300, 1280, 1500, 1280, 1500, 1300}
	}
	for _, c := range []struct {
		name      string
		o         lab.Options
		kind      string
		fragments bool
		longOnly  bool
	}{
		{"direct, no fragments", lab.Options{}, "direct", false, false},
		{"relayed, no fragments", lab.Options{Home: lab.Hard, Lab: lab.Hard}, "relay", false, false},
		{"direct, fragments pass", lab.Options{}, "direct", true, true},
		{"relayed, fragments pass", lab.Options{Home: lab.Hard, Lab: lab.Hard}, "relay", true, true},
		{"direct, no offloads", lab.Options{NoOffload: true}, "direct", false, true},
	} {
		if c.longOnly && !long {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			c.o.FilterICMP = true
			ctx, l, _ := labtest.JoinedFor(t, 5*time.Minute, c.o)
			if !c.fragments {
				if err := l.DropFragments(ctx); err != nil {
					t.Fatal(err)
				}
			}
			tcp, _ := echoServers(t, l.Host)
			data := streaming(ctx, t, l.Laptop, tcp)
			data.flows(ctx, t, time.Now())
			path(ctx, t, l.Laptop, "lab-gw", c.kind)
			path(ctx, t, l.Gateway, "laptop", c.kind)
			measured(ctx, t, l.Laptop, "lab-gw", c.kind, 1420)
			measured(ctx, t, l.Gateway, "laptop", c.kind, 1420)
			was := 1500
			for _, mtu := range steps {
				data.stalled()
				at := time.Now()
				if err := l.SetMiddleMTU(ctx, mtu); err != nil {
					t.Fatal(err)
				}
				// Wider is found out in time, and costs nothing; but what was narrow
				// does not become narrow before that.
				if mtu < was || long {
					measured(ctx, t, l.Laptop, "lab-gw", c.kind, packetIn(mtu))
					measured(ctx, t, l.Gateway, "laptop", c.kind, packetIn(mtu))
				}
				found := time.Since(at)
				data.flows(ctx, t, time.Now())
				data.flows(ctx, t, at.Add(mtuLook))
				stall := data.stalled()
				t.Logf("%s, %d to %d: found after %v, the transfer stood still for %v", c.name, was, mtu,
					found.Round(10*time.Millisecond), stall.Round(10*time.Millisecond))
				if stall > mtuStall {
					t.Errorf("%d to %d: the transfer stood still for %v", was, mtu, stall)
				}
				was = mtu
			}
		})
	}
}
