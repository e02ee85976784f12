package underlay

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"overlayd/overlay/netsim"
)

func TestForecast(t *testing.T) {
	type told struct {
		sent int // destinations before this one that say nothing
		port uint16
	}
	for _, c := range []struct {
		name string
		told []told
		then int // destinations after the last
		next uint16
		step int16
	}{
		{name: "nobody tells"},
		{"one tells", []told{{0, 20001}}, 0, 20002, 1},
		{"one tells, and more were sent to", []told{{0, 20001}}, 3, 20005, 1},
		{"one port for all", []told{{0, 20001}, {0, 20001}}, 2, 0, 0},
		{"by one", []told{{0, 20001}, {0, 20002}}, 0, 20003, 1},
		{"by one, a silent one between", []told{{0, 20001}, {1, 20003}}, 1, 20005, 1},
		{"by two", []told{{0, 20001}, {0, 20003}}, 1, 20007, 2},
		{"by two, others take some", []told{{0, 20000}, {0, 20006}, {0, 20010}}, 0, 20012, 2},
		{"down by four", []told{{0, 20001}, {0, 19997}}, 0, 19993, -4},
		{"at random", []told{{0, 20001}, {0, 51234}}, 0, 0, 0},
		{"at random, and near by chance", []told{{0, 20001}, {0, 20003}, {0, 1042}}, 0, 0, 0},
		{"beyond the last port", []told{{0, 65534}, {0, 65535}}, 0, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var f forecast
			now, n := time.Unix(1e9, 0), 0
			send := func() netip.AddrPort {
				n++
				dst := netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(n)}), 443)
				f.Sent(now, dst)
				f.Sent(now, dst)
				return dst
			}
			for _, s := range c.told {
				for range s.sent {
					send()
				}
				f.Seen(send(), netip.AddrPortFrom(simPub[0], s.port))
			}
			for range c.then {
				send()
			}
			next, step := f.Next()
			if step != c.step || step != 0 && next != netip.AddrPortFrom(simPub[0], c.next) {
				t.Errorf("%s by %d, want %d by %d", next, step, c.next, c.step)
			}
		})
	}
}

// TestForecastForgets: what is remembered is bounded, an old mapping is a new
// one, and a NAT that begins anew takes nothing of the old along.
func TestForecastForgets(t *testing.T) {
	var f forecast
	now := time.Unix(1e9, 0)
	first := netip.AddrPortFrom(simPub[1], 1)
	for i := range 10 * mostOpenings {
		f.Sent(now, netip.AddrPortFrom(simPub[1], uint16(i+1)))
		f.Seen(first, netip.AddrPortFrom(simPub[0], 20001))
	}
	if len(f.opened) != mostOpenings {
		t.Errorf("%d destinations are remembered", len(f.opened))
	}
	if next, step := f.Next(); step != 1 || next.Port() != 20000+10*mostOpenings+1 {
		t.Errorf("%s by %d", next, step)
	}
	f.Sent(now.Add(mappingKept), first)
	if _, step := f.Next(); step != 0 {
		t.Error("a mapping that ended still tells")
	}
	f = forecast{}
	for i, port := range []uint16{20001, 20003, 30000} {
		dst := netip.AddrPortFrom(simPub[1], uint16(i%2+1))
		f.Sent(now, dst)
		f.Seen(dst, netip.AddrPortFrom(simPub[0], port))
	}
	if next, step := f.Next(); step != 1 || next.Port() != 30001 {
		t.Errorf("after the NAT's restart: %s by %d", next, step)
	}
	f.Sent(now, netip.MustParseAddrPort("10.0.0.1:1"))
	f.Sent(now, netip.MustParseAddrPort("[2001:db8::1]:1"))
	if next, _ := f.Next(); next.Port() != 30001 {
		t.Errorf("%s: somebody who is not behind the NAT was counted", next)
	}
}

// TestHardNATs counts how often two nodes meet of which one or both are behind
// a NAT that counts its ports, while others behind it take some too.
func TestHardNATs(t *testing.T) {
	const runs = 40
	var table strings.Builder
	for _, c := range []struct {
		left, right netsim.Kind
		step        int
		two         bool
		others      int // ports that others take per second, at most, on each side
		least       float64
	}{
		{netsim.Symmetric, netsim.PortRestricted, 1, false, 0, 1},
		{netsim.Symmetric, netsim.PortRestricted, 1, false, 3, 0.9},
		{netsim.Symmetric, netsim.PortRestricted, 2, false, 0, 0.9},
		{netsim.Symmetric, netsim.PortRestricted, 2, true, 0, 1},
		{netsim.Symmetric, netsim.PortRestricted, 4, true, 0, 1},
		{netsim.Symmetric, netsim.PortRestricted, -4, true, 3, 0.9},
		{netsim.SymmetricRandom, netsim.PortRestricted, 1, true, 0, 0},
		{netsim.Symmetric, netsim.Symmetric, 1, false, 0, 0.9},
		{netsim.Symmetric, netsim.Symmetric, 1, true, 0, 0.9},
		{netsim.Symmetric, netsim.Symmetric, 1, true, 1, 0.5},
		{netsim.Symmetric, netsim.Symmetric, 2, true, 0, 0.9},
		{netsim.Symmetric, netsim.Symmetric, 4, true, 0, 0.9},
		{netsim.Symmetric, netsim.SymmetricRandom, 1, true, 0, 0},
	} {
		met, probes := 0, 0
		var took time.Duration
		for seed := range uint64(runs) {
			s := newSimWith(t, seed, c.left, c.right, func(s *sim) {
				s.a.nat.Step, s.b.nat.Step = c.step, c.step
				s.two = c.two
			})
			random := rand.New(rand.NewPCG(seed, 3))
			start := s.w.Now()
			for !(s.a.direct() && s.b.direct()) && s.w.Now().Sub(start) < time.Minute {
				for _, n := range []*simNode{s.a, s.b} {
					if c.others > 0 && random.IntN(10) < c.others {
						n.nat.Skip(1)
					}
				}
				s.w.Run(100 * time.Millisecond)
			}
			if s.a.direct() && s.b.direct() {
				met++
				took += s.w.Now().Sub(start)
			}
			probes = max(probes, s.a.probes, s.b.probes)
		}
		mean := took / time.Duration(max(met, 1))
		fmt.Fprintf(&table, "%-16s %-16s step %2d  others %d/s  relays %t  %3d%%  %8v  %d probes\n",
			c.left, c.right, c.step, c.others, c.two, 100*met/runs, mean.Round(10*time.Millisecond), probes)
		if share := float64(met) / runs; share < c.least {
			t.Errorf("%s by %d, %s: %.2f meet, want %.2f", c.left, c.step, c.right, share, c.least)
		}
		// In a minute: a search of some seconds' gap, each with the listed
		// addresses and the guesses.
		if most := 250; probes > most {
			t.Errorf("%s by %d, %s: %d probes in a minute, want %d at most", c.left, c.step, c.right, probes, most)
		}
	}
	t.Log("\n" + table.String())
}
