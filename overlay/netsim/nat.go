package netsim

import (
	"net/netip"
	"slices"
	"time"
)

// Kind is how a NAT maps ports, and what it lets in (RFC 4787, with the older
// names of RFC 3489).
type Kind string

// The kinds. The cones keep one outer port per inner socket; the symmetric ones
// take another for each destination.
const (
	None            Kind = "none"             // no translation, no filter
	FullCone        Kind = "full cone"        // lets everybody in
	Restricted      Kind = "restricted"       // lets in whose address was sent to
	PortRestricted  Kind = "port restricted"  // lets in whose address and port were sent to
	Symmetric       Kind = "symmetric"        // the next free port, by Step; filters like PortRestricted
	SymmetricRandom Kind = "symmetric random" // a random port; filters like PortRestricted
	Blocked         Kind = "UDP blocked"      // no UDP at all
)

// Kinds are all of them.
var Kinds = []Kind{None, FullCone, Restricted, PortRestricted, Symmetric, SymmetricRandom, Blocked}

// mappingLife is how long a mapping lives without traffic: the least that homes
// were seen to have.
const mappingLife = 30 * time.Second

// NAT is a router with one public address. With Kind None its hosts share the
// address, so that each needs a port of its own.
type NAT struct {
	Kind Kind
	Step int // from one port to the next, where they are counted; NAT sets 1

	world    *World
	public   netip.Addr
	inside   map[netip.Addr]*Host
	mappings []*mapping
	forwards map[uint16]netip.AddrPort
	next     uint16
}

// mapping is an outer port.
type mapping struct {
	inner  netip.AddrPort
	port   uint16
	dst    netip.AddrPort // whom it is for; the zero value is everybody
	sentTo []netip.AddrPort
	used   time.Time
}

// NAT returns a router.
func (w *World) NAT(kind Kind, public netip.Addr) *NAT {
	n := &NAT{Kind: kind, Step: 1, world: w, public: public, inside: map[netip.Addr]*Host{}, next: 20000}
	w.places[public] = n
	return n
}

// Host returns a host behind the router. With Kind None it has the router's
// address.
func (n *NAT) Host(addr netip.Addr) *Host {
	if n.Kind == None {
		addr = n.public
	}
	h := &Host{world: n.world, nat: n, addr: addr, conns: map[uint16]*Conn{}}
	n.inside[addr] = h
	return h
}

// Skip takes so many ports out of the count, as others behind the NAT do.
func (n *NAT) Skip(ports int) { n.next += uint16(ports * n.Step) }

// Forward lets everybody in at a port, for one inner socket.
func (n *NAT) Forward(port uint16, inner netip.AddrPort) netip.AddrPort {
	if n.forwards == nil {
		n.forwards = map[uint16]netip.AddrPort{}
	}
	n.forwards[port] = inner
	return netip.AddrPortFrom(n.public, port)
}

// Forget drops all mappings, as a restart does; the ports are given out anew.
func (n *NAT) Forget() {
	n.mappings = nil
	n.next += 100
}

func (n *NAT) leave(src, dst netip.AddrPort, b []byte) {
	w := n.world
	if h := n.inside[dst.Addr()]; h != nil && n.Kind != None {
		b = slices.Clone(b)
		w.After(w.Latency/10, func() { h.arrive(src, dst, b) })
		return
	}
	switch {
	case n.Kind == Blocked || dst.Addr().IsPrivate(): // the internet has no route to private addresses
		return
	case n.Kind == None:
		w.carry(src, dst, b)
		return
	}
	m := n.mappingFor(src, dst)
	m.used = w.now
	if m.dst == dst && len(m.sentTo) == 1 {
		dst = m.sentTo[0] // perhaps another one, see forwarded
	}
	if !slices.Contains(m.sentTo, dst) {
		m.sentTo = append(m.sentTo, dst)
	}
	w.carry(netip.AddrPortFrom(n.public, m.port), dst, b)
}

func (n *NAT) mappingFor(src, dst netip.AddrPort) *mapping {
	n.mappings = slices.DeleteFunc(n.mappings, func(m *mapping) bool { return n.world.now.Sub(m.used) > mappingLife })
	for _, m := range n.mappings {
		if m.inner == src && m.dst == dst { // also what came by a forwarded port is answered from there
			return m
		}
	}
	symmetric := n.Kind == Symmetric || n.Kind == SymmetricRandom
	if !symmetric {
		dst = netip.AddrPort{}
	}
	for _, m := range n.mappings {
		if m.inner == src && m.dst == dst {
			return m
		}
	}
	m := &mapping{inner: src, dst: dst, port: n.freePort()}
	n.mappings = append(n.mappings, m)
	return m
}

func (n *NAT) freePort() uint16 {
	for {
		n.next += uint16(n.Step)
		port := n.next
		if n.Kind == SymmetricRandom {
			port = uint16(1024 + n.world.Rand.IntN(1<<16-1024))
		}
		if !slices.ContainsFunc(n.mappings, func(m *mapping) bool { return m.port == port }) {
			return port
		}
	}
}

func (n *NAT) arrive(src, dst netip.AddrPort, b []byte) {
	switch n.Kind {
	case Blocked:
		return
	case None:
		n.inside[n.public].arrive(src, dst, b)
		return
	}
	for _, m := range n.mappings {
		if m.port != dst.Port() || n.world.now.Sub(m.used) > mappingLife || !n.admits(m, src) {
			continue
		}
		m.used = n.world.now
		if m.dst.IsValid() {
			src = m.dst // perhaps another one, see forwarded
		}
		if h := n.inside[m.inner.Addr()]; h != nil {
			h.arrive(src, m.inner, b)
		}
		return
	}
	if inner, ok := n.forwards[dst.Port()]; ok {
		m := n.forwarded(inner, src, dst.Port())
		m.used = n.world.now
		n.inside[inner.Addr()].arrive(m.dst, inner, b)
	}
}

// forwarded returns the mapping of what somebody sends to a forwarded port. Where
// the inner socket has sent to him before, from another port, he is shown to it
// with another port himself, as Linux does, so that its answers can be told apart.
func (n *NAT) forwarded(inner, src netip.AddrPort, port uint16) *mapping {
	known := false
	for _, m := range n.mappings {
		if m.inner == inner && m.port == port && len(m.sentTo) == 1 && m.sentTo[0] == src {
			return m
		}
		known = known || m.inner == inner && slices.Contains(m.sentTo, src)
	}
	m := &mapping{inner: inner, port: port, dst: src, sentTo: []netip.AddrPort{src}}
	if known {
		m.dst = netip.AddrPortFrom(src.Addr(), n.freePort())
	}
	n.mappings = append(n.mappings, m)
	return m
}

// admits reports whether a mapping's filter lets a sender in.
func (n *NAT) admits(m *mapping, src netip.AddrPort) bool {
	return slices.ContainsFunc(m.sentTo, func(to netip.AddrPort) bool {
		switch {
		case m.dst.IsValid(): // it is for one only
			return to == src
		case n.Kind == FullCone:
			return true
		case n.Kind == Restricted:
			return to.Addr() == src.Addr()
		}
		return to == src
	})
}
