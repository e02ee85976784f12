package publish

import (
	"context"
	"errors"
	"fmt"
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
	of    map[netip.Prefix]int // how many of them each source has
	over  bool

	flows flows // of udp
}

func newPort(s *Server, e Exposure) *port {
	return &port{s: s, e: e, conns: map[net.Conn]bool{}, of: map[netip.Prefix]int{}, flows: newFlows()}
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
	ended = len(p.conns) + p.flows.close()
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
	return len(p.conns) + p.flows.count()
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
