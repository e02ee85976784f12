package publish

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
)

// lentConn is a connection of which only the other end's address matters.
type lentConn struct {
	net.Conn
	from netip.AddrPort
}

func (c lentConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.from) }

// TestConnsOfOne: a source has no more than its share of a port.
func TestConnsOfOne(t *testing.T) {
	g := newGate(nil, nil, nil)
	from := func(addr string, port int) net.Conn {
		return lentConn{from: netip.AddrPortFrom(netip.MustParseAddr(addr), uint16(port))}
	}
	for i := range maxConnsOf {
		if !g.enter(from("198.51.100.1", i)) {
			t.Fatalf("number %d is refused", i)
		}
	}
	if g.enter(from("198.51.100.1", maxConnsOf)) {
		t.Error("one more is let in")
	}
	if !g.enter(from("198.51.100.2", 1)) {
		t.Error("another is kept out")
	}
	g.leave(from("198.51.100.1", 7))
	g.leave(from("198.51.100.1", 7)) // as when it is closed twice
	if !g.enter(from("198.51.100.1", 7)) || g.enter(from("198.51.100.1", maxConnsOf)) {
		t.Error("the place of one that left is not one place")
	}
	for i := range maxConnsOf {
		g.leave(from("198.51.100.1", i))
	}
	if g.leave(from("198.51.100.2", 1)); len(g.of)+len(g.conns) != 0 {
		t.Errorf("%d sources and %d connections are left", len(g.of), len(g.conns))
	}
}

func TestAllow(t *testing.T) {
	p := newPublisher(t)
	at := p.expose(Exposure{Target: echo(t), Protocol: TCP, Allow: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}})
	if err := refusal(t, at); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a stranger is told %v", err)
	}
	if len(p.dialed()) != 0 {
		t.Error("and was connected")
	}
}
