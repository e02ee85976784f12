package publish

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	// farIdle is how long a connection to the target waits for the client's next
	// request; maxFar bounds those of a client's connection to one target.
	farIdle = 30 * time.Second
	maxFar  = 32
)

// visitor is a client's connection to a door. What it has to targets is its own, of
// one login each, and ends with it.
type visitor struct {
	net.Conn
	d     *door
	once  sync.Once
	sites map[*website]bool // that it has asked for; guarded by door.mu, as the next
	left  bool              // it has been closed

	mu   sync.Mutex // guards the rest
	far  map[errand]*http.Transport
	open map[*farConn]bool
	gone bool
}

// errand is on whose behalf a visitor asks for what.
type errand struct {
	site *website
	as   who
}

// who is whose a request is.
type who struct {
	id, name string    // of the user; empty: nobody logged in
	since    time.Time // when that was
}

type whoKey struct{}

func whoOf(r *http.Request) who {
	v, _ := r.Context().Value(whoKey{}).(who)
	return v
}

type visitorKey struct{}

// visitorOf returns whose connection a request came by.
func visitorOf(r *http.Request) *visitor {
	v, _ := r.Context().Value(visitorKey{}).(*visitor)
	return v
}

// Close implements net.Conn. It ends what leads to targets, too.
func (v *visitor) Close() error {
	v.once.Do(func() {
		v.d.leave(v)
		v.mu.Lock()
		v.gone = true
		open := slices.Collect(maps.Keys(v.open))
		v.mu.Unlock()
		for _, c := range open {
			c.Close()
		}
	})
	return v.Conn.Close()
}

// SetLinger is that of net.TCPConn: with 0, Close resets the connection.
func (v *visitor) SetLinger(seconds int) error {
	if l, ok := v.Conn.(interface{ SetLinger(int) error }); ok {
		return l.SetLinger(seconds)
	}
	return nil
}

// errGone is why a target is not connected to.
var errGone = errors.New("the client has left")

// dial connects to the target of an errand.
func (v *visitor) dial(ctx context.Context, w *website, g Guest, network string) (net.Conn, error) {
	c, err := w.p.dial(ctx, g, network)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.gone {
		c.Close()
		return nil, errGone
	}
	f := &farConn{Conn: c, v: v}
	v.open[f] = true
	return f, nil
}

// forget leaves the connections of an errand that wait for a request to their end.
func (v *visitor) forget(e errand) {
	v.mu.Lock()
	t := v.far[e]
	delete(v.far, e)
	v.mu.Unlock()
	if t != nil {
		t.CloseIdleConnections() // which come to farConn.Close
	}
}

// transport returns the connections of an errand. Those of another at the same site end:
// somebody else has logged in, or again.
func (v *visitor) transport(e errand, g Guest) *http.Transport {
	v.mu.Lock()
	t := v.far[e]
	if t != nil {
		v.mu.Unlock()
		return t
	}
	var others []*http.Transport
	for other, t := range v.far {
		if other.site == e.site {
			others = append(others, t)
			delete(v.far, other)
		}
	}
	t = &http.Transport{
		DialContext:        func(ctx context.Context, network, _ string) (net.Conn, error) { return v.dial(ctx, e.site, g, network) },
		DisableCompression: true, IdleConnTimeout: farIdle, MaxConnsPerHost: maxFar, MaxIdleConnsPerHost: maxFar,
		MaxResponseHeaderBytes: maxHeader,
	}
	v.far[e] = t
	v.mu.Unlock()
	for _, other := range others {
		other.CloseIdleConnections()
	}
	return t
}

// farConn is a connection to a target, of which the visitor knows.
type farConn struct {
	net.Conn
	v *visitor
}

// Close implements net.Conn.
func (c *farConn) Close() error {
	c.v.mu.Lock()
	delete(c.v.open, c)
	c.v.mu.Unlock()
	return c.Conn.Close()
}

// CloseWrite ends one direction.
func (c *farConn) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return nil
}

// ReadFrom implements io.ReaderFrom, as the connection inside may.
func (c *farConn) ReadFrom(r io.Reader) (int64, error) { return io.Copy(c.Conn, r) }
