package publish

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"overlayd/overlay/splice"
)

const (
	// clientIdle is after how long the kernel asks whether a silent client is
	// there; a phone that left is gone a few minutes later.
	clientIdle = time.Minute
	// dialWait bounds a connection's beginning: while it lasts, the client waits.
	dialWait = 10 * time.Second
)

// port is one exposure.
type port struct {
	s      *Server // set by newPort, then read-only, like e
	e      Exposure
	failed error // why it is not open; set by Server.settle
	cancel context.CancelCauseFunc

	gate  *gate          // set by open; of tcp
	web   *website       // of http
	pc    net.PacketConn // of udp
	flows flows          // of udp
}

func newPort(s *Server, e Exposure) *port {
	return &port{s: s, e: e, flows: newFlows()}
}

// errClosed ends the connections of a port that is closed.
var errClosed = errors.New("the port is published no more")

// taking is a port that was taken: of udp the one, else the other.
type taking struct {
	ln net.Listener
	pc net.PacketConn
}

func (t taking) close() {
	if t.ln != nil {
		t.ln.Close()
	}
	if t.pc != nil {
		t.pc.Close()
	}
}

// take takes the port.
func (p *port) take(ctx context.Context) (t taking, err error) {
	if own := p.s.o.Own; own.Port() == p.e.Listen.Port() && (own.Addr().IsUnspecified() || p.e.Listen.Addr().IsUnspecified() || own.Addr() == p.e.Listen.Addr()) {
		return t, fmt.Errorf("port %d is the relay's own", own.Port())
	}
	lc := net.ListenConfig{KeepAlive: clientIdle}
	if p.e.Protocol == UDP {
		t.pc, err = lc.ListenPacket(ctx, "udp", listenAddr(p.e.Listen))
	} else {
		t.ln, err = lc.Listen(ctx, "tcp", listenAddr(p.e.Listen))
	}
	if err != nil {
		return t, listenError(&p.e, p.s.o.Own, err)
	}
	return t, nil
}

// open takes the port and begins to serve it, until ctx ends or close is called.
func (p *port) open(ctx context.Context) error {
	if p.e.Protocol == HTTP {
		return p.openPage(ctx)
	}
	t, err := p.take(ctx)
	if err != nil {
		return err
	}
	serve := p.serveUDP
	if p.pc = t.pc; t.ln != nil {
		p.gate, serve = newGate(t.ln, p.s.o.Log, p.e.allows), p.serveTCP
	}
	ctx, p.cancel = context.WithCancelCause(ctx)
	p.s.running.Go(func() { serve(ctx) })
	return nil
}

// openPage serves the exposure at the door that its port has, or makes one.
func (p *port) openPage(ctx context.Context) error {
	web, err := p.website()
	if err != nil {
		return err
	}
	p.web = web
	if d := p.s.doors[p.e.Listen]; d != nil {
		return d.add(web)
	}
	t, err := p.take(ctx)
	if err != nil {
		return err
	}
	d := newDoor(p.s, p.e.Listen, p.e.tls(), t.ln)
	if err := d.add(web); err != nil {
		t.close()
		return err
	}
	p.s.doors[p.e.Listen] = d
	d.open(ctx)
	return nil
}

// close ends the port and its connections, and returns how many those were.
func (p *port) close() (ended int) {
	if p.failed == nil && p.web != nil {
		ended, last := p.web.d.remove(p.web)
		if last {
			delete(p.s.doors, p.e.Listen)
		}
		return ended
	}
	if p.cancel == nil {
		return 0
	}
	var conns []net.Conn
	if p.gate != nil {
		conns = p.gate.close()
	} else {
		p.pc.Close()
	}
	ended = len(conns) + p.flows.close() // before they leave by themselves
	p.cancel(errClosed)
	for _, c := range conns {
		reset(c)
	}
	return ended
}

func (p *port) count() int {
	switch {
	case p.web != nil:
		return p.web.d.count(p.web)
	case p.gate != nil:
		return p.gate.count()
	}
	return p.flows.count()
}

func (p *port) serveTCP(ctx context.Context) {
	for {
		c, err := p.gate.accept()
		if err != nil {
			return
		}
		p.s.running.Go(func() {
			defer p.gate.leave(c)
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
