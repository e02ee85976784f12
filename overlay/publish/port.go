package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"overlayd/internal/limit"
	"overlayd/overlay/splice"
)

const (
	// maxConns of one port: some 100 KB each; maxConnsOf of one source, so that
	// nobody alone keeps the others out.
	maxConns   = 2048
	maxConnsOf = maxConns / 2
	// clientIdle is after how long the kernel asks whether a silent client is
	// there; a phone that left is gone a few minutes later.
	clientIdle = time.Minute
	// dialWait bounds a connection's beginning: while it lasts, the client waits.
	dialWait = 10 * time.Second
	// acceptPause is how long a listener rests when the machine has no file
	// descriptors left.
	acceptPause = 100 * time.Millisecond
)

// port is one exposure.
type port struct {
	s      *Server // set by newPort, then read-only, like e
	e      Exposure
	failed error // why it is not open; set by Server.settle
	cancel context.CancelCauseFunc

	ln net.Listener   // set by listen; of tcp and http
	pc net.PacketConn // of udp

	mu    sync.Mutex // guards what follows
	conns map[net.Conn]bool
	of    map[netip.Prefix]int     // how many of them each source has
	flows map[netip.AddrPort]*flow // of udp
	over  bool
}

func newPort(s *Server, e Exposure) *port {
	return &port{s: s, e: e, conns: map[net.Conn]bool{}, of: map[netip.Prefix]int{}, flows: map[netip.AddrPort]*flow{}}
}

// errClosed ends the connections of a port that is closed.
var errClosed = errors.New("the port is published no more")

// listen takes the port.
func (p *port) listen(ctx context.Context) (err error) {
	if own := p.s.o.Own; own.Port() == p.e.Listen.Port() && (own.Addr().IsUnspecified() || p.e.Listen.Addr().IsUnspecified() || own.Addr() == p.e.Listen.Addr()) {
		return fmt.Errorf("port %d is the relay's own", own.Port())
	}
	lc := net.ListenConfig{KeepAlive: clientIdle}
	if p.e.Protocol == UDP {
		p.pc, err = lc.ListenPacket(ctx, "udp", listenAddr(p.e.Listen))
	} else {
		p.ln, err = lc.Listen(ctx, "tcp", listenAddr(p.e.Listen))
	}
	if err != nil {
		return listenError(&p.e, p.s.o.Own, err)
	}
	return nil
}

func (p *port) unlisten() {
	if p.ln != nil {
		p.ln.Close()
	}
	if p.pc != nil {
		p.pc.Close()
	}
}

// open takes the port and begins to serve it, until ctx ends or close is called.
func (p *port) open(ctx context.Context) error {
	var serve func(context.Context)
	switch p.e.Protocol {
	case TCP:
		serve = p.serveTCP
	case UDP:
		serve = p.serveUDP
	default:
		web, err := p.website()
		if err != nil {
			return err
		}
		serve = func(ctx context.Context) { p.serveHTTP(ctx, web) }
	}
	if err := p.listen(ctx); err != nil {
		return err
	}
	ctx, p.cancel = context.WithCancelCause(ctx)
	p.s.running.Go(func() { serve(ctx) })
	return nil
}

// close ends the port and its connections, and returns how many those were.
func (p *port) close() (ended int) {
	if p.cancel == nil {
		return 0
	}
	p.unlisten()
	p.mu.Lock() // to count before they leave by themselves
	p.over = true
	ended = len(p.conns) + len(p.flows)
	conns := slices.Collect(maps.Keys(p.conns))
	p.mu.Unlock()
	p.cancel(errClosed)
	for _, c := range conns {
		reset(c)
	}
	return ended
}

// reset ends a connection so that its client sees that it was not its end.
func reset(c net.Conn) {
	if l, ok := c.(interface{ SetLinger(int) error }); ok {
		l.SetLinger(0) // fails on a connection that is over
	}
	c.Close()
}

func (p *port) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns) + len(p.flows)
}

// enter counts a connection, unless it is one too many or the port is closed.
func (p *port) enter(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	src := sourceOf(c)
	if p.over || len(p.conns) >= maxConns || p.of[src] >= maxConnsOf {
		return false
	}
	p.conns[c] = true
	p.of[src]++
	return true
}

func (p *port) leave(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.conns[c] {
		return
	}
	delete(p.conns, c)
	src := sourceOf(c)
	if p.of[src]--; p.of[src] == 0 {
		delete(p.of, src)
	}
}

// sourceOf is whose a connection is, as far as an address tells.
func sourceOf(c net.Conn) netip.Prefix { return limit.Source(addrOf(c.RemoteAddr()).Addr()) }

// addrOf is an address of package net as one of package netip.
func addrOf(a net.Addr) netip.AddrPort {
	at, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}

// accept returns the next connection of somebody who may connect, counted; it
// fails when the listener is closed.
func (p *port) accept() (net.Conn, error) {
	for {
		c, err := p.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil, err
		}
		if err != nil {
			p.s.o.Log.Warn("connections to a published port wait", "exposure", p.e.ID, "err", err)
			time.Sleep(acceptPause)
			continue
		}
		if p.e.allows(addrOf(c.RemoteAddr()).Addr()) && p.enter(c) {
			return c, nil
		}
		reset(c)
	}
}

func (p *port) serveTCP(ctx context.Context) {
	for {
		c, err := p.accept()
		if err != nil {
			return
		}
		p.s.running.Go(func() {
			defer p.leave(c)
			p.carry(ctx, c)
		})
	}
}

// carry is the life of one TCP connection.
func (p *port) carry(ctx context.Context, c net.Conn) {
	client := addrOf(c.RemoteAddr())
	far, err := p.dial(ctx, Guest{User: p.e.User, Client: client, Exposure: p.e.ID, Own: true}, "tcp")
	if err != nil {
		p.s.o.Log.Debug("a published connection is refused", "exposure", p.e.ID, "addr", client, "err", err)
		reset(c)
		return
	}
	if p.e.Proxy {
		head := AppendProxyHeader(nil, client, addrOf(c.LocalAddr()))
		if _, err := far.Write(head); err != nil {
			far.Close()
			reset(c)
			return
		}
	}
	splice.Join(ctx, c, far)
}

func (p *port) dial(ctx context.Context, g Guest, network string) (net.Conn, error) {
	ctx, stop := context.WithTimeout(ctx, dialWait)
	defer stop()
	return p.s.o.Dial(ctx, g, network, p.e.Target)
}

const (
	// maxFlows of one UDP port; each has a socket and a goroutine.
	maxFlows = 1024
	// flowIdle is how long a flow without a datagram stays: two minutes at least,
	// says RFC 4787 section 4.3.
	flowIdle = 2 * time.Minute
	// maxDatagram is the longest that there is.
	maxDatagram = 65535
	// maxEarly datagrams wait for the connection.
	maxEarly = 8
)

// flow is what one client says to a UDP port.
type flow struct {
	mu    sync.Mutex // guards what follows
	far   net.Conn   // nil: not connected yet
	early [][]byte   // that wait for it
	last  time.Time  // when the client sent something
	over  bool
}

// take carries a datagram of the client to the target; b is borrowed.
func (f *flow) take(b []byte, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = now
	switch {
	case f.over:
	case f.far != nil:
		f.far.Write(b) // what is lost is lost, as datagrams are
	case len(f.early) < maxEarly:
		f.early = append(f.early, append([]byte(nil), b...))
	}
}

// connected hands over what waited.
func (f *flow) connected(far net.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.far = far
	for _, b := range f.early {
		far.Write(b)
	}
	f.early = nil
}

func (f *flow) idle(now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return now.Sub(f.last) >= flowIdle
}

func (p *port) serveUDP(ctx context.Context) {
	buf := make([]byte, maxDatagram)
	u := p.pc.(*net.UDPConn)
	for {
		n, from, err := u.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP message about an answer
		}
		client := netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		if !p.e.allows(client.Addr()) {
			continue
		}
		f, made := p.flow(client)
		if f == nil {
			continue
		}
		f.take(buf[:n], p.s.o.Now())
		if made {
			p.s.running.Go(func() { p.answer(ctx, f, client, from) })
		}
	}
}

// flow returns a client's flow, which is a new one if need be.
func (p *port) flow(client netip.AddrPort) (f *flow, made bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := p.flows[client]; f != nil || p.over || len(p.flows) >= maxFlows {
		return f, false
	}
	f = &flow{}
	p.flows[client] = f
	return f, true
}

// answer is the life of a flow: it carries what the target says to the client.
func (p *port) answer(ctx context.Context, f *flow, client, to netip.AddrPort) {
	defer func() {
		f.mu.Lock()
		f.over = true
		f.mu.Unlock()
		p.mu.Lock()
		delete(p.flows, client)
		p.mu.Unlock()
	}()
	far, err := p.dial(ctx, Guest{User: p.e.User, Client: client, Exposure: p.e.ID, Own: true}, "udp")
	if err != nil {
		p.s.o.Log.Debug("published datagrams are refused", "exposure", p.e.ID, "addr", client, "err", err)
		return
	}
	defer far.Close()
	stop := context.AfterFunc(ctx, func() { far.Close() })
	defer stop()
	f.connected(far)
	buf := make([]byte, maxDatagram)
	u := p.pc.(*net.UDPConn)
	heard := p.s.o.Now()
	for {
		far.SetReadDeadline(time.Now().Add(flowIdle))
		n, err := far.Read(buf)
		var late net.Error
		switch {
		case err == nil:
			heard = p.s.o.Now()
			u.WriteToUDPAddrPort(buf[:n], to)
		case errors.As(err, &late) && late.Timeout():
			if f.idle(p.s.o.Now()) && p.s.o.Now().Sub(heard) >= flowIdle {
				return
			}
		case errors.Is(err, net.ErrClosed), errors.Is(err, io.EOF):
			return
		}
	}
}
