package underlay

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"overlayd/overlay/key"
	"overlayd/overlay/relay"
)

// bubble is a Bind at work in the time of synctest, with a relay that loses
// everything and one peer that answers each ping at its address. The sockets are
// real; nobody reads them, so that time can pass.
type bubble struct {
	*Bind
	t    *testing.T
	peer *peer
	key  key.Public
	far  *seal // the peer's
	addr netip.AddrPort

	silent atomic.Bool // the peer answers nothing
}

// farTrip is how soon the peer of a bubble answers.
const farTrip = 20 * time.Millisecond

// soon is how long a direct path may take: a few answers.
const soon = 500 * time.Millisecond

type carryNothing struct{}

func (carryNothing) send(relay.Label, [][]byte) (dropped int) { return 0 }

func newBubble(t *testing.T) *bubble {
	t.Helper()
	own, far := key.NewPrivate(), key.NewPrivate()
	b := &bubble{Bind: New(Options{Key: own}), t: t, key: far.Public()}
	sink, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sink.Close() })
	b.addr = sink.LocalAddr().(*net.UDPAddr).AddrPort()
	if b.far, err = newSeal(far, own.Public()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Open(0); err != nil {
		t.Fatal(err)
	}
	b.SetLocal(Local{Label: 11, Addrs: []netip.Addr{b.addr.Addr()}})
	b.SetPeers([]Peer{{Key: b.key, Label: 200}})
	p := b.peers[b.key]
	b.peer = p
	p.mu.Lock()
	p.relayed = &way{carrier: carryNothing{}, path: Path{Kind: KindRelay, Transport: TransportUDP}}
	p.finder.Relay(time.Now(), true)
	p.mu.Unlock()

	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- b.Run(ctx) }()
	go func() { ended <- b.answer(ctx) }()
	t.Cleanup(func() {
		cancel()
		for range cap(ended) {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// answer is the peer, which has got all data that left for it.
func (b *bubble) answer(ctx context.Context) error {
	for ctx.Err() == nil {
		var pongs []probe
		b.peer.mu.Lock()
		if s := b.peer.finder.find(b.addr); s != nil && !b.silent.Load() {
			for _, p := range s.pings {
				pongs = append(pongs, probe{kind: probePong, id: p.id, got: uint32(p.sent)})
			}
			if g := s.gauge; g != nil {
				for _, p := range g.sent {
					pongs = append(pongs, probe{kind: probePong, id: p.id})
				}
			}
		}
		b.peer.mu.Unlock()
		for _, m := range pongs {
			b.probed(b.peer, b.addr, b.far.close(200, m))
		}
		time.Sleep(farTrip)
	}
	return nil
}

// call is the peer's, which tells where it is.
func (b *bubble) call() {
	b.probed(b.peer, netip.AddrPort{}, b.far.close(200, probe{kind: probeCallMe, id: randomID(), answer: true, candidates: []netip.AddrPort{b.addr}}))
}

func (b *bubble) send() {
	b.t.Helper()
	if err := b.Send([][]byte{data(100, 7)}, b.peer); err != nil {
		b.t.Fatal(err)
	}
}

// direct talks until the path is direct and has answered since, and checks that
// this is soon.
func (b *bubble) direct() {
	b.t.Helper()
	start := time.Now()
	for b.send(); ; b.send() {
		p, took := b.Path(b.key), time.Since(start)
		if p.Kind == KindDirect && p.LastEcho.After(start) {
			return
		}
		if took > soon {
			b.t.Fatalf("%v after the first datagram: %+v", took, p)
		}
		time.Sleep(farTrip)
	}
}

// TestWakes: after a silence the first datagram looks for the direct path again,
// however long the peer's address counts as proved and is looked at for that.
func TestWakes(t *testing.T) {
	for _, silence := range []time.Duration{
		activeFor / 2, activeFor + time.Second, time.Minute, 2 * time.Minute, proofLife, 2 * proofLife, time.Hour,
	} {
		t.Run(silence.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBubble(t)
				b.call()
				b.direct()
				time.Sleep(silence)
				if p := b.Path(b.key); silence > activeFor+trust && p.Reason != reasonIdle {
					t.Errorf("path %+v after the silence", p)
				}
				b.direct()
			})
		})
	}
}

// TestMissedWake: a datagram that is sent while the finder has its turn is not
// forgotten, although the probe that gave it the turn was worth nothing.
func TestMissedWake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t)
		b.call()
		b.direct()
		time.Sleep(time.Minute)
		b.silent.Store(true)
		b.peer.asleep.Store(false) // as turn does
		b.send()
		b.probed(b.peer, b.addr, b.far.close(200, probe{kind: probePong}))
		b.send()
		time.Sleep(2 * activePoll)
		synctest.Wait()
		if b.peer.talks.Load() {
			t.Error("nobody looks at what is sent")
		}
	})
}

// TestReasonBesideTLS: UDP is not called blocked any more once the peer answers at
// its own address, although the relay is still reached by TLS.
func TestReasonBesideTLS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t)
		b.peer.mu.Lock()
		b.peer.relayed.path.Transport, b.peer.relayed.path.Reason = TransportTLS, ReasonUDPBlocked
		b.peer.mu.Unlock()
		b.send()
		time.Sleep(farTrip)
		if p := b.Path(b.key); p.Kind != KindRelay || p.Reason != ReasonUDPBlocked {
			t.Errorf("path %+v before the peer answers", p)
		}
		b.call()
		answered := false
		for start := time.Now(); time.Since(start) < soon; time.Sleep(time.Millisecond) {
			b.peer.mu.Lock()
			uses := b.peer.finder.use != nil
			b.peer.mu.Unlock()
			if p := b.Path(b.key); uses && p.Kind == KindRelay {
				answered = true
				if p.Reason != reasonProbing {
					t.Fatalf("path %+v once the peer has answered", p)
				}
			}
		}
		if !answered {
			t.Error("the peer's address was never weighed")
		}
		b.silent.Store(true)
		for start := time.Now(); time.Since(start) < time.Minute; time.Sleep(time.Second) {
			b.send()
		}
		if p := b.Path(b.key); p.Kind != KindRelay || p.Reason != ReasonPeerSilent {
			t.Errorf("path %+v after a minute in which nothing was answered", p)
		}
	})
}
