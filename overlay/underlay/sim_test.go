package underlay

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"overlayd/overlay/key"
	"overlayd/overlay/netsim"
)

// sim is two nodes that talk to each other all the time, each behind a NAT, and
// a relay that never fails them.
type sim struct {
	t     testing.TB
	w     *netsim.World
	relay *netsim.Conn
	other *netsim.Conn
	calls bool // probes pass the relay
	two   bool // the nodes ask both relays where they are
	a, b  *simNode
	slow  time.Duration // of the relay, beyond the wires
}

const simPort = 4000

var (
	simRelay = netip.MustParseAddrPort("203.0.113.10:443")
	simOther = netip.MustParseAddrPort("203.0.113.20:443") // another relay, which only tells where it sees us
	simPub   = [2]netip.Addr{netip.MustParseAddr("198.51.100.2"), netip.MustParseAddr("192.0.2.2")}
	simLAN   = [2]netip.Addr{netip.MustParseAddr("10.0.77.2"), netip.MustParseAddr("192.168.1.200")}
)

// simNode is a node as the Bind makes one of a finder, without sockets.
type simNode struct {
	sim      *sim
	finder   *finder
	seal     *seal
	nat      *netsim.NAT
	conn     *netsim.Conn
	peer     *simNode
	observed netip.AddrPort
	noUDP    bool             // it says that its network lets no UDP out
	only     []netip.AddrPort // what it is reached at; nil: what it finds out
	mapped   netip.AddrPort

	forecast    forecast
	byRelayLoss float64 // of what goes by the relay, to this node

	every   time.Duration // between two datagrams; 0: silent
	sent    bool
	nextRun time.Time
	got     map[uint64]bool
	number  uint64
	lastAt  time.Time // a new datagram came
	longest time.Duration

	byRelay, byDirect int // datagrams that left
	long              int // what every second one would be long, if it fits; 0: all are short
	big               bool
	probes            int // that left directly
	directAt          time.Time
}

func newSim(t testing.TB, seed uint64, left, right netsim.Kind) *sim {
	t.Helper()
	return newSimWith(t, seed, left, right, func(*sim) {})
}

// newSimWith is newSim with something done before the nodes start.
func newSimWith(t testing.TB, seed uint64, left, right netsim.Kind, before func(*sim)) *sim {
	t.Helper()
	s := &sim{t: t, w: netsim.New(seed), slow: 20 * time.Millisecond, calls: true}
	s.relay = s.w.Host(simRelay.Addr()).Listen(simRelay.Port(), func(src netip.AddrPort, b []byte) {
		s.relay.Send(src, probe{kind: probePong, observed: src}.Append(nil))
	})
	s.other = s.w.Host(simOther.Addr()).Listen(simOther.Port(), func(src netip.AddrPort, b []byte) {
		s.other.Send(src, probe{kind: probePong, observed: src}.Append(nil))
	})
	keys := [2]key.Private{key.NewPrivate(), key.NewPrivate()}
	for i, kind := range []netsim.Kind{left, right} {
		n := &simNode{
			sim: s, every: 50 * time.Millisecond, got: map[uint64]bool{},
			nat: s.w.NAT(kind, simPub[i]), lastAt: s.w.Now(),
		}
		var err error
		if n.seal, err = newSeal(keys[i], keys[1-i].Public()); err != nil {
			t.Fatal(err)
		}
		n.finder = newFinder(rand.New(rand.NewPCG(seed, uint64(i))), &locality{})
		n.finder.descends = i == 0
		n.conn = n.nat.Host(simLAN[i]).Listen(simPort, n.receive)
		if i == 0 {
			s.a = n
		} else {
			s.b = n
		}
	}
	s.a.peer, s.b.peer = s.b, s.a
	before(s)
	for _, n := range []*simNode{s.a, s.b} {
		n.attach()
		n.talk()
	}
	return s
}

// attach asks the relay where it sees us, again and again.
func (n *simNode) attach() {
	n.forecast.Sent(n.sim.w.Now(), simRelay)
	n.conn.Send(simRelay, []byte{typeControl})
	if n.sim.two {
		n.forecast.Sent(n.sim.w.Now(), simOther)
		n.conn.Send(simOther, []byte{typeControl})
	}
	n.sim.w.After(5*time.Second, n.attach)
	n.locate()
}

func (n *simNode) locate() {
	here := &locality{candidates: []netip.AddrPort{n.conn.LocalAddr()}}
	if n.observed.IsValid() && n.observed != n.conn.LocalAddr() {
		here.candidates = append([]netip.AddrPort{n.observed}, here.candidates...)
	}
	if n.only != nil {
		here.candidates = n.only
	}
	if n.mapped.IsValid() {
		here.candidates, here.mapped = append(here.candidates, n.mapped), 1<<len(here.candidates)
	}
	n.finder.Move(n.sim.w.Now(), here)
}

// talk sends a datagram now and then.
func (n *simNode) talk() {
	if n.every > 0 {
		n.send()
	}
	n.sim.w.After(cmp.Or(n.every, 50*time.Millisecond), n.talk)
}

func (n *simNode) send() {
	n.number++
	b := []byte{typeData, 0, 0, 0, byte(n.number), byte(n.number >> 8), byte(n.number >> 16), byte(n.number >> 24)}
	c := n.finder.choice()
	if n.long > 0 && n.number%2 == 0 {
		b = append(b, make([]byte, n.fits(c)-len(b))...)
		n.big = true
	}
	if c.spot == nil || c.both {
		n.byRelay++
		n.finder.relay.tally.sent.Add(1)
		n.sim.w.After(n.sim.slow+2*n.sim.w.Latency, func() {
			if n.sim.w.Rand.Float64() >= n.peer.byRelayLoss {
				n.peer.finder.relay.tally.got.Add(1)
				n.peer.finder.Detour(n.sim.w.Now())
				n.peer.data(b)
			}
		})
	}
	if c.spot != nil {
		n.byDirect++
		c.spot.tally.sent.Add(1)
		n.conn.Send(c.spot.addr, b)
	}
	n.sent = true
	if n.nextRun.IsZero() {
		n.tick()
	}
}

func (n *simNode) data(b []byte) {
	number := uint64(b[4]) | uint64(b[5])<<8 | uint64(b[6])<<16 | uint64(b[7])<<24
	if n.got[number] {
		return
	}
	n.got[number] = true
	n.longest = max(n.longest, n.sim.w.Now().Sub(n.lastAt))
	n.lastAt = n.sim.w.Now()
}

func (n *simNode) receive(src netip.AddrPort, b []byte) {
	now := n.sim.w.Now()
	switch {
	case src == simRelay, src == simOther:
		m, err := parseProbe(b)
		if err != nil {
			n.sim.t.Fatal(err)
		}
		if src == simRelay {
			n.observed = m.observed
		}
		n.forecast.Seen(src, m.observed)
		n.locate()
	case b[0] == typeProbe:
		n.probe(src, b)
	case b[0] == typeData:
		if s := n.finder.find(src); s != nil && s.proved() {
			s.tally.got.Add(1)
			n.data(b)
		}
	}
	if c := n.finder.choice(); c.spot != nil && !c.both && n.directAt.IsZero() {
		n.directAt = now
	}
}

func (n *simNode) probe(src netip.AddrPort, b []byte) {
	m, err := n.seal.open(b)
	if err != nil {
		n.sim.t.Fatal(err)
	}
	out, ok := n.finder.Handle(n.sim.w.Now(), src, m)
	if ok && m.kind == probePong && src.IsValid() {
		n.forecast.Seen(src, m.observed)
	}
	n.post(out)
	n.tick()
}

func (n *simNode) post(out []send) {
	for _, s := range out {
		if s.m.kind == probeCallMe {
			s.m.next, s.m.step = n.forecast.Next()
			s.m.noUDP = n.noUDP
		}
		b := n.seal.close(7, s.m)
		if s.to.IsValid() {
			n.forecast.Sent(n.sim.w.Now(), s.to)
			n.probes++
			n.conn.Send(s.to, b)
		} else {
			n.sim.w.After(n.sim.slow+2*n.sim.w.Latency, func() {
				if n.sim.calls && (s.m.kind == probeCallMe || n.sim.w.Rand.Float64() >= n.peer.byRelayLoss) {
					n.peer.probe(netip.AddrPort{}, b)
				}
			})
		}
	}
}

func (n *simNode) tick() {
	now := n.sim.w.Now()
	out, next := n.finder.Tick(now, n.sent)
	more, at := n.finder.Measure(now, n.big)
	out, next = append(out, more...), sooner(next, at)
	n.sent, n.big = false, false
	n.nextRun = next
	n.post(out)
	if !next.IsZero() {
		n.sim.w.After(next.Sub(now), func() {
			if n.nextRun == next {
				n.tick()
			}
		})
	}
}

func (n *simNode) direct() bool {
	c := n.finder.choice()
	return c.spot != nil && !c.both
}

// delivered is the share of the peer's datagrams that arrived.
func (n *simNode) delivered() float64 { return float64(len(n.got)) / float64(n.peer.number) }
