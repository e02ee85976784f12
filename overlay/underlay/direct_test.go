package underlay

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"overlayd/overlay/key"
)

// directPair makes two hosts that may find each other on loopback, once they
// talk.
func directPair(t testing.TB) (a, b *host) {
	t.Helper()
	s, _ := startRelay(t, "127.0.0.1:0")
	keys := [2]key.Private{key.NewPrivate(), key.NewPrivate()}
	a, b = newHost(t, 11, Options{Key: keys[0]}), newHost(t, 200, Options{Key: keys[1]})
	for i, h := range []*host{a, b} {
		h.key = keys[i].Public()
		h.SetLocal(Local{Label: h.label, Addrs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}})
	}
	introduce(a, b)
	for _, h := range []*host{a, b} {
		h.SetRelays([]Relay{at(h.label, s.LocalAddr())})
	}
	a.waitFor("up")
	b.waitFor("up")
	return a, b
}

// converge talks until both paths are direct.
func converge(t testing.TB, a, b *host) {
	t.Helper()
	for end := time.Now().Add(deadline); ; time.Sleep(10 * time.Millisecond) {
		for _, h := range [][2]*host{{a, b}, {b, a}} {
			if err := h[0].Send([][]byte{data(100, 7)}, h[0].endpoint(h[1])); err != nil {
				t.Fatal(err)
			}
		}
		p, q := a.Path(b.key), b.Path(a.key)
		if p.Kind == KindDirect && q.Kind == KindDirect {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("paths %+v, %+v; %v", p, q, a.Counters())
		}
	}
}

func drain(h *host) {
	for {
		select {
		case <-h.got:
		case <-time.After(50 * time.Millisecond):
			return
		}
	}
}

// TestDirect goes from the relay to a direct path.
func TestDirect(t *testing.T) {
	a, b := directPair(t)
	if p := a.Path(b.key); p.Kind != KindRelay || p.Reason != reasonIdle {
		t.Errorf("before: path %+v", p)
	}
	start := time.Now()
	converge(t, a, b)
	t.Logf("direct after %v", time.Since(start))
	p := a.Path(b.key)
	if want := fmt.Sprintf("127.0.0.1:%d", b.port); p.Endpoint != want || p.Transport != TransportUDP || p.RTT <= 0 || p.Reason != "" {
		t.Errorf("path %+v, want %s", p, want)
	}
	drain(a)
	drain(b)
	exchange(t, a, b)
	exchange(t, b, a)

	// A datagram with a label comes from no direct path.
	d := data(100, 1)
	stamp(d, 5)
	if err := a.lines.Load().v4.sock.Send(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), b.port), d); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(deadline); b.Counters()["drop_direct_label"] == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a labelled datagram is not counted")
		}
	}

	// Whoever leaves the map is no peer at its old address.
	b.SetPeers(nil)
	if len(b.homes.load()) != 0 {
		t.Error("a peer that left still has a home")
	}
}

// TestDirectReopened: the sockets are closed and opened again, and the direct
// path comes back.
func TestDirectReopened(t *testing.T) {
	a, b := directPair(t)
	converge(t, a, b)
	a.stop()
	if p := a.Path(b.key); p.Kind == KindDirect {
		t.Errorf("path %+v without a socket", p)
	}
	a.start()
	a.waitFor("up")
	a.Kick()
	converge(t, a, b)
}

// TestKicked: after a change of the network both ways are used, at once.
func TestKicked(t *testing.T) {
	a, b := directPair(t)
	converge(t, a, b)
	a.Kick()
	converge(t, a, b)
}

// TestHandshakeByTheRelay: a peer that begins anew by the relay is answered there
// too.
func TestHandshakeByTheRelay(t *testing.T) {
	a, b := directPair(t)
	converge(t, a, b)
	init := data(148, 1)
	init[0] = typeInitiation
	b.peers[a.key].mu.Lock()
	relayed := b.peers[a.key].relayed
	b.peers[a.key].mu.Unlock()
	relayed.carrier.send(relayed.label, [][]byte{init})
	for p := a.next(); p.b[0] != typeInitiation; p = a.next() {
	}
	if p := a.Path(b.key); p.Kind == KindDirect {
		t.Errorf("path %+v", p)
	}
	converge(t, a, b)
}

// TestStrangers sends probes that no peer sealed.
func TestStrangers(t *testing.T) {
	a, b := directPair(t)
	send := func(d []byte) {
		t.Helper()
		if err := a.lines.Load().v4.sock.Send(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), b.port), d); err != nil {
			t.Fatal(err)
		}
	}
	forged := make([]byte, 80)
	forged[0] = typeProbe
	stamp(forged, a.label)
	unknown := append([]byte(nil), forged...)
	stamp(unknown, 99)
	for range 3 * probeBurst {
		send(forged)
	}
	send(unknown)
	send(data(100, 1))
	for end := time.Now().Add(deadline); ; time.Sleep(time.Millisecond) {
		c := b.Counters()
		if c["drop_probe_forged"] >= probeBurst && c["drop_probe_limit"] > 0 && c["drop_unknown_label"] == 1 && c["drop_unknown_source"] == 1 {
			return
		}
		if time.Now().After(end) {
			t.Fatal(c)
		}
	}
}

// TestDirectSendAllocatesNothing measures each way that data can leave.
func TestDirectSendAllocatesNothing(t *testing.T) {
	a, b := directPair(t)
	converge(t, a, b)
	drain(b)
	ls := a.lines.Load()
	p := a.peers[b.key]
	nobody := freeAddr(t) // the receiving host is in this process, and allocates
	spot := &spot{addr: nobody, tally: &tally{}}
	bufs := make([][]byte, 128)
	for i := range bufs {
		bufs[i] = data(1400, 1)
	}
	// The relay is in this process too.
	relayed := &way{carrier: &udpCarrier{leg: a.legs[0], line: ls.v4, dst: nobody}, label: 9}
	for name, both := range map[string]bool{"direct": false, "both": true} {
		w := combine(relayed, choice{spot, both}, ls, p.way.Load())
		a.stopDriving(t, p, w)
		if n := testing.AllocsPerRun(100, func() {
			if err := a.Send(bufs, p); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	if spot.tally.sent.Load() == 0 {
		t.Error("nothing went directly")
	}
}

// stopDriving gives a peer a way that nobody changes.
func (h *host) stopDriving(t testing.TB, p *peer, w *way) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.finder = nil
	p.relayed = w
	p.way.Store(w)
}

// TestCandidates: at most 16 addresses are told, and the router's port is among
// them, unless it is one that we have anyway.
func TestCandidates(t *testing.T) {
	b := New(Options{Key: key.NewPrivate()})
	b.port = 4000
	mapped, forwarded := netip.MustParseAddrPort("198.51.100.2:41641"), netip.MustParseAddrPort("198.51.100.2:4000")
	for _, n := range []int{0, 3, 15, 16, 40} {
		l := Local{Endpoints: []netip.AddrPort{forwarded}}
		for i := range n {
			l.Addrs = append(l.Addrs, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
		}
		for _, c := range []struct {
			mapped netip.AddrPort
			count  int
			bits   uint16
		}{{netip.AddrPort{}, n + 1, 1}, {mapped, n + 2, 3}, {forwarded, n + 1, 1}} {
			b.SetMapped(c.mapped)
			b.SetLocal(l)
			if got := b.here; len(got.candidates) != min(c.count, mostCandidates) || got.mapped != c.bits {
				t.Errorf("%d addresses, %v mapped: %v, %b", n, c.mapped, got.candidates, got.mapped)
			}
			if c.mapped.IsValid() && !slices.Contains(b.here.candidates, c.mapped) {
				t.Errorf("%d addresses: %v is not told", n, c.mapped)
			}
		}
	}
}
