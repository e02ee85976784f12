package proxy

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"overlayd/overlay/splice"
)

const (
	// mostAssociations bounds the UDP associations at once.
	mostAssociations = 256
	// mostDestinations bounds the hosts and ports that one talks to.
	mostDestinations = 64
	// allDestinations bounds those of all associations: each has a buffer of 64 KiB.
	allDestinations = 512
	// waitingBytes bounds what all datagrams take that wait for a socket.
	waitingBytes = 4 << 20
	// refusedFor is how long a destination that was refused is not tried again.
	refusedFor = 2 * time.Second
)

// udpHead reads what SOCKS puts before a datagram (RFC 1928 section 7), and
// returns the datagram, which is part of b. Fragments are not put together; the
// RFC lets them be dropped.
func udpHead(b []byte) (to endpoint, data []byte, ok bool) {
	if len(b) < 4 || b[0] != 0 || b[1] != 0 || b[2] != 0 {
		return endpoint{}, nil, false
	}
	r := bytes.NewReader(b[3:])
	to, err := readEndpoint(r)
	if err != nil || to.port == 0 {
		return endpoint{}, nil, false
	}
	return to, b[len(b)-r.Len():], true
}

// appendUDPHead appends it for an answer.
func appendUDPHead(b []byte, from endpoint) []byte { return from.append(append(b, 0, 0, 0)) }

// association is what one client sends and gets as datagrams. It lives as long
// as the TCP connection that asked for it.
type association struct {
	server *Server
	socket *net.UDPConn
	from   netip.Addr // only from there datagrams are taken: who asked for it

	client atomic.Pointer[netip.AddrPort] // where its datagrams come from; nil: none has come

	running sync.WaitGroup
	mu      sync.Mutex // guards to
	to      map[string]*destination
}

// destination is a host and port that an association talks to.
type destination struct {
	at   endpoint
	flow *splice.Flow
	stop context.CancelFunc
}

// associate serves UDP ASSOCIATE until the client's TCP connection ends.
func (s *Server) associate(ctx context.Context, c *client, hint endpoint) {
	if !take(s.assocs) {
		s.counters.full.Add(1)
		reply(c, replyFailed, endpoint{})
		return
	}
	defer func() { <-s.assocs }()
	local, peer := endpointOf(c.Conn.LocalAddr()), endpointOf(c.Conn.RemoteAddr())
	socket, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(local.addr, 0)))
	if err != nil {
		s.o.Log.Debug("no udp socket for a client", "err", err)
		reply(c, replyFailed, endpoint{})
		return
	}
	s.counters.assocs.Add(1)
	a := &association{server: s, socket: socket, from: peer.addr, to: map[string]*destination{}}
	if hint.addr == peer.addr && hint.port != 0 && s.o.Admit == nil { // it says where it is going to send from
		at := netip.AddrPortFrom(hint.addr, hint.port)
		a.client.Store(&at)
	}
	ctx, cancel := context.WithCancel(ctx)
	a.running.Go(func() { a.read(ctx) })
	defer a.running.Wait()
	defer socket.Close()
	defer cancel()
	if reply(c, replyDone, endpointOf(socket.LocalAddr())) != nil {
		return
	}
	c.SetDeadline(time.Time{})
	c.asked()
	io.Copy(io.Discard, c) // until it ends; nothing is said there any more
}

// read takes the client's datagrams until the socket is closed.
func (a *association) read(ctx context.Context) {
	defer a.endAll()
	buf := make([]byte, splice.LongestDatagram)
	for {
		n, from, err := a.socket.ReadFromUDPAddrPort(buf)
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			continue // an error about one datagram, as when the client's port was closed
		}
		if !a.takes(netip.AddrPortFrom(from.Addr().Unmap(), from.Port())) {
			a.server.counters.udpForeign.Add(1)
			continue
		}
		to, data, ok := udpHead(buf[:n])
		if !ok {
			a.server.counters.udpBad.Add(1)
			continue
		}
		a.send(ctx, to, data)
	}
}

// takes reports whether a datagram is the client's: from its address, and from
// the port that the first came from.
func (a *association) takes(from netip.AddrPort) bool {
	if from.Addr() != a.from {
		return false
	}
	if at := a.client.Load(); at != nil {
		return *at == from
	}
	if !a.server.admits("udp", from, addrPort(a.socket.LocalAddr())) {
		return false
	}
	a.client.Store(&from)
	return true
}

// send hands a datagram to its destination.
func (a *association) send(ctx context.Context, to endpoint, data []byte) {
	a.mu.Lock() // so that none is handed to a destination that is over
	defer a.mu.Unlock()
	d := a.destination(ctx, to)
	if d == nil || a.server.waiting.Load()+int64(len(data)) > waitingBytes {
		a.server.counters.udpFull.Add(1)
		return
	}
	a.server.waiting.Add(int64(len(data)))
	if !d.flow.Put(bytes.Clone(data)) {
		a.next(data)
		a.server.counters.udpFull.Add(1)
	}
}

// next takes note that a datagram waits no more.
func (a *association) next(data []byte) { a.server.waiting.Add(-int64(len(data))) }

// destination returns the one for an endpoint, and makes it if need be; the
// oldest goes when there are too many. Nil: all associations have too many. mu is
// held.
func (a *association) destination(ctx context.Context, to endpoint) *destination {
	name := to.String()
	if d := a.to[name]; d != nil {
		return d
	}
	if len(a.to) >= mostDestinations {
		a.dropOldest()
	}
	if !take(a.server.destinations) {
		return nil
	}
	ctx, stop := context.WithCancel(ctx)
	d := &destination{at: to, flow: splice.NewFlow(), stop: stop}
	a.to[name] = d
	a.running.Go(func() {
		a.carry(ctx, d)
		a.forget(name, d)
		for len(d.flow.Waiting) > 0 {
			a.next(<-d.flow.Waiting)
		}
		<-a.server.destinations
	})
	return d
}

func (a *association) dropOldest() {
	var oldest string
	for name, d := range a.to {
		if oldest == "" || d.flow.Before(a.to[oldest].flow) {
			oldest = name
		}
	}
	a.to[oldest].stop()
	delete(a.to, oldest)
}

func (a *association) forget(name string, d *destination) {
	d.stop()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.to[name] == d {
		delete(a.to, name)
	}
}

func (a *association) endAll() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, d := range a.to {
		d.stop()
	}
}

// carry sends the datagrams for one destination, and brings the answers, until
// nothing has passed for long. Where it is refused, what comes within a while is
// dropped.
func (a *association) carry(ctx context.Context, d *destination) {
	remote, err := a.server.o.Dial(ctx, "udp", d.at.String())
	if err != nil {
		if reason, _ := a.server.o.Explain(err); reason == Forbidden {
			a.server.counters.denied.Add(1)
		}
		a.refuse(ctx, d)
		return
	}
	head := appendUDPHead(nil, endpointOf(remote.RemoteAddr()))
	refused := d.flow.Carry(ctx, remote, head, a.next, func(b []byte) {
		to := a.client.Load()
		if to == nil || len(b) > splice.LongestDatagram {
			a.server.counters.udpFull.Add(1)
			return
		}
		a.socket.WriteToUDPAddrPort(b, *to) // lost when the client is gone
	})
	if refused {
		a.refuse(ctx, d)
	}
}

// refuse drops and counts the datagrams for a destination for a while.
func (a *association) refuse(ctx context.Context, d *destination) {
	over := time.NewTimer(refusedFor)
	defer over.Stop()
	a.server.counters.udpRefused.Add(1)
	for {
		select {
		case <-ctx.Done():
			return
		case <-over.C:
			return
		case data := <-d.flow.Waiting:
			a.next(data)
			a.server.counters.udpRefused.Add(1)
		}
	}
}
