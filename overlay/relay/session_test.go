package relay

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

func TestAttach(t *testing.T) {
	for _, delay := range []time.Duration{0, time.Millisecond, 50 * time.Millisecond, 400 * time.Millisecond} {
		t.Run(fmt.Sprint(delay), func(t *testing.T) {
			w := newWorld(t, 1)
			w.delay = delay
			a, b := w.node(1), w.node(2)
			w.run(4*delay + 4*time.Millisecond)
			w.wantUp(a, b)
			w.wantFlow(a, b)
			w.run(time.Second)
			if s := a.Status(); delay > 0 && (s.RTT < 2*delay*9/10 || s.RTT > 2*delay*11/10) && delay < 100*time.Millisecond {
				t.Errorf("RTT %v at %v one way", s.RTT, delay)
			}
			if s := a.Status(); s.Observed != a.addr || s.BootID != w.door.boot {
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestIdleSessionIsKept(t *testing.T) {
	w := newWorld(t, 2)
	a, b := w.node(1), w.node(2)
	w.run(time.Hour)
	w.wantUp(a, b)
	w.table.sweep(w.now.Sub(w.door.start), w.now)
	w.wantFlow(a, b)
	if n := len(a.pings); n < 3600/25-2 || n > 3600/20+2 {
		t.Errorf("%d PINGs in an hour", n)
	}
	if a.attach != 2 {
		t.Errorf("%d ATTACHes", a.attach)
	}
}

func TestSilentNodeIsForgotten(t *testing.T) {
	w := newWorld(t, 3)
	a := w.node(1)
	w.run(time.Second)
	a.mute = true
	w.run(leaseTime + 30*time.Second)
	if n, _ := w.table.sweep(w.now.Sub(w.door.start), w.now); n != 1 || w.table.places.len() != 0 || len(w.table.networks) != 0 {
		t.Errorf("%d swept, %d left", n, w.table.places.len())
	}
}

// TestRestartHeals takes the relay away for a while; both nodes must be back
// within a second of its return, whoever notices first.
func TestRestartHeals(t *testing.T) {
	for _, away := range []time.Duration{0, time.Second, 5 * time.Second, 30 * time.Second} {
		for _, noticed := range []string{"by data", "by kick"} {
			t.Run(fmt.Sprint(away, " ", noticed), func(t *testing.T) {
				w := newWorld(t, 4)
				a, b := w.node(1), w.node(2)
				w.run(time.Minute)
				boot := a.Status().BootID
				w.door = nil
				for end := w.now.Add(away); w.now.Before(end); w.run(100 * time.Millisecond) {
					w.send(a, 2)
					w.send(b, 1)
				}
				if noticed == "by kick" {
					a.Kick(w.now)
					b.Kick(w.now)
					a.next, b.next = w.now, w.now
				}
				w.start()
				for range 9 {
					if noticed == "by data" {
						w.send(a, 2)
						w.send(b, 1)
					}
					w.run(100 * time.Millisecond)
				}
				w.wantUp(a, b)
				if a.Status().BootID == boot {
					t.Error("the restart does not show")
				}
				w.wantFlow(a, b)
				w.wantFlow(b, a)
			})
		}
	}
}

// TestSilenceIsNoticed restarts the relay under a node that only sends now and then.
func TestSilenceIsNoticed(t *testing.T) {
	w := newWorld(t, 5)
	a, b := w.node(1), w.node(2)
	w.run(time.Second)
	w.send(a, 2) // unanswered from here on
	w.run(100 * time.Millisecond)
	pings := len(a.pings)
	w.start()
	w.run(silence + pollEvery)
	if len(a.pings) == pings {
		t.Errorf("no PING after %v of silence", silence)
	}
	w.wantUp(a)
	if a.Status().BootID != w.door.boot {
		t.Error("not attached again")
	}
	_ = b
}

func TestNATRebinding(t *testing.T) {
	w := newWorld(t, 6)
	a, b := w.node(1), w.node(2)
	w.run(time.Minute)
	for i := range 20 {
		a.addr = netip.AddrPortFrom(a.addr.Addr(), uint16(2000+i))
		w.send(a, 2)
		w.run(8 * w.delay)
		w.wantUp(a)
		if a.Status().Observed != a.addr {
			t.Fatalf("observed %v, is %v", a.Status().Observed, a.addr)
		}
		w.wantFlow(a, b)
		w.wantFlow(b, a)
		w.run(hushGap + time.Second/2) // a PING on its way would hide the UNKNOWN: see unknownEvery
	}
	if n := w.table.places.len(); n != 2 {
		t.Errorf("%d places", n)
	}
}

// TestReplay sends everything that two nodes ever sent once more, from their
// address, from older ones and from a stranger's. It changes nothing.
func TestReplay(t *testing.T) {
	w := newWorld(t, 7)
	a, b := w.node(1), w.node(2)
	w.run(time.Minute)
	old := a.addr
	a.addr = netip.AddrPortFrom(a.addr.Addr(), 2000)
	w.send(a, 2)
	w.run(time.Second)
	w.wantUp(a, b)
	record := append([]packet(nil), w.toRelay...)
	stranger := netip.MustParseAddrPort("198.51.100.1:7")
	moves := w.events[moved] + w.events[attached]
	for _, p := range record {
		for _, src := range []netip.AddrPort{p.src, old, stranger} {
			if p.data[0] == kindControl {
				w.put(packet{w.now.Add(w.delay), src, false, p.data})
			}
		}
		w.run(time.Millisecond)
	}
	w.run(time.Second)
	if got := w.events[moved] + w.events[attached]; got != moves {
		t.Errorf("%d sessions made or moved by replays", got-moves)
	}
	if w.table.at(a.addr) == nil || w.table.at(old) != nil || w.table.at(stranger) != nil {
		t.Error("a replay moved a session")
	}
	w.wantFlow(a, b)
	w.wantFlow(b, a)
	w.run(30 * time.Second)
	w.wantUp(a, b)
}

// TestForgedUnknown floods a node with hints; it stays up and attaches at a
// bounded rate.
func TestForgedUnknown(t *testing.T) {
	w := newWorld(t, 8)
	a, b := w.node(1), w.node(2)
	w.run(time.Minute)
	before := a.attach
	for range 1000 {
		w.put(packet{w.now, a.addr, true, appendUnknown(nil)})
		w.run(10 * time.Millisecond)
		w.wantUp(a)
	}
	if n := a.attach - before; n > 2*10*10+10 {
		t.Errorf("%d ATTACHes in 10 s", n)
	}
	w.wantFlow(a, b)
	w.wantFlow(b, a)
}

func TestKickPingsFast(t *testing.T) {
	w := newWorld(t, 9)
	a := w.node(1)
	w.run(time.Second)
	w.door = nil
	a.pings = nil
	a.Kick(w.now)
	a.next = w.now
	w.run(3 * time.Second)
	var gaps []time.Duration
	for i := 1; i < len(a.pings); i++ {
		gaps = append(gaps, (a.pings[i] - a.pings[i-1]).Round(time.Millisecond))
	}
	if got, want := fmt.Sprint(gaps), "[100ms 200ms 400ms]"; got != want {
		t.Errorf("gaps %v, want %v", got, want)
	}
	if a.Status().State != Attaching {
		t.Errorf("%+v", a.Status())
	}
	w.run(10 * time.Second)
	if a.Status().State != Lost {
		t.Errorf("%+v", a.Status())
	}
}

// TestAttachPace counts what an unreachable relay costs.
func TestAttachPace(t *testing.T) {
	w := newWorld(t, 10)
	w.door = nil
	a := w.node(1)
	w.run(time.Second)
	if a.attach < 3 || a.attach > 8 {
		t.Errorf("%d ATTACHes in the first second", a.attach)
	}
	w.run(10 * time.Minute)
	a.attach = 0
	w.run(10 * time.Minute)
	if a.attach < 600*10/5 || a.attach > 600*10/3 { // a gap of 0.43 s on average
		t.Errorf("%d ATTACHes in 10 minutes", a.attach)
	}
}

// TestLongAbsence: nobody sends, and the relay was away for an hour.
func TestLongAbsence(t *testing.T) {
	w := newWorld(t, 20)
	a, b := w.node(1), w.node(2)
	w.run(time.Minute)
	w.door = nil
	w.run(time.Hour)
	w.start()
	w.run(attachMost + 5*w.delay)
	w.wantUp(a, b)
	w.wantFlow(a, b)
}

// TestWatchedClosely restarts the relay again and again under a node that never
// sends, and that nobody tells of it.
func TestWatchedClosely(t *testing.T) {
	w := newWorld(t, 21)
	a, b := w.node(1), w.node(2)
	w.run(time.Second)
	for i := range 50 {
		b.Watch(w.now, true)
		b.next = w.now
		w.run(time.Duration(i*37) * time.Millisecond)
		w.start()
		for range 10 {
			w.send(a, 2)
			w.run(100 * time.Millisecond)
		}
		w.wantUp(a, b)
		w.wantFlow(a, b)
	}
	b.pings = nil
	w.run(time.Minute)
	if n := len(b.pings); n < 60 || n > 101 {
		t.Errorf("%d PINGs in a minute", n)
	}
	b.Watch(w.now, false)
	w.run(time.Second)
	b.pings = nil
	w.run(10 * time.Minute)
	if n := len(b.pings); n > 31 {
		t.Errorf("%d PINGs in 10 minutes of calm", n)
	}
}

func TestTicketEnds(t *testing.T) {
	w := newWorld(t, 11)
	a := w.node(1)
	ticket, k := pass(testNetwork, 1, 1, w.now.Add(time.Minute))
	a.Renew(ticket, k)
	w.run(10 * time.Minute)
	w.wantUp(a) // within the grace
	w.run(ticketGrace)
	_, out := w.table.sweep(w.now.Sub(w.door.start), w.now)
	if len(out) != 1 || w.table.places.len() != 0 {
		t.Fatalf("%d farewells", len(out))
	}
	w.put(packet{w.now, out[0].dst.addr, true, out[0].frame})
	w.run(20 * time.Second)
	if s := a.Status(); s.State != Lost || s.Reason != ReasonExpired {
		t.Errorf("%+v", s)
	}
	a.Renew(pass(testNetwork, 1, 2, w.now.Add(time.Hour)))
	a.next = w.now
	w.run(time.Second)
	w.wantUp(a)
}

// TestRenewKeepsSession renews a ticket under traffic: not one datagram is lost.
func TestRenewKeepsSession(t *testing.T) {
	w := newWorld(t, 12)
	a, b := w.node(1), w.node(2)
	w.run(time.Second)
	for i := range 10 {
		a.Renew(pass(testNetwork, 1, uint64(i+10), w.now.Add(time.Hour)))
		a.next = w.now
		for range 10 {
			w.wantFlow(a, b)
			w.wantUp(a)
		}
	}
	a.Renew(pass(testNetwork, 1, 99, w.now.Add(-time.Hour))) // no good: the old one's session goes on
	a.next = w.now
	w.run(10 * time.Minute)
	w.wantUp(a)
	w.wantFlow(a, b)
	if s := a.Status(); s.Reason != ReasonExpired {
		t.Errorf("%+v", s)
	}
}

func TestSessionLimits(t *testing.T) {
	w := newWorld(t, 13)
	w.table.maxPerNetwork = 2
	a, b, c := w.node(1), w.node(2), w.node(3)
	w.run(time.Second)
	full := 0
	for _, n := range []*simNode{a, b, c} {
		if s := n.Status(); s.State == Lost && s.Reason == ReasonFull {
			full++
		}
	}
	if full != 1 || w.table.places.len() != 2 {
		t.Errorf("%d refused, %d places", full, w.table.places.len())
	}
}

// TestTwoNodesOneAddress lets a node come back under another label from the
// same address.
func TestTwoNodesOneAddress(t *testing.T) {
	w := newWorld(t, 14)
	a := w.node(1)
	w.run(time.Second)
	a.mute = true
	c, b := w.node(3), w.node(2)
	c.addr = a.addr
	a.addr = netip.AddrPort{}
	w.run(time.Second)
	w.wantUp(b, c)
	w.wantFlow(b, c)
	if n := w.table.networks[testNetwork].labels.len(); n != 2 {
		t.Errorf("%d labels", n)
	}
}

// TestSoak runs some virtual days of loss, restarts, rebinding, kicks, duplicates and
// replays. Whenever the world is kind for ten seconds, packets flow.
func TestSoak(t *testing.T) {
	seeds := uint64(4)
	if testing.Short() {
		seeds = 1
	}
	for seed := range seeds {
		w := newWorld(t, 100+seed)
		nodes := []*simNode{w.node(1), w.node(2), w.node(3)}
		for round := range 400 {
			w.loss = []float64{0, 0.05, 0.3, 0.9}[w.rng.IntN(4)]
			w.delay = time.Duration(1+w.rng.IntN(150)) * time.Millisecond
			for range w.rng.IntN(30) {
				n := nodes[w.rng.IntN(len(nodes))]
				switch w.rng.IntN(12) {
				case 0:
					w.start()
				case 1:
					n.addr = netip.AddrPortFrom(n.addr.Addr(), uint16(1000+w.rng.IntN(60000)))
				case 2:
					n.Kick(w.now)
					n.next = w.now
				case 3:
					n.Renew(pass(testNetwork, n.label, uint64(round), w.now.Add(1000*time.Hour)))
					n.next = w.now
				case 4:
					if len(w.toRelay) > 0 {
						w.put(w.toRelay[w.rng.IntN(len(w.toRelay))])
					}
				case 5:
					w.table.sweep(w.now.Sub(w.door.start), w.now)
				default:
					w.send(n, nodes[w.rng.IntN(len(nodes))].label)
				}
				w.run(time.Duration(w.rng.IntN(3000)) * time.Millisecond)
			}
			w.loss = 0
			for range 20 {
				for _, n := range nodes {
					w.send(n, nodes[0].label)
				}
				w.run(500 * time.Millisecond)
			}
			w.wantUp(nodes...)
			for _, n := range nodes[1:] {
				w.wantFlow(n, nodes[0])
				w.wantFlow(nodes[0], n)
			}
			if w.table.places.len() > len(nodes) {
				t.Fatalf("%d places", w.table.places.len())
			}
		}
	}
}
