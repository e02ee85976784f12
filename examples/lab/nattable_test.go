//go:build linux

package lab_test

import (
	"cmp"
	"fmt"
	"strings"
	"testing"
	"time"

	"overlayd/examples/lab"
	"overlayd/examples/lab/labtest"
)

// TestNATs is the small sister of overlay/underlay's table of pairings, with
// iptables for NATs: which path results, and how soon after the first packet.
// LAB_LONG makes it all pairs.
func TestNATs(t *testing.T) {
	kinds := []lab.NAT{lab.FullCone, lab.Cone, lab.Hard, lab.NoUDP}
	// TestDirectPath, TestNoDirectPath and TestUDPBlocked are some of the others.
	short := map[[2]lab.NAT]bool{{lab.FullCone, lab.Cone}: true, {lab.FullCone, lab.Hard}: true, {lab.Cone, lab.NoUDP}: true}
	var table strings.Builder
	for i, home := range kinds {
		for _, at := range kinds[i:] {
			if !long && !short[[2]lab.NAT{home, at}] {
				continue
			}
			t.Run(natName(home)+", "+natName(at), func(t *testing.T) {
				hard := home == lab.Hard || at == lab.Hard
				want := func(self lab.NAT) string {
					switch {
					case self == lab.NoUDP:
						return "relay tls"
					case home == lab.NoUDP || at == lab.NoUDP, hard && home != lab.FullCone && at != lab.FullCone:
						return "relay udp"
					}
					return "direct udp"
				}
				ctx, l, _ := labtest.Joined(t, lab.Options{Home: home, Lab: at})
				start := time.Now()
				pings := pinging(t, l.Laptop, lab.HostAddr)
				first := pings.back(ctx, t, start)
				left, _ := settles(ctx, t, l.Laptop, "lab-gw", want(home))
				right, _ := settles(ctx, t, l.Gateway, "laptop", want(at))
				took := time.Since(start)
				fmt.Fprintf(&table, "%-10s %-10s %-11s %-11s settled %6v, first echo %6v\n", natName(home), natName(at), left, right,
					took.Round(10*time.Millisecond), first.Round(10*time.Millisecond))
				if took > directWithin || first > directWithin {
					t.Errorf("first echo after %v, %s and %s after %v", first, left, right, took)
				}
			})
		}
	}
	t.Log("\n" + table.String())
}

// natName is a kind's name, the zero value's too.
func natName(kind lab.NAT) string { return cmp.Or(string(kind), "cone") }
