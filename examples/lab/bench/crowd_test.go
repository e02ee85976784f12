//go:build linux

package main

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"

	"overlayd/examples/lab"
	"overlayd/overlay/policy"
)

// TestCrowd: every flow is begun and answered, also by whoever comes late.
func TestCrowd(t *testing.T) {
	defer goleak.VerifyNone(t)
	const sockets, ports = 5, 4
	servers := &crowd{stop: make(chan struct{})}
	defer servers.close()
	first := netip.MustParseAddrPort("127.0.0.1:29170") // outside of what the kernel gives away, as the next ones
	if err := servers.echo(first, ports-1); err != nil {
		t.Fatal(err)
	}
	c := &crowd{stop: make(chan struct{})}
	defer c.close()
	if err := c.call(netip.MustParseAddrPort("127.0.0.1:29180"), sockets, first, ports); err != nil {
		t.Fatal(err)
	}
	c.start()
	await := func(silent int) {
		t.Helper()
		err := within(t.Context(), 10*time.Second, func(ctx context.Context) error {
			return lab.Until(ctx, func(context.Context) error {
				if n := c.silent(); n != silent {
					return fmt.Errorf("%d of %d flows are silent, want %d", n, len(c.flows), silent)
				}
				return nil
			})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	await(sockets)
	if err := servers.echo(netip.AddrPortFrom(first.Addr(), first.Port()+ports-1), 1); err != nil {
		t.Fatal(err)
	}
	await(0)
}

func TestPolicyOf(t *testing.T) {
	for _, rules := range []int{1, 10000} {
		p, err := policy.Parse([]byte(policyOf(rules)))
		if err != nil {
			t.Fatal(err)
		}
		if len(p.Rules) != rules {
			t.Errorf("%d rules, want %d", len(p.Rules), rules)
		}
	}
}
