package underlay

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"overlayd/overlay/netsim"
)

func TestExceeds(t *testing.T) {
	for _, c := range []struct {
		l, other loss
		want     bool
	}{
		{loss{100, 0}, loss{}, false},
		{loss{100, 9}, loss{}, false},
		{loss{100, 11}, loss{}, true},
		{loss{10000, 400}, loss{}, false},
		{loss{10000, 600}, loss{}, true},
		{loss{100, 20}, loss{100, 0}, true},
		{loss{100, 20}, loss{100, 10}, false},
		{loss{400, 80}, loss{400, 80}, false},
		{loss{400, 80}, loss{400, 60}, false},
		{loss{400, 80}, loss{400, 20}, true},
		{loss{400, 20}, loss{400, 80}, false},
		{loss{400, 12}, loss{400, 0}, false},
	} {
		if got := c.l.exceeds(c.other); got != c.want {
			t.Errorf("%v exceeds %v: %t", c.l, c.other, got)
		}
	}
}

// TestLossCompared: what loses no more than the relay is not left for it, as on
// a bad wireless link, whichever of the two was bad first.
func TestLossCompared(t *testing.T) {
	for _, c := range []struct {
		name          string
		direct, relay float64
		wantDirect    bool
	}{
		{"both lose a fifth", 0.2, 0.2, true},
		{"the relay loses more", 0.2, 0.4, true},
		{"the relay is dead", 0.2, 1, true},
		{"the relay loses less", 0.3, 0.1, false},
		{"the relay loses nothing", 0.15, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			away := time.Duration(0)
			s := newSim(t, 3, netsim.PortRestricted, netsim.PortRestricted)
			s.a.every, s.b.every = 10*time.Millisecond, 10*time.Millisecond
			s.w.Run(5 * time.Second)
			s.cut(c.direct, c.direct)
			s.a.byRelayLoss, s.b.byRelayLoss = c.relay, c.relay
			s.w.Run(20 * time.Second)
			const minutes = 10
			for range minutes * 60 {
				s.w.Run(time.Second)
				if s.a.finder.use == nil {
					away += time.Second
				}
			}
			if share := float64(away) / float64(minutes*time.Minute); c.wantDirect && share > 0.1 || !c.wantDirect && share < 0.9 {
				t.Errorf("relayed for %.0f %% of the time", 100*share)
			}
		})
	}
}

// TestLossReturns measures how soon a lossy path is left, and used again.
func TestLossReturns(t *testing.T) {
	s := newSim(t, 3, netsim.PortRestricted, netsim.PortRestricted)
	s.a.every, s.b.every = 20*time.Millisecond, 20*time.Millisecond
	s.w.Run(5 * time.Second)
	wait := func(direct bool, most time.Duration) {
		t.Helper()
		start := s.w.Now()
		for s.a.direct() != direct || s.b.direct() != direct || !direct && (s.a.finder.use != nil || s.b.finder.use != nil) {
			if s.w.Run(100 * time.Millisecond); s.w.Now().Sub(start) > most {
				t.Fatalf("direct %t, %t after %v", s.a.direct(), s.b.direct(), most)
			}
		}
		t.Logf("direct %t after %v", direct, s.w.Now().Sub(start))
	}
	s.cut(0.2, 0.2)
	wait(false, 15*time.Second)
	s.cut(0, 0)
	wait(true, 2*penaltyFirst+5*time.Second)
}

// TestLossLeft: a lossy path is left for a relay that loses nothing, whether
// much is said on it or little, and though the relay was found no better before.
func TestLossLeft(t *testing.T) {
	for _, every := range []time.Duration{10, 20, 30, 50, 100, 150} {
		for seed := range uint64(8) {
			s := newSim(t, seed, netsim.PortRestricted, netsim.PortRestricted)
			s.a.every, s.b.every = every*time.Millisecond, every*time.Millisecond
			s.w.Run(5 * time.Second)
			if seed%2 == 0 {
				s.cut(0.2, 0.2)
				s.a.byRelayLoss, s.b.byRelayLoss = 0.2, 0.2
				s.w.Run(12 * time.Second)
				s.a.byRelayLoss, s.b.byRelayLoss = 0, 0
			}
			s.cut(0.2, 0.2)
			start, a, b := s.w.Now(), false, false
			for !a || !b { // each, not both at once: one that was left is tried again
				s.w.Run(100 * time.Millisecond)
				a, b = a || s.a.finder.use == nil, b || s.b.finder.use == nil
				if d := s.w.Now().Sub(start); d > 5*weighMost {
					t.Fatalf("a datagram each %v, seed %d: after %v left %t, %t", s.a.every, seed, d, a, b)
				}
			}
		}
	}
}

// TestBlackHole: an address that answers pings while data vanishes is marked and
// left, within the time that silence is given.
func TestBlackHole(t *testing.T) {
	s := newSim(t, 3, netsim.PortRestricted, netsim.PortRestricted)
	s.w.Run(5 * time.Second)
	s.a.longest, s.b.longest = 0, 0
	s.w.Drop = func(b []byte) bool { return b[0] == typeData }
	s.w.Run(20 * time.Second)
	if s.a.direct() || s.b.direct() || s.a.finder.use != nil && !s.a.finder.use.proved() {
		t.Errorf("direct %v, %v", s.a.direct(), s.b.direct())
	}
	if d := max(s.a.longest, s.b.longest); d > trust {
		t.Errorf("nothing arrived for %v", d)
	}
	if !slices.ContainsFunc(s.a.finder.spots, func(s *spot) bool { return s.penalty > 0 }) {
		t.Error("the address is not marked")
	}
	s.w.Drop = nil
	s.w.Run(2 * time.Minute)
	if !s.a.direct() || !s.b.direct() {
		t.Errorf("well again: direct %v, %v", s.a.direct(), s.b.direct())
	}
}

// TestWithoutRelay: a path that the peers know is found again though no relay
// can carry a call, and none that works is left.
func TestWithoutRelay(t *testing.T) {
	s := newSim(t, 8, netsim.PortRestricted, netsim.PortRestricted)
	s.w.Run(5 * time.Second)
	s.a.byRelayLoss, s.b.byRelayLoss = 1, 1
	s.calls = false
	for _, n := range []*simNode{s.a, s.b} {
		n.finder.Relay(s.w.Now(), false)
	}
	s.cut(0.3, 0.3)
	s.w.Run(time.Minute)
	if n := len(s.b.got); s.a.finder.use == nil {
		t.Errorf("without a relay, a lossy path was left; %d came", n)
	}
	s.cut(1, 1)
	s.w.Run(10 * time.Minute)
	s.cut(0, 0)
	s.w.Run(resortEvery + 3*time.Second)
	if s.a.finder.use == nil || s.b.finder.use == nil {
		t.Error("the path is not found again")
	}
	for _, n := range []*simNode{s.a, s.b} {
		n.finder.Relay(s.w.Now(), true)
	}
}

// TestRanks: which of two addresses that answer is used.
func TestRanks(t *testing.T) {
	const lan, six, four, mapped = "10.0.0.7:1", "[2001:db8::7]:1", "198.51.100.7:1", "198.51.100.8:1"
	for _, c := range []struct {
		name          string
		first, second string
		rtt1, rtt2    time.Duration
		want          string
	}{
		{"LAN before IPv6", six, lan, 1, 9, lan},
		{"IPv6 before IPv4", four, six, 1, 90, six},
		{"IPv4 before a mapped port", mapped, four, 1, 90, four},
		{"and not back", four, mapped, 90, 1, four},
		{"a little nearer is not enough", four, "198.51.100.9:1", 29, 20, four},
		{"nor is a tenth", four, "198.51.100.9:1", 200, 170, four},
		{"a fifth is", four, "198.51.100.9:1", 200, 150, "198.51.100.9:1"},
		{"10 ms are", four, "198.51.100.9:1", 31, 20, "198.51.100.9:1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newMadPeer(1)
			f := p.finder
			f.here = &locality{lans: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, candidates: f.here.candidates}
			first, second := netip.MustParseAddrPort(c.first), netip.MustParseAddrPort(c.second)
			out, _ := f.Handle(p.now, netip.AddrPort{}, probe{kind: probeCallMe, id: f.id(), candidates: []netip.AddrPort{first}, mapped: mappedBit(c.first == mapped, 0)})
			p.answer(out, first, c.rtt1*time.Millisecond)
			if f.use == nil || f.use.addr != first {
				t.Fatal("the first is not used")
			}
			out, _ = f.Handle(p.now, netip.AddrPort{}, probe{kind: probeCallMe, id: f.id(), candidates: []netip.AddrPort{first, second}, mapped: mappedBit(c.first == mapped, 0) | mappedBit(c.second == mapped, 1)})
			p.answer(out, second, c.rtt2*time.Millisecond)
			if f.use == nil || f.use.addr != netip.MustParseAddrPort(c.want) {
				t.Errorf("%s is used, want %s", f.use.addr, c.want)
			}
		})
	}
}

func mappedBit(yes bool, i int) uint16 {
	if yes {
		return 1 << i
	}
	return 0
}

// answer answers the ping to an address after a round trip.
func (p *madPeer) answer(out []send, a netip.AddrPort, rtt time.Duration) {
	p.now = p.now.Add(rtt)
	for _, s := range out {
		if s.to == a && s.m.kind == probePing {
			p.finder.Handle(p.now, a, probe{kind: probePong, id: s.m.id})
		}
	}
}
