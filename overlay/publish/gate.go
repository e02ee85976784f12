package publish

import (
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"overlayd/internal/limit"
)

const (
	// maxConns of one port: some 100 KB each; maxConnsOf of one source, so that
	// nobody alone keeps the others out.
	maxConns   = 2048
	maxConnsOf = maxConns / 2
	// acceptPause is how long a listener rests when the machine has no file
	// descriptors left.
	acceptPause = 100 * time.Millisecond
)

// gate is a TCP port that strangers come to: it lets in who may connect, so many of
// them, and knows who is inside.
type gate struct {
	ln     net.Listener // these are set by newGate, then read-only
	log    *slog.Logger
	allows func(netip.Addr) bool

	mu    sync.Mutex // guards the rest
	conns map[net.Conn]bool
	of    map[netip.Prefix]int // how many of them each source has
	over  bool
}

func newGate(ln net.Listener, log *slog.Logger, allows func(netip.Addr) bool) *gate {
	return &gate{ln: ln, log: log, allows: allows, conns: map[net.Conn]bool{}, of: map[netip.Prefix]int{}}
}

// accept returns the next connection of somebody who may connect, counted; it
// fails when the listener is closed.
func (g *gate) accept() (net.Conn, error) {
	for {
		c, err := g.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil, err
		}
		if err != nil {
			g.log.Warn("connections to a published port wait", "addr", g.ln.Addr(), "err", err)
			time.Sleep(acceptPause)
			continue
		}
		if g.allows(addrOf(c.RemoteAddr()).Addr()) && g.enter(c) {
			return c, nil
		}
		reset(c)
	}
}

// enter counts a connection, unless it is one too many or the port is closed.
func (g *gate) enter(c net.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	src := sourceOf(c)
	if g.over || len(g.conns) >= maxConns || g.of[src] >= maxConnsOf {
		return false
	}
	g.conns[c] = true
	g.of[src]++
	return true
}

func (g *gate) leave(c net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.conns[c] {
		return
	}
	delete(g.conns, c)
	src := sourceOf(c)
	if g.of[src]--; g.of[src] == 0 {
		delete(g.of, src)
	}
}

func (g *gate) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.conns)
}

// close lets nobody in any more, and returns who is inside, for the caller to reset:
// counted before they leave by themselves.
func (g *gate) close() []net.Conn {
	g.ln.Close()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.over = true
	return slices.Collect(maps.Keys(g.conns))
}

// reset ends a connection so that its client sees that it was not its end.
func reset(c net.Conn) {
	if l, ok := c.(interface{ SetLinger(int) error }); ok {
		l.SetLinger(0) // fails on a connection that is over
	}
	c.Close()
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
