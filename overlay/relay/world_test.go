package relay

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

// world is one relay and some nodes in virtual time: the real door, table and
// Session, with packets that take time and get lost.
type world struct {
	t     testing.TB
	rng   *rand.Rand
	now   time.Time
	door  *door // nil: the relay is down
	table *table
	delay time.Duration // one way
	loss  float64
	nodes []*simNode
	queue []packet

	toRelay []packet // all that was ever sent to the relay, for replaying
	events  map[event]int
}

type packet struct {
	at   time.Time
	src  netip.AddrPort // the node's address, for both directions
	down bool           // from relay to node
	data []byte
}

type simNode struct {
	*Session
	label  Label
	addr   netip.AddrPort
	next   time.Time
	heard  int // datagrams of data
	attach int // ATTACHes sent
	pings  []time.Duration
	mute   bool // sends nothing
}

func newWorld(t testing.TB, seed uint64) *world {
	w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 1)), now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), delay: 10 * time.Millisecond, events: map[event]int{}}
	w.start()
	return w
}

// start starts the relay, with nothing remembered.
func (w *world) start() {
	w.table = newTable(100, 100)
	w.door = newDoor(testSecret, w.now, w.table)
}

func (w *world) node(l Label) *simNode {
	seed := [32]byte{byte(l), byte(len(w.nodes))}
	ticket, k := pass(testNetwork, l, uint64(l), w.now.Add(10000*time.Hour))
	n := &simNode{
		Session: NewSession(SessionOptions{Ticket: ticket, Key: k, Rand: rand.NewChaCha8(seed)}),
		label:   l,
		addr:    netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(l)}), 1000),
		next:    w.now,
	}
	w.nodes = append(w.nodes, n)
	return n
}

// up sends a packet to the relay.
func (w *world) up(src netip.AddrPort, b []byte) {
	p := packet{w.now.Add(w.delay), src, false, bytes.Clone(b)}
	w.toRelay = append(w.toRelay, p)
	if len(w.toRelay) > 5000 {
		w.toRelay = w.toRelay[1000:]
	}
	w.put(p)
}

func (w *world) put(p packet) {
	if w.rng.Float64() >= w.loss {
		w.queue = append(w.queue, p)
	}
}

// send sends data from a node.
func (w *world) send(n *simNode, dst Label) {
	n.Sent(w.now)
	w.up(n.addr, datagram(dst, 100, 0))
}

// run lets time pass.
func (w *world) run(d time.Duration) {
	w.t.Helper()
	end := w.now.Add(d)
	for steps := 0; ; steps++ {
		if steps > 1_000_000 {
			w.t.Fatal("the world spins")
		}
		at, which := end, -1
		for i, p := range w.queue {
			if p.at.Before(at) {
				at, which = p.at, i
			}
		}
		var ticking *simNode
		for _, n := range w.nodes {
			if !n.mute && n.next.Before(at) {
				at, ticking = n.next, n
			}
		}
		if at.After(w.now) {
			w.now = at
		}
		switch {
		case ticking != nil:
			w.tick(ticking)
		case which >= 0:
			p := w.queue[which]
			w.queue = append(w.queue[:which], w.queue[which+1:]...)
			if p.down {
				w.atNode(p)
			} else if w.door != nil {
				w.atRelay(p)
			}
		default:
			return
		}
	}
}

func (w *world) tick(n *simNode) {
	frame, next := n.Tick(w.now)
	n.next = next
	if frame == nil {
		if !next.After(w.now) {
			w.t.Fatalf("Tick sends nothing and wants to be called at once: %+v", n.Status())
		}
		return
	}
	w.sentBy(n, frame)
}

func (w *world) sentBy(n *simNode, frame []byte) {
	switch frame[1] {
	case frameAttach:
		n.attach++
	case framePing:
		n.pings = append(n.pings, w.now.Sub(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)))
	}
	w.up(n.addr, frame)
}

func (w *world) atNode(p packet) {
	for _, n := range w.nodes {
		if n.addr != p.src || n.mute {
			continue
		}
		if p.data[0] != kindControl {
			n.heard++
			n.Heard(w.now)
			return
		}
		if reply := n.Handle(w.now, p.data); reply != nil {
			w.sentBy(n, reply)
		}
		n.next = w.now
	}
}

func (w *world) atRelay(p packet) {
	from := w.table.at(p.src)
	n, d := cut(from, p.data, len(p.data))
	if n != len(p.data) {
		w.t.Fatal("a datagram was cut")
	}
	if d.leg != nil {
		w.put(packet{w.now.Add(w.delay), d.leg.addr, true, p.data})
		return
	}
	var reply []byte
	what := d.why
	if d.control {
		reply, what = w.door.control(nil, w.now, byUDP(p.src), p.data)
	} else if d.why == dropNoSession {
		reply, what = w.door.unknown(nil, w.now, byUDP(p.src))
	}
	w.events[what]++
	if len(reply) > len(p.data) {
		w.t.Fatalf("%d bytes answer %d", len(reply), len(p.data))
	}
	if len(reply) > 0 {
		w.put(packet{w.now.Add(w.delay), p.src, true, reply})
	}
}

func (w *world) wantUp(nodes ...*simNode) {
	w.t.Helper()
	for _, n := range nodes {
		if s := n.Status(); s.State != Up {
			w.t.Fatalf("node %d: %+v", n.label, s)
		}
	}
}

// wantFlow sends from a to b and wants it to arrive.
func (w *world) wantFlow(a, b *simNode) {
	w.t.Helper()
	before := b.heard
	w.send(a, b.label)
	w.run(3*w.delay + time.Millisecond)
	if b.heard != before+1 {
		w.t.Fatalf("nothing came from %d to %d", a.label, b.label)
	}
}
