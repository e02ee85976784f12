package publish

import (
	"context"
	"net/netip"
	"testing"
	"time"
)

// TestFlowsFull: nobody takes a whole port of UDP, and forged sources keep nobody
// out, nor end those whose client is really there.
func TestFlowsFull(t *testing.T) {
	s, now := newFlows(), time.Unix(1e9, 0)
	source := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 1)
	}
	say := func(at netip.AddrPort) (*flow, context.Context) {
		f, ctx := s.take(t.Context(), at)
		if f != nil && f.take([]byte("x"), now) {
			s.know(f)
		}
		return f, ctx
	}
	real := netip.MustParseAddrPort("198.51.100.1:1")
	known, _ := say(real)
	known.heard(now)
	if f, ctx := say(real); f != known || ctx != nil || !known.known {
		t.Fatalf("a client that goes on has another flow, or is not known: %+v", known)
	}
	once, _ := say(netip.MustParseAddrPort("198.51.100.2:1"))
	for i := range 3 * maxFlows {
		if f, ctx := say(source(i)); f == nil || ctx == nil {
			t.Fatalf("number %d is kept out", i)
		}
	}
	if f, _ := say(real); f != known || s.count() != maxFlows {
		t.Errorf("who was there has another flow; there are %d", s.count())
	}
	if s.all[once.client] == once {
		t.Error("who said one thing long ago is still there")
	}
	s.leave(once) // as its goroutine does
	if s.count() != maxFlows {
		t.Errorf("one left that was gone, and there are %d", s.count())
	}

	alone := netip.MustParseAddr("198.51.100.3")
	for i := range maxFlowsOf {
		if f, _ := say(netip.AddrPortFrom(alone, uint16(i+1))); f == nil {
			t.Fatalf("port %d of one source is kept out", i)
		}
	}
	if f, _ := say(netip.AddrPortFrom(alone, 65535)); f != nil {
		t.Error("one source has more than its share")
	}
	for _, f := range s.all { // all are known now
		f.heard(now)
		if f.take(nil, now) {
			s.know(f)
		}
	}
	if f, ctx := say(source(1 << 20)); f == nil || ctx == nil {
		t.Error("when all are known a new one is kept out")
	}
	if n := s.close(); n != maxFlows {
		t.Errorf("%d are closed", n)
	}
	if f, _ := say(source(1<<20 + 1)); f != nil {
		t.Error("one begins on a closed port")
	}
	for _, f := range s.all {
		f.stop()
		s.leave(f)
	}
	if len(s.of)+s.fresh.Len()+s.known.Len() != 0 {
		t.Errorf("%d sources, %d and %d flows are left", len(s.of), s.fresh.Len(), s.known.Len())
	}
}

// TestFlow: what waits for the connection is bounded, and who talks stays longer.
func TestFlow(t *testing.T) {
	f, now := &flow{}, time.Unix(1e9, 0)
	for range 2 * maxEarly {
		f.take(make([]byte, maxDatagram/4), now)
	}
	if len(f.early) != 4 || f.waiting > maxDatagram {
		t.Errorf("%d datagrams of %d bytes wait", len(f.early), f.waiting)
	}
	if got := f.left(now.Add(time.Second)); got != newFlowIdle-time.Second {
		t.Errorf("a new flow stays for %v", got)
	}
	f.heard(now)
	if !f.take(nil, now) || f.take(nil, now) {
		t.Error("that the client goes on is not told once")
	}
	if got := f.left(now); got != flowIdle {
		t.Errorf("a flow of two who talk stays for %v", got)
	}
}
