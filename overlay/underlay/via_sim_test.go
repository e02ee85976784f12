package underlay

import (
	"net/netip"
	"testing"
	"time"

	"overlayd/overlay/netsim"
	"overlayd/overlay/relay"
)

// switchboard is a relay in a virtual network: it answers PINGs, and passes on
// what is for another node, both after a while, which is its distance.
type switchboard struct {
	w    *netsim.World
	conn *netsim.Conn
	dead bool
	far  map[netip.Addr]time.Duration // one way, by node
}

func (s *switchboard) receive(src netip.AddrPort, b []byte) {
	to := src
	if b[0] != typeControl { // for the other node
		to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[1:5])), simPort)
	}
	s.w.After(s.far[src.Addr()]+s.far[to.Addr()], func() {
		if !s.dead {
			s.conn.Send(to, b)
		}
	})
}

// crossing is a node that talks to a peer by two relays, as the Bind has it.
type crossing struct {
	w      *netsim.World
	conn   *netsim.Conn
	peer   *crossing
	relays []netip.AddrPort
	report []report // by relay, as standing
	asked  []time.Time
	stand  []standing
	via    via
	tell   teller
	own    []presence
	at     []presence
	number uint64 // of what was told

	sent, last, uses, doubles int
	lastAt                    time.Time
	longest                   time.Duration
}

func newCrossing(w *netsim.World, addr string, relays []*switchboard) *crossing {
	n := &crossing{w: w, report: make([]report, len(relays)), asked: make([]time.Time, len(relays)), stand: make([]standing, len(relays)), lastAt: w.Now()}
	for _, r := range relays {
		n.relays = append(n.relays, r.conn.LocalAddr())
	}
	n.conn = w.Host(netip.MustParseAddr(addr)).Listen(simPort, n.receive)
	return n
}

// step is 20 ms of a node's life.
func (n *crossing) step() {
	now := n.w.Now()
	var sights []sight
	var own []presence
	for i := range n.relays {
		r := &n.report[i]
		if now.Sub(n.asked[i]) >= 250*time.Millisecond { // traffic that goes unanswered is asked about
			n.asked[i] = now
			if r.doubted.IsZero() {
				r.doubted = now
			}
			n.conn.Send(n.relays[i], []byte{typeControl, byte(i), 0, 0, 0})
		}
		if r.up && now.Sub(r.doubted) > 2500*time.Millisecond && !r.doubted.IsZero() {
			r.up = false
		}
		n.stand[i].look(now, *r)
		s := n.stand[i].sight
		s.id, s.label = string(rune('a'+i)), relay.Label(i+1)
		sights = append(sights, s)
		if s.up {
			own = append(own, presence{Place{s.label, s.cost}, s.doubted})
		}
	}
	if len(own) != len(n.own) || len(own) > 0 && own[0] != n.own[0] {
		n.number++
	}
	n.own = own
	if tell, _, _ := n.tell.step(now, n.number+1, true, n.at != nil, false); tell {
		m := newNotice(now, own, false)
		for _, to := range n.relays {
			n.conn.Send(to, n.dress(append([]byte{typeProbe}, m.Append(nil)...)))
		}
	}
	use := n.via.use
	c := n.via.choose(now, sights, n.at)
	if n.via.use != use {
		n.uses++
	}
	n.sent++
	b := n.dress([]byte{typeData, byte(n.sent), byte(n.sent >> 8), byte(n.sent >> 16)})
	for _, i := range []int{c.first, c.second} {
		if i >= 0 {
			n.conn.Send(n.relays[i], b)
		}
	}
	if c.second >= 0 {
		n.doubles++
	}
	n.w.After(20*time.Millisecond, n.step)
}

// dress writes the peer's address behind the first byte.
func (n *crossing) dress(b []byte) []byte {
	to := n.peer.conn.LocalAddr().Addr().As4()
	return append(append([]byte{b[0]}, to[:]...), b[1:]...)
}

func (n *crossing) receive(src netip.AddrPort, b []byte) {
	now := n.w.Now()
	switch b[0] {
	case typeControl:
		r := &n.report[b[1]]
		r.up, r.rtt, r.doubted = true, now.Sub(n.asked[b[1]]), time.Time{}
	case typeProbe:
		if m, err := parseProbe(b[5:]); err == nil && n.tell.fresh(now, m) {
			n.at = m.places
		}
	case typeData:
		if number := int(b[5]) | int(b[6])<<8 | int(b[7])<<16; number > n.last {
			n.last = number
			n.longest = max(n.longest, now.Sub(n.lastAt))
			n.lastAt = now
		}
	}
}

// crossings makes two nodes and two relays, of which a is near both and b is not.
func crossings(seed uint64) (w *netsim.World, a, b *switchboard, left, right *crossing) {
	w = netsim.New(seed)
	one, two := "192.0.2.1", "192.0.2.2"
	board := func(addr string, toOne, toTwo int) *switchboard {
		s := &switchboard{w: w, far: map[netip.Addr]time.Duration{netip.MustParseAddr(one): ms(toOne), netip.MustParseAddr(two): ms(toTwo)}}
		s.conn = w.Host(netip.MustParseAddr(addr)).Listen(443, s.receive)
		return s
	}
	a, b = board("203.0.113.10", 20, 30), board("198.51.100.10", 5, 80) // b is nearer to one, but the sum counts
	left, right = newCrossing(w, one, []*switchboard{a, b}), newCrossing(w, two, []*switchboard{a, b})
	left.peer, right.peer = right, left
	left.step()
	right.step()
	w.Run(10 * time.Second)
	return w, a, b, left, right
}

// Two nodes find the relay with the lowest sum of both round trips, leave it when
// it dies, and come back.
func TestTwoRelaysInASimulation(t *testing.T) {
	w, a, _, left, right := crossings(1)
	uses := func(want string) {
		t.Helper()
		if left.via.use != want || right.via.use != want {
			t.Fatalf("they use %s and %s, want %s", left.via.use, right.via.use, want)
		}
	}
	uses("a")
	for _, n := range []*crossing{left, right} {
		n.longest, n.doubles = 0, 0
	}
	w.Run(time.Minute)
	if left.doubles+right.doubles > 0 {
		t.Errorf("%d and %d datagrams went twice although all is well", left.doubles, right.doubles)
	}
	a.dead = true
	w.Run(10 * time.Second)
	uses("b")
	t.Logf("relay killed: nothing came for %v and %v", left.longest, right.longest)
	if worst := max(left.longest, right.longest); worst > time.Second {
		t.Errorf("nothing came for %v", worst)
	}
	a.dead = false
	w.Run(settleFirst / 2)
	uses("b")
	w.Run(time.Minute)
	uses("a")
}

// A relay that dies and comes back all the time is not moved back to each time.
func TestFlappingRelay(t *testing.T) {
	w, a, _, left, right := crossings(2)
	left.uses, right.uses, left.longest, right.longest = 0, 0, 0, 0
	for range 60 { // an hour
		a.dead = true
		w.Run(5 * time.Second)
		a.dead = false
		w.Run(55 * time.Second)
	}
	t.Logf("moved %d and %d times, at most %v without data", left.uses, right.uses, max(left.longest, right.longest))
	if n := max(left.uses, right.uses); n < 2 || n > 16 {
		t.Errorf("60 deaths, moved %d times", n)
	}
	if worst := max(left.longest, right.longest); worst > time.Second {
		t.Errorf("nothing came for %v", worst)
	}
	w.Run(2 * settleMost)
	if left.via.use != "a" || right.via.use != "a" {
		t.Errorf("ten minutes of calm later they use %s and %s", left.via.use, right.via.use)
	}
}
