package overlay

import (
	"errors"
	"net"
	"net/netip"
	"testing"
)

// queue is a listener to which the connections of a list come.
type queue struct {
	net.Listener
	from []string
}

func (q *queue) Accept() (net.Conn, error) {
	if len(q.from) == 0 {
		return nil, net.ErrClosed
	}
	at := netip.MustParseAddrPort(q.from[0])
	q.from = q.from[1:]
	c, other := net.Pipe()
	other.Close()
	return fromConn{c, net.TCPAddrFromAddrPort(at)}, nil
}

// fromConn comes from an address.
type fromConn struct {
	net.Conn
	from net.Addr
}

func (c fromConn) RemoteAddr() net.Addr { return c.from }

func TestTurnstile(t *testing.T) {
	q := &queue{}
	ts := newTurnstile(q, 4, 2)
	// accept lets a list of sources come, and returns whom of them it let in.
	accept := func(from ...string) (in []net.Conn) {
		t.Helper()
		q.from = from
		for {
			c, err := ts.Accept()
			if errors.Is(err, net.ErrClosed) {
				return in
			}
			if err != nil {
				t.Fatal(err)
			}
			in = append(in, c)
		}
	}
	one := accept("198.51.100.1:1", "198.51.100.1:2", "198.51.100.1:3")
	if len(one) != 2 {
		t.Fatalf("%d of one source are in", len(one))
	}
	if n := len(accept("[2001:db8::1]:1", "[2001:db8::2]:1", "[2001:db8::3]:1")); n != 2 {
		t.Errorf("%d of one customer's IPv6 are in", n)
	}
	if n := len(accept("203.0.113.1:1")); n != 0 {
		t.Error("more than all are in")
	}
	one[0].Close()
	one[0].Close() // as net/http may
	if in := accept("203.0.113.1:1", "198.51.100.1:4"); len(in) != 1 || in[0].RemoteAddr().String() != "203.0.113.1:1" {
		t.Errorf("%d came for one who left", len(in))
	}
	one[1].Close()
	if n := len(accept("198.51.100.1:5", "198.51.100.1:6")); n != 1 {
		t.Errorf("%d came for the last who left", n)
	}
	if _, ok := one[0].(interface{ NetConn() net.Conn }).NetConn().(fromConn); !ok {
		t.Error("the connection below is hidden")
	}
}
