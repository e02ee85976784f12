package underlay

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"overlayd/overlay/netsim"
)

// fits is how long a long datagram is that takes a way: TCP has been told.
func (n *simNode) fits(c choice) int {
	if c.spot == nil || c.spot.gauge == nil {
		return n.long
	}
	return min(n.long, c.spot.gauge.size)
}

// narrowTo makes the direct path carry IP packets of no more than mtu bytes.
func (s *sim) narrowTo(mtu int) {
	s.w.MTU = func(from, to netip.Addr) int {
		if to == simRelay.Addr() || from == simRelay.Addr() {
			return 0
		}
		return mtu
	}
}

// TestNarrowPath: a direct path is used with whatever it carries, from the start
// or after a change, and is not left for what it does not.
func TestNarrowPath(t *testing.T) {
	for _, mtu := range []int{1500, 1400, 1300, 1280, 1124} {
		for _, change := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d, changed %v", mtu, change), func(t *testing.T) {
				s := newSim(t, 3, netsim.PortRestricted, netsim.FullCone)
				if !change {
					s.narrowTo(mtu)
				}
				for _, n := range []*simNode{s.a, s.b} {
					n.every, n.long = 5*time.Millisecond, fullSize(0)
				}
				s.w.Run(10 * time.Second)
				if !s.a.direct() || !s.b.direct() {
					t.Fatalf("not direct: %s", s.a.finder.reason(s.w.Now()))
				}
				s.narrowTo(mtu)
				before := s.a.byRelay + s.b.byRelay
				s.w.Run(20 * time.Second)
				for _, n := range []*simNode{s.a, s.b} {
					if !n.direct() || n.finder.use.gauge.size != fits(mtu-28) {
						t.Errorf("direct %v, %s, size %d, want %d", n.direct(), n.finder.reason(s.w.Now()), n.finder.use.gauge.size, fits(mtu-28))
					}
				}
				// A change may put both ways in use for a moment.
				if by := s.a.byRelay + s.b.byRelay - before; by > 2000 {
					t.Errorf("%d datagrams by the relay", by)
				}
			})
		}
	}
}

// TestStandstill: a path loses what is long from some moment on, or always did,
// and a transfer that stands still sends little more than what is short. It is
// left within seconds, and used again when it is well.
func TestStandstill(t *testing.T) {
	for _, c := range []struct {
		name  string
		first int // MTU at first
		most  time.Duration
	}{{"it has become narrow", 1500, 10 * time.Second}, {"it was from the start", 300, 40 * time.Second}} {
		t.Run(c.name, func(t *testing.T) {
			s := newSim(t, 5, netsim.PortRestricted, netsim.FullCone)
			s.narrowTo(c.first)
			both := []*simNode{s.a, s.b}
			for _, n := range both {
				n.every, n.long = 50*time.Millisecond, 100
			}
			s.w.Run(5 * time.Second)
			for _, n := range both {
				n.long = fullSize(0)
			}
			s.w.Run(200 * time.Millisecond)
			for _, n := range both {
				n.every = 500 * time.Millisecond
			}
			s.narrowTo(300)
			alone := time.Duration(0)
			for range 120 {
				s.w.Run(500 * time.Millisecond)
				if s.a.direct() || s.b.direct() {
					alone += 500 * time.Millisecond
				}
			}
			if alone > c.most {
				t.Errorf("what is long was lost for %v", alone)
			}
			for _, n := range both {
				if got := n.finder.reason(s.w.Now()); got != reasonMTU {
					t.Errorf("reason %s", got)
				}
				n.every, n.long = 5*time.Millisecond, fullSize(0)
			}
			s.narrowTo(0)
			s.w.Run(12 * time.Minute)
			if !s.a.direct() || !s.b.direct() {
				t.Error("not used after it was healed")
			}
		})
	}
}

// TestPathForShortOnly: a path that loses all that is not very short is left,
// and the reason says why.
func TestPathForShortOnly(t *testing.T) {
	s := newSim(t, 4, netsim.PortRestricted, netsim.FullCone)
	for _, n := range []*simNode{s.a, s.b} {
		n.every, n.long = 5*time.Millisecond, fullSize(0)
	}
	s.narrowTo(300)
	s.w.Run(time.Minute)
	for _, n := range []*simNode{s.a, s.b} {
		if n.direct() {
			t.Error("a path that carries nothing long is used alone")
		}
		if got := n.finder.reason(s.w.Now()); got != reasonMTU {
			t.Errorf("reason %s", got)
		}
	}
	s.narrowTo(0)
	s.w.Run(12 * time.Minute) // the longest pause before it is tried again
	if !s.a.direct() || !s.b.direct() {
		t.Error("not used after it was healed")
	}
}
