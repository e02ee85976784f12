package netsim

import (
	"container/heap"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// World is the internet and its clock.
type World struct {
	Latency time.Duration // one way, between any two places; New sets 10 ms

	// Loss returns the share of datagrams that get lost between two public
	// addresses: 0 is none, 1 a cut. Nil: none.
	Loss func(from, to netip.Addr) float64

	// MTU returns the longest IP packet that passes between two public addresses;
	// what is longer is lost without a word. Nil, or 0: any.
	MTU func(from, to netip.Addr) int

	// Drop loses datagrams by what is in them, on their way between two public
	// addresses. Nil: none.
	Drop func(b []byte) bool

	Rand *rand.Rand

	now    time.Time
	serial int
	queue  queue
	places map[netip.Addr]place // by public address
	sent   map[netip.AddrPort]int
}

// place takes what arrives at a public address.
type place interface {
	arrive(src, dst netip.AddrPort, b []byte)
}

// New returns an empty world.
func New(seed uint64) *World {
	return &World{
		Latency: 10 * time.Millisecond,
		Rand:    rand.New(rand.NewPCG(seed, seed)),
		now:     time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		places:  map[netip.Addr]place{},
		sent:    map[netip.AddrPort]int{},
	}
}

// Now is the world's time.
func (w *World) Now() time.Time { return w.now }

// After calls f when d has passed.
func (w *World) After(d time.Duration, f func()) {
	w.serial++
	heap.Push(&w.queue, event{w.now.Add(d), w.serial, f})
}

// Run lets d pass.
func (w *World) Run(d time.Duration) {
	end := w.now.Add(d)
	for len(w.queue) > 0 && !w.queue[0].at.After(end) {
		e := heap.Pop(&w.queue).(event)
		w.now = e.at
		e.do()
	}
	w.now = end
}

// Pending is how many events are planned.
func (w *World) Pending() int { return len(w.queue) }

// Sent is how many datagrams were sent to a public address so far.
func (w *World) Sent(to netip.AddrPort) int { return w.sent[to] }

// headers are those of IPv4 and UDP.
const headers = 20 + 8

// carry takes a datagram between two public addresses.
func (w *World) carry(src, dst netip.AddrPort, b []byte) {
	w.sent[dst]++
	if w.MTU != nil {
		if most := w.MTU(src.Addr(), dst.Addr()); most > 0 && len(b)+headers > most {
			return
		}
	}
	if w.Loss != nil && w.Rand.Float64() < w.Loss(src.Addr(), dst.Addr()) {
		return
	}
	if w.Drop != nil && w.Drop(b) {
		return
	}
	b = slices.Clone(b)
	w.After(w.Latency, func() {
		if p := w.places[dst.Addr()]; p != nil {
			p.arrive(src, dst, b)
		}
	})
}

// Host returns a host with a public address of its own.
func (w *World) Host(addr netip.Addr) *Host {
	h := &Host{world: w, addr: addr, conns: map[uint16]*Conn{}}
	w.places[addr] = h
	return h
}

// Host is a machine with one address.
type Host struct {
	world *World
	nat   *NAT // nil: none
	addr  netip.Addr
	conns map[uint16]*Conn
}

// Conn is a UDP socket.
type Conn struct {
	host    *Host
	port    uint16
	receive func(src netip.AddrPort, b []byte)
}

// Listen opens a port. receive is called for each datagram, whose bytes are its
// own.
func (h *Host) Listen(port uint16, receive func(src netip.AddrPort, b []byte)) *Conn {
	c := &Conn{host: h, port: port, receive: receive}
	h.conns[port] = c
	return c
}

// LocalAddr is the address as the host knows it.
func (c *Conn) LocalAddr() netip.AddrPort { return netip.AddrPortFrom(c.host.addr, c.port) }

// Close gives the port back. What arrives there is lost.
func (c *Conn) Close() { delete(c.host.conns, c.port) }

// Send sends one datagram.
func (c *Conn) Send(dst netip.AddrPort, b []byte) {
	if n := c.host.nat; n != nil {
		n.leave(c.LocalAddr(), dst, b)
		return
	}
	c.host.world.carry(c.LocalAddr(), dst, b)
}

func (h *Host) arrive(src, dst netip.AddrPort, b []byte) {
	if c := h.conns[dst.Port()]; c != nil {
		c.receive(src, b)
	}
}

// event is something that happens at a time; those of the same time happen in
// the order in which they were planned.
type event struct {
	at     time.Time
	serial int
	do     func()
}

type queue []event

func (q queue) Len() int      { return len(q) }
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q queue) Less(i, j int) bool {
	if !q[i].at.Equal(q[j].at) {
		return q[i].at.Before(q[j].at)
	}
	return q[i].serial < q[j].serial
}
func (q *queue) Push(x any) { *q = append(*q, x.(event)) }
func (q *queue) Pop() any {
	last := len(*q) - 1
	e := (*q)[last]
	(*q)[last] = event{}
	*q = (*q)[:last]
	return e
}
