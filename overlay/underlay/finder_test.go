package underlay

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"overlayd/overlay/netsim"
)

// lucky are the pairs that may meet: both count their ports up, perhaps to what
// the other tries.
func lucky(a, b netsim.Kind) bool { return a == netsim.Symmetric && b == netsim.Symmetric }

// meets says which pairs have a direct path.
func meets(a, b netsim.Kind) bool {
	hard := func(k netsim.Kind) bool { return k == netsim.Symmetric || k == netsim.SymmetricRandom }
	for _, k := range [][2]netsim.Kind{{a, b}, {b, a}} {
		switch {
		case k[0] == netsim.Blocked:
			return false
		case k[0] == netsim.SymmetricRandom && (k[1] == netsim.PortRestricted || hard(k[1])):
			return false // its port is one of 64,000
		}
	}
	return true
}

// TestTheRelayIsLeft: once both sides have confirmed, no data takes the relay.
func TestTheRelayIsLeft(t *testing.T) {
	s := newSim(t, 1, netsim.PortRestricted, netsim.PortRestricted)
	s.w.Run(5 * time.Second)
	relayed := s.a.byRelay + s.b.byRelay
	s.w.Run(10 * time.Minute)
	if now := s.a.byRelay + s.b.byRelay; now != relayed {
		t.Errorf("%d datagrams by the relay after the switch", now-relayed)
	}
	// Heartbeats of both sides and their answers, and the upgrade search.
	if n, most := s.a.probes+s.b.probes, int(4*10*time.Minute/heartbeat)*11/10+100; n > most {
		t.Errorf("%d probes in ten minutes, want %d at most", n, most)
	}
}

// cut loses what goes directly between the nodes, in the given directions.
func (s *sim) cut(aToB, bToA float64) {
	a, b := simPub[0], simPub[1]
	s.w.Loss = func(from, to netip.Addr) float64 {
		switch {
		case from == a && to == b:
			return aToB
		case from == b && to == a:
			return bToA
		}
		return 0
	}
}

// TestCut takes the direct path away, in one direction or both, and brings it
// back.
func TestCut(t *testing.T) {
	for _, c := range []struct {
		name       string
		aToB, bToA float64
	}{{"both directions", 1, 1}, {"one direction", 1, 0}, {"the other", 0, 1}} {
		t.Run(c.name, func(t *testing.T) {
			s := newSim(t, 2, netsim.PortRestricted, netsim.FullCone)
			s.w.Run(5 * time.Second)
			s.a.longest, s.b.longest = 0, 0
			s.cut(c.aToB, c.bToA)
			s.w.Run(20 * time.Second)
			if c.aToB == 1 && s.a.direct() || c.bToA == 1 && s.b.direct() {
				t.Errorf("after the cut: direct %v, %v", s.a.direct(), s.b.direct())
			}
			for _, n := range []*simNode{s.a, s.b} {
				if n.longest > trust {
					t.Errorf("nothing arrived for %v", n.longest)
				}
			}
			s.w.Run(3 * time.Minute)
			s.cut(0, 0)
			s.w.Run(6 * time.Minute)
			if !s.a.direct() || !s.b.direct() {
				t.Errorf("six minutes after it: direct %v, %v", s.a.direct(), s.b.direct())
			}
		})
	}
}

// TestShortCut: a cut of some seconds is over as soon as it is over.
func TestShortCut(t *testing.T) {
	s := newSim(t, 2, netsim.PortRestricted, netsim.PortRestricted)
	s.w.Run(5 * time.Second)
	s.cut(1, 1)
	s.w.Run(10 * time.Second)
	s.cut(0, 0)
	s.w.Run(5 * time.Second)
	if !s.a.direct() || !s.b.direct() {
		t.Errorf("direct %v, %v", s.a.direct(), s.b.direct())
	}
}

// TestLossy: a path that loses a fifth is left for the relay, and used again
// when it is well.
func TestLossy(t *testing.T) {
	s := newSim(t, 3, netsim.PortRestricted, netsim.PortRestricted)
	s.a.every, s.b.every = 10*time.Millisecond, 10*time.Millisecond
	s.w.Run(5 * time.Second)
	s.cut(0.2, 0.2)
	s.w.Run(20 * time.Second)
	if s.a.direct() || s.b.direct() || s.a.finder.reason(s.w.Now()) != reasonLossy {
		t.Errorf("direct %v, %v, reason %s", s.a.direct(), s.b.direct(), s.a.finder.reason(s.w.Now()))
	}
	before, got := s.a.number, len(s.b.got)
	s.w.Run(10 * time.Minute)
	if share := float64(len(s.b.got)-got) / float64(s.a.number-before); share < 0.999 {
		t.Errorf("while the path loses a fifth, %.4f arrive", share)
	}
	s.cut(0, 0)
	s.w.Run(15 * time.Minute)
	if !s.a.direct() || !s.b.direct() {
		t.Errorf("well again: direct %v, %v", s.a.direct(), s.b.direct())
	}
	// A little loss is nobody's business.
	s.cut(0.02, 0.02)
	s.w.Run(10 * time.Minute)
	if !s.a.direct() || !s.b.direct() {
		t.Errorf("at 2 %% loss: direct %v, %v", s.a.direct(), s.b.direct())
	}
}

// TestIdle: who says nothing sends nothing, and the first word after a long
// silence arrives.
func TestIdle(t *testing.T) {
	s := newSim(t, 4, netsim.PortRestricted, netsim.PortRestricted)
	s.w.Run(5 * time.Second)
	s.a.every, s.b.every = 0, 0
	s.w.Run(time.Minute)
	probes := s.a.probes + s.b.probes
	s.w.Run(time.Hour)
	if n := s.a.probes + s.b.probes; n != probes {
		t.Errorf("%d probes while nothing was sent", n-probes)
	}
	if !s.a.nextRun.IsZero() || s.a.direct() {
		t.Errorf("an idle finder wants to run at %v", s.a.nextRun)
	}
	got := len(s.b.got)
	s.a.send()
	s.w.Run(time.Second)
	if len(s.b.got) != got+1 {
		t.Error("the first datagram after an hour is lost")
	}
	s.a.every, s.b.every = 50*time.Millisecond, 50*time.Millisecond
	s.w.Run(2 * time.Second)
	if !s.a.direct() || !s.b.direct() {
		t.Errorf("direct %v, %v", s.a.direct(), s.b.direct())
	}
}

// TestNATsForget: both routers restart, and every port is another.
func TestNATsForget(t *testing.T) {
	s := newSim(t, 5, netsim.PortRestricted, netsim.PortRestricted)
	s.w.Run(10 * time.Second)
	s.a.longest, s.b.longest = 0, 0
	s.a.nat.Forget()
	s.b.nat.Forget()
	s.w.Run(2 * time.Minute)
	if !s.a.direct() || !s.b.direct() {
		t.Errorf("direct %v, %v", s.a.direct(), s.b.direct())
	}
	if d := max(s.a.longest, s.b.longest); d > 4*time.Second {
		t.Errorf("nothing arrived for %v", d)
	}
}

// TestMappedPort: a port that a router maps makes a path between NATs that do not
// meet, and is not used where there is a better one.
func TestMappedPort(t *testing.T) {
	for _, c := range []struct {
		left, right netsim.Kind
		used        bool
	}{
		{netsim.SymmetricRandom, netsim.SymmetricRandom, true},
		{netsim.PortRestricted, netsim.SymmetricRandom, true},
		{netsim.PortRestricted, netsim.PortRestricted, false},
		{netsim.FullCone, netsim.Restricted, false},
	} {
		t.Run(fmt.Sprintf("%s, %s", c.left, c.right), func(t *testing.T) {
			s := newSim(t, 8, c.left, c.right)
			s.b.mapped = s.b.nat.Forward(41641, s.b.conn.LocalAddr())
			s.w.Run(30 * time.Second)
			if !s.a.direct() || !s.b.direct() {
				t.Fatalf("direct: %v, %v; %s", s.a.direct(), s.b.direct(), s.a.finder.reason(s.w.Now()))
			}
			if at := s.a.finder.use; (at.addr == s.b.mapped) != c.used {
				t.Errorf("%v is used, of %v", at.addr, s.a.finder.spots)
			}
			if s.a.delivered() < 0.995 || s.b.delivered() < 0.995 {
				t.Errorf("%.3f, %.3f arrived", s.a.delivered(), s.b.delivered())
			}
		})
	}
}

// TestPasses: no path leads through the overlay, nor to a network behind a
// gateway, but for one that this machine is on too.
func TestPasses(t *testing.T) {
	prefixes := func(list ...string) (out []netip.Prefix) {
		for _, p := range list {
			out = append(out, netip.MustParsePrefix(p))
		}
		return out
	}
	away := &locality{refuse: prefixes("172.18.0.0/24"), behind: prefixes("192.168.1.0/24", "10.0.0.0/8"), lans: prefixes("10.0.77.0/24")}
	home := &locality{refuse: away.refuse, behind: away.behind, lans: prefixes("192.168.1.0/24", "172.18.0.0/24")}
	for a, want := range map[string][2]bool{
		"192.168.1.200:4000": {false, true},
		"10.0.77.9:4000":     {true, false},
		"10.0.78.9:4000":     {false, false},
		"172.18.0.11:4000":   {false, false}, // not even where a real network has its addresses
		"192.168.2.1:4000":   {true, true},
		"203.0.113.1:4000":   {true, true},
	} {
		at := netip.MustParseAddrPort(a)
		for i, l := range []*locality{away, home} {
			f := newFinder(rand.New(rand.NewPCG(1, 2)), l)
			now := time.Now()
			if got := l.takes(at); got != want[i] {
				t.Errorf("%s: taken %v, want %v", a, got, want[i])
			}
			call := probe{kind: probeCallMe, id: probeID{1}, answer: true, candidates: []netip.AddrPort{at}}
			if out, _ := f.Handle(now, netip.AddrPort{}, call); len(out) > 0 != want[i] {
				t.Errorf("%s: named by a peer, %d probes", a, len(out))
			}
			if out, _ := f.Handle(now, at, probe{kind: probePing, id: probeID{2}}); len(out) > 0 != want[i] {
				t.Errorf("%s: a ping from there, %d probes", a, len(out))
			}
		}
	}
}

// TestExpelled: an address in use is left when it lies behind a gateway all of a
// sudden, as when a laptop leaves the gateway's LAN.
func TestExpelled(t *testing.T) {
	s := newSim(t, 9, netsim.None, netsim.None)
	s.w.Run(5 * time.Second)
	f := s.a.finder
	if !s.a.direct() {
		t.Fatal("not direct")
	}
	proofs := f.proofs
	f.Move(s.w.Now(), &locality{behind: []netip.Prefix{netip.PrefixFrom(simPub[1], 32)}})
	if f.use != nil || f.proofs == proofs || f.find(netip.AddrPortFrom(simPub[1], simPort)) != nil {
		t.Errorf("it is still in use: %+v", f.spots)
	}
}

// TestVictim: a peer names a stranger's address as often as it likes, among
// others that change.
func TestVictim(t *testing.T) {
	s := newSim(t, 6, netsim.FullCone, netsim.FullCone)
	victim := netip.MustParseAddrPort("203.0.113.99:53")
	s.a.every, s.b.every = 0, 0
	s.b.finder.here = &locality{}
	start := s.w.Now()
	for i := range 6000 {
		s.w.After(time.Duration(i)*100*time.Millisecond, func() {
			m := probe{kind: probeCallMe, id: s.b.finder.id()}
			if i%2 == 0 {
				m.candidates = append(m.candidates, victim)
			}
			for j := range 15 {
				m.candidates = append(m.candidates, netip.AddrPortFrom(simPub[1], uint16(1000+i*15+j)))
			}
			out, _ := s.a.finder.Handle(s.w.Now(), netip.AddrPort{}, m)
			s.a.post(out)
			s.a.tick()
		})
	}
	s.w.Run(time.Second)
	if n := s.w.Sent(victim); n == 0 || n > len(pingGaps) {
		t.Errorf("%d probes to the victim in a second", n)
	}
	s.w.Run(10 * time.Minute)
	if n := s.w.Sent(victim); n > 7*len(pingGaps) {
		t.Errorf("%d probes to the victim in ten minutes", n)
	}
	if n, most := s.a.probes, int(s.w.Now().Sub(start)/quietFirst+1)*mostSpots*len(pingGaps); n > most {
		t.Errorf("%d probes in all, want %d at most", n, most)
	}
	if n := len(s.a.finder.spots); n > mostSpots {
		t.Errorf("%d spots", n)
	}
}

// TestSpoofed: a peer sends pings with a stranger's address on them, alone or
// among so many others that it could be forgotten in between.
func TestSpoofed(t *testing.T) {
	for _, others := range []int{0, 2 * mostSpots} {
		s := newSim(t, 6, netsim.FullCone, netsim.FullCone)
		victim := netip.MustParseAddrPort("203.0.113.99:53")
		s.a.every, s.b.every = 0, 0
		s.b.finder.here = &locality{}
		for i := range 6000 {
			s.w.After(time.Duration(i)*100*time.Millisecond, func() {
				from := []netip.AddrPort{victim}
				for j := range others {
					from = append(from, netip.AddrPortFrom(simPub[1], uint16(1000+j)))
				}
				for _, a := range from {
					out, _ := s.a.finder.Handle(s.w.Now(), a, probe{kind: probePing, id: s.b.finder.id()})
					s.a.post(out)
				}
				s.a.tick()
			})
		}
		s.w.Run(10 * time.Second)
		if n, most := s.w.Sent(victim), mostPongs+mostEchoes+len(pingGaps); n == 0 || n > most {
			t.Errorf("%d others: %d probes to the victim in ten seconds, want %d at most", others, n, most)
		}
		s.w.Run(10 * time.Minute)
		if n, most := s.w.Sent(victim), 6*(mostPongs+mostEchoes+len(pingGaps)); n > most {
			t.Errorf("%d others: %d probes to the victim in ten minutes, want %d at most", others, n, most)
		}
		if n := len(s.a.finder.spots); n > mostSpots {
			t.Errorf("%d spots", n)
		}
	}
}

// TestReasons makes every reason that a finder can give but lossy, for which see
// TestLossy.
func TestReasons(t *testing.T) {
	reason := func(left, right netsim.Kind, after time.Duration, change func(*sim)) string {
		s := newSim(t, 1, left, right)
		if change != nil {
			change(s)
		}
		s.w.Run(after)
		return s.a.finder.reason(s.w.Now())
	}
	v6 := netip.MustParseAddrPort("[2001:db8::2]:4000")
	for name, c := range map[string]struct{ got, want string }{
		"just begun":  {reason(netsim.PortRestricted, netsim.PortRestricted, 10*time.Millisecond, nil), reasonProbing},
		"two of them": {reason(netsim.SymmetricRandom, netsim.SymmetricRandom, 20*time.Second, nil), reasonSymmetric},
		"its UDP is blocked": {reason(netsim.PortRestricted, netsim.Blocked, 20*time.Second, func(s *sim) {
			s.b.noUDP = true
		}), ReasonUDPBlocked},
		"IPv6 only": {reason(netsim.PortRestricted, netsim.Blocked, 20*time.Second, func(s *sim) {
			s.b.only = []netip.AddrPort{v6}
		}), reasonNoFamily},
		"the peer is dead": {reason(netsim.PortRestricted, netsim.PortRestricted, 40*time.Second, func(s *sim) {
			s.w.After(5*time.Second, func() { s.cut(1, 1); s.calls = false })
		}), ReasonPeerSilent},
		"the direct path is dead": {reason(netsim.PortRestricted, netsim.PortRestricted, 40*time.Second, func(s *sim) {
			s.w.After(5*time.Second, func() { s.cut(1, 1) })
		}), reasonSymmetric},
		"silence": {reason(netsim.SymmetricRandom, netsim.SymmetricRandom, time.Minute, func(s *sim) {
			s.w.After(5*time.Second, func() { s.a.every, s.b.every = 0, 0 })
		}), reasonIdle},
	} {
		if c.got != c.want {
			t.Errorf("%s: %s, want %s", name, c.got, c.want)
		}
	}
}

// TestRelayedRTT: the way by the relay has a round trip while it is in use, and
// none long after.
func TestRelayedRTT(t *testing.T) {
	s := newSim(t, 1, netsim.SymmetricRandom, netsim.SymmetricRandom)
	s.w.Run(7 * time.Second)
	want := 2 * (s.slow + 2*s.w.Latency)
	if got := s.a.finder.relayRTT(s.w.Now()); got != want {
		t.Errorf("%v, want %v", got, want)
	}
	s.a.every, s.b.every = 0, 0
	s.w.Run(2 * time.Minute)
	if got := s.a.finder.relayRTT(s.w.Now()); got != 0 {
		t.Errorf("after two minutes of silence: %v", got)
	}
}

// TestReplay: probes that come twice, or from elsewhere, change nothing.
func TestReplay(t *testing.T) {
	s := newSim(t, 7, netsim.None, netsim.None)
	f, now := s.a.finder, s.w.Now()
	from := netip.AddrPortFrom(simPub[1], simPort)
	ping := probe{kind: probePing, id: probeID{1}}
	out, ok := f.Handle(now, from, ping)
	if !ok || len(out) != 2 || out[0].m.kind != probePong || out[1].m.kind != probePing {
		t.Fatalf("%+v", out)
	}
	if out, ok := f.Handle(now, netip.MustParseAddrPort("203.0.113.99:1"), ping); ok || len(out) != 0 {
		t.Errorf("a replayed ping is answered: %+v", out)
	}
	pong := probe{kind: probePong, id: out[1].m.id}
	for name, h := range map[string]struct {
		from netip.AddrPort
		m    probe
	}{
		"from elsewhere":   {netip.MustParseAddrPort("203.0.113.99:1"), pong},
		"by the relay":     {netip.AddrPort{}, pong},
		"of another ping":  {from, probe{kind: probePong, id: probeID{9}}},
		"a call not by it": {from, probe{kind: probeCallMe, id: probeID{3}}},
	} {
		if out, ok := f.Handle(now, h.from, h.m); ok || len(out) != 0 || f.use != nil {
			t.Errorf("%s: taken, %+v", name, out)
		}
	}
	if _, ok := f.Handle(now, from, pong); !ok || f.use == nil || f.confirmed {
		t.Error("the pong is not taken")
	}
	if _, ok := f.Handle(now, from, pong); ok {
		t.Error("the same pong is taken twice")
	}
}

// TestFaults runs for hours through random cuts, losses and NAT restarts. The
// relay never fails, so that datagrams must always arrive.
func TestFaults(t *testing.T) {
	hours := 10
	if testing.Short() {
		hours = 2
	}
	kinds := []netsim.Kind{netsim.None, netsim.FullCone, netsim.Restricted, netsim.PortRestricted, netsim.Symmetric}
	for seed := range uint64(5) {
		s := newSim(t, seed, kinds[seed], kinds[(seed*2+1)%4])
		s.a.every, s.b.every = 500*time.Millisecond, 500*time.Millisecond
		for range hours * 12 {
			pick := s.w.Rand.Float64
			switch s.w.Rand.IntN(6) {
			case 0:
				s.cut(1, 1)
			case 1:
				s.cut(pick(), pick()/3)
			case 2:
				s.a.nat.Forget()
			case 3:
				s.b.nat.Forget()
			case 4:
				s.a.every = time.Duration(s.w.Rand.IntN(2)) * 500 * time.Millisecond
			default:
				s.cut(0, 0)
			}
			s.a.longest, s.b.longest = 0, 0
			s.a.got, s.b.got = map[uint64]bool{}, map[uint64]bool{}
			s.a.lastAt, s.b.lastAt = s.w.Now(), s.w.Now()
			s.w.Run(5 * time.Minute)
			// The VPS's path is there all the time: no silence is longer than
			// the doubt takes.
			if d := s.a.longest; d > 8*time.Second {
				t.Errorf("seed %d: nothing arrived for %v", seed, d)
			}
			if n := len(s.a.finder.spots); n > mostSpots {
				t.Fatalf("%d spots", n)
			}
		}
		s.cut(0, 0)
		s.a.every, s.b.every = 100*time.Millisecond, 100*time.Millisecond
		s.w.Run(20 * time.Minute)
		if !s.a.direct() || !s.b.direct() {
			t.Errorf("seed %d: all is well again, but direct is %v, %v: %s", seed, s.a.direct(), s.b.direct(), s.a.finder.reason(s.w.Now()))
		}
		if rate := float64(s.a.probes+s.b.probes) / s.w.Now().Sub(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)).Seconds(); rate > 8 {
			t.Errorf("seed %d: %.1f probes a second", seed, rate)
		}
	}
}

// TestCallLost: a call that got lost, as one to a peer whose map does not have us
// yet, is repeated at once, not only with the next search.
func TestCallLost(t *testing.T) {
	s := newSimWith(t, 1, netsim.PortRestricted, netsim.PortRestricted, func(s *sim) { s.calls = false })
	s.w.Run(250 * time.Millisecond)
	s.calls = true
	s.w.Run(time.Second)
	if !s.a.direct() || !s.b.direct() {
		t.Errorf("direct %v, %v", s.a.direct(), s.b.direct())
	}
}
