package overlay

import (
	"net"
	"net/netip"
	"sync"

	"overlayd/internal/limit"
)

const (
	// maxConns bounds the connections to the TLS port: a node keeps one, and a
	// network has at most as many nodes as sessions with the relay, 16,384.
	maxConns = 20_000
	// maxConnsOf is those of one source, which may be an office of a thousand.
	// Strangers need many addresses to keep everybody else out, or to fill the
	// memory.
	maxConnsOf = 1024
)

// turnstile is a listener that closes at once what is above its limits.
type turnstile struct {
	net.Listener
	most, mostOf int // in all, and of one source; set by newTurnstile, then read-only

	mu      sync.Mutex // guards all below
	inside  int
	sources map[netip.Prefix]int // of them; no entry is 0
}

func newTurnstile(ln net.Listener, most, mostOf int) *turnstile {
	return &turnstile{Listener: ln, most: most, mostOf: mostOf, sources: map[netip.Prefix]int{}}
}

// Accept implements net.Listener.
func (t *turnstile) Accept() (net.Conn, error) {
	for {
		c, err := t.Listener.Accept()
		if err != nil {
			return nil, err
		}
		src := sourceOf(c)
		if t.enter(src) {
			return &passed{Conn: c, leave: sync.OnceFunc(func() { t.leave(src) })}, nil
		}
		c.Close()
	}
}

// sourceOf is who connects, as far as that is not for him to choose.
func sourceOf(c net.Conn) netip.Prefix {
	at, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil { // no TCP
		return netip.Prefix{}
	}
	return limit.Source(at.Addr())
}

func (t *turnstile) enter(src netip.Prefix) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.inside >= t.most || t.sources[src] >= t.mostOf {
		return false
	}
	t.inside++
	t.sources[src]++
	return true
}

func (t *turnstile) leave(src netip.Prefix) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.inside--
	if t.sources[src]--; t.sources[src] == 0 {
		delete(t.sources, src)
	}
}

// passed is a connection that was let in.
type passed struct {
	net.Conn
	leave func()
}

// NetConn returns the connection below: package relay sets it up for datagrams.
func (p *passed) NetConn() net.Conn { return p.Conn }

// Close implements net.Conn.
func (p *passed) Close() error {
	defer p.leave()
	return p.Conn.Close()
}
