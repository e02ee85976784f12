package underlay

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"overlayd/overlay/netsim"
)

func seen(by, as string) Seen {
	return Seen{netip.MustParseAddrPort(by), netip.MustParseAddrPort(as)}
}

func TestMappingOf(t *testing.T) {
	own := []netip.AddrPort{netip.MustParseAddrPort("10.0.0.2:4000"), netip.MustParseAddrPort("[2001:db8::2]:4000")}
	for name, c := range map[string]struct {
		is4  bool
		seen []Seen
		want Mapping
	}{
		"nobody told":             {true, nil, MappingUnknown},
		"one relay":               {true, []Seen{seen("203.0.113.1:443", "198.51.100.2:4000")}, MappingUnknown},
		"one relay, no NAT":       {true, []Seen{seen("203.0.113.1:443", "10.0.0.2:4000")}, MappingNone},
		"two relays agree":        {true, []Seen{seen("203.0.113.1:443", "198.51.100.2:4000"), seen("203.0.113.2:443", "198.51.100.2:4000")}, MappingIndependent},
		"two ports of one relay":  {true, []Seen{seen("203.0.113.1:443", "198.51.100.2:4000"), seen("203.0.113.1:444", "198.51.100.2:4000")}, MappingUnknown},
		"two ports disagree":      {true, []Seen{seen("203.0.113.1:443", "198.51.100.2:4000"), seen("203.0.113.1:444", "198.51.100.2:4001")}, MappingDependent},
		"relay and peer disagree": {true, []Seen{seen("203.0.113.1:443", "198.51.100.2:4000"), seen("192.0.2.7:9", "198.51.100.2:5000")}, MappingDependent},
		"another public address":  {true, []Seen{seen("203.0.113.1:443", "198.51.100.2:4000"), seen("192.0.2.7:9", "198.51.100.3:4000")}, MappingDependent},
		"somebody inside the NAT": {true, []Seen{seen("10.9.9.9:9", "10.0.0.2:4000"), seen("203.0.113.1:443", "198.51.100.2:4000")}, MappingUnknown},
		"the other family":        {false, []Seen{seen("203.0.113.1:443", "198.51.100.2:4000"), seen("203.0.113.2:443", "198.51.100.2:4001")}, MappingUnknown},
		"IPv6 without NAT":        {false, []Seen{seen("[2001:db8::1]:443", "[2001:db8::2]:4000")}, MappingNone},
	} {
		if got := MappingOf(c.is4, own, c.seen); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// TestCheck asks a relay at two of its addresses, one of which nobody answers at.
func TestCheck(t *testing.T) {
	s, stop := startRelay(t, "127.0.0.1:0")
	silent := netip.MustParseAddrPort("127.0.0.1:9")
	a, b := pair(t, s.LocalAddr(), silent)
	a.waitFor("up")
	b.waitFor("up")
	sessions := s.Counters()["sessions_attached"]
	c := a.Check(t.Context())
	if len(c.Relays) != 1 || len(c.Relays[0].Echoes) != 2 {
		t.Fatalf("%+v", c)
	}
	hit, miss := c.Relays[0].Echoes[0], c.Relays[0].Echoes[1]
	if hit.RTT <= 0 || hit.Err != nil || hit.Observed.Addr() != s.LocalAddr().Addr() || hit.Observed.Port() != a.port {
		t.Errorf("the relay's answer: %+v", hit)
	}
	if miss.RTT != 0 || miss.Observed.IsValid() {
		t.Errorf("nobody's answer: %+v", miss)
	}
	if len(c.Seen) != 1 || !c.IPv4 {
		t.Errorf("%+v", c)
	}
	if n := s.Counters(); n["sessions_attached"] != sessions || n["sessions_moved"] != 0 {
		t.Errorf("a session was disturbed: %v", n)
	}
	if n := a.Counters(); n["drop_control"] != 0 {
		t.Errorf("the answers were taken for the session's: %v", n)
	}
	stop()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if c := a.Check(ctx); c.Relays[0].Echoes[0].RTT != 0 {
		t.Errorf("a relay that is gone answered: %+v", c)
	}
}

// TestCheckAsksIdleRelays: with a relay that is too far away for a session there
// is none to be disturbed, but it is asked all the same.
func TestCheckAsksIdleRelays(t *testing.T) {
	s, _ := startRelay(t, "127.0.0.1:0")
	silent := netip.MustParseAddrPort("127.0.0.1:9")
	h := newHost(t, 11, Options{})
	h.mu.Lock()
	again := time.Now().Add(surveyAgain) // no survey meanwhile, though those kept are down
	h.keeper = keeper{home: []string{"near", "next"}, again: again, downAt: again}
	h.mu.Unlock()
	relays := []Relay{at(11, silent), at(11, silent), at(11, s.LocalAddr())}
	relays[0].ID, relays[1].ID, relays[2].ID = "near", "next", "far"
	h.SetRelays(relays)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	far := h.Check(ctx).Relays[2]
	if far.State != stateIdle || len(far.Echoes) != 1 || far.Echoes[0].RTT <= 0 || far.Echoes[0].Err != nil {
		t.Errorf("%+v", far)
	}
	if n := s.Counters()["sessions_attached"]; n != 0 {
		t.Errorf("%d sessions with an idle relay", n)
	}
}

// TestCheckDuringMove leaves the port while a check runs: it tells how things are
// on the new one.
func TestCheckDuringMove(t *testing.T) {
	s, _ := startRelay(t, "127.0.0.1:0")
	silent, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	if err := silent.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	silentAddr := silent.LocalAddr().(*net.UDPAddr).AddrPort()
	h := newHost(t, 11, Options{})
	h.SetRelays([]Relay{at(11, s.LocalAddr(), silentAddr)})
	h.waitFor("up")
	result := make(chan Check, 1)
	go func() { result <- h.Check(t.Context()) }()
	buf := make([]byte, 100)
	if _, _, err := silent.ReadFromUDPAddrPort(buf); err != nil { // it has asked
		t.Fatal(err)
	}
	old, err := h.move()
	if err != nil {
		t.Fatal(err)
	}
	h.snapshot()[0].retry(time.Now())
	c := <-result
	now := h.localPort()
	if now == old {
		t.Fatal("the port is the same")
	}
	hit, miss := c.Relays[0].Echoes[0], c.Relays[0].Echoes[1]
	if hit.RTT <= 0 || hit.Err != nil || hit.Observed.Port() != now {
		t.Errorf("the relay's answer: %+v, want one to port %d", hit, now)
	}
	if miss.RTT != 0 || miss.Err != nil {
		t.Errorf("nobody's answer: %+v", miss)
	}
	for tries := 0; ; { // by the new port, and more than once
		_, from, err := silent.ReadFromUDPAddrPort(buf)
		if err != nil {
			t.Fatal(err)
		}
		if from.Port() != now {
			continue
		}
		if tries++; tries > len(checkGaps) {
			break
		}
	}
}

// TestCheckIsNotFooled sends what is no answer while a check runs.
func TestCheckIsNotFooled(t *testing.T) {
	silent := netip.MustParseAddrPort("127.0.0.1:9")
	h := newHost(t, 11, Options{})
	h.SetRelays([]Relay{at(11, silent)})
	l := h.snapshot()[0]
	heard := make(chan struct{}, 1)
	l.ask(heard)
	defer l.askNoMore()
	now := time.Now()
	l.askAgain(now, h.lines.Load())
	frame := l.questions[0].tries[0].Frame()
	forged := make([]byte, 52) // as long as a CHALLENGE, at most
	copy(forged, frame[:4])
	for size := range forged {
		for kind := range byte(10) {
			forged[1] = kind
			l.mu.Lock()
			if l.answers(now, silent, forged[:size]) {
				t.Errorf("%d bytes of kind %d are an answer", size, kind)
			}
			l.mu.Unlock()
		}
	}
	if e := l.echoes(); e[0].RTT != 0 {
		t.Errorf("%+v", e)
	}
}

// TestWitnesses: what a peer's pongs say of our NAT, and what an unasked ping does.
func TestWitnesses(t *testing.T) {
	for _, c := range []struct {
		left, right netsim.Kind
		want        Mapping
		unasked     bool
	}{
		{netsim.None, netsim.PortRestricted, MappingNone, true},
		{netsim.FullCone, netsim.Symmetric, MappingIndependent, false}, // something had gone to the peer's address
		{netsim.PortRestricted, netsim.FullCone, MappingIndependent, false},
		{netsim.Symmetric, netsim.FullCone, MappingDependent, false},
		{netsim.SymmetricRandom, netsim.None, MappingDependent, false},
	} {
		t.Run(string(c.left)+", "+string(c.right), func(t *testing.T) {
			s := newSim(t, 1, c.left, c.right)
			s.w.Run(10 * time.Second)
			f := s.a.finder
			all := append(f.witnesses(s.w.Now()), Seen{simRelay, s.a.observed})
			if got := MappingOf(true, []netip.AddrPort{s.a.conn.LocalAddr()}, all); got != c.want {
				t.Errorf("%s, want %s: %v", got, c.want, all)
			}
			if got := !f.unaskedAt.IsZero(); got != c.unasked {
				t.Errorf("somebody got in unasked: %v", got)
			}
			s.w.Run(time.Second)
			if len(f.witnesses(s.w.Now().Add(time.Minute))) != 0 {
				t.Error("what was seen a minute ago counts as now")
			}
		})
	}
}
