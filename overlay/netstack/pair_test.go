package netstack

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testMTU = 1420
	// patience is how long a test waits for what should take no time.
	patience = 20 * time.Second
)

var (
	laptop  = netip.MustParseAddr("172.18.0.11")
	gateway = netip.MustParseAddr("172.18.0.200")
	overlay = netip.MustParsePrefix("172.18.0.0/24")
	lan     = netip.MustParsePrefix("192.168.1.0/24")
	lanHost = netip.MustParseAddr("192.168.1.201")
	home    = netip.MustParseAddr("127.0.0.1")
)

// pair is a laptop's and a gateway's stack with a wire between them.
type pair struct {
	laptop, gateway *Stack
}

func newPair(tb testing.TB, o Options) *pair {
	tb.Helper()
	p := &pair{newStack(tb, Options{}), newStack(tb, o)}
	apply(tb, p.laptop, State{Addrs: []netip.Addr{laptop}, MTU: testMTU, Overlay: overlay})
	apply(tb, p.gateway, State{Addrs: []netip.Addr{gateway}, MTU: testMTU, Overlay: overlay, Serves: []netip.Prefix{lan}, Host: home})
	var wires sync.WaitGroup
	wires.Go(func() { wire(p.laptop, p.gateway) })
	wires.Go(func() { wire(p.gateway, p.laptop) })
	tb.Cleanup(func() {
		p.laptop.Close()
		p.gateway.Close()
		wires.Wait()
	})
	return p
}

func newStack(tb testing.TB, o Options) *Stack {
	tb.Helper()
	s, err := New(o, testMTU)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func apply(tb testing.TB, s *Stack, st State) {
	tb.Helper()
	if err := s.Apply(st); err != nil {
		tb.Fatal(err)
	}
}

// wire carries packets as WireGuard does, until a stack is closed.
func wire(from, to *Stack) {
	const offset = 16
	bufs, sizes := make([][]byte, batch), make([]int, batch)
	for i := range bufs {
		bufs[i] = make([]byte, offset+testMTU)
	}
	out := make([][]byte, 0, batch)
	for {
		n, err := from.Read(bufs, sizes, offset)
		if err != nil {
			return
		}
		out = out[:0]
		for i := range n {
			if sizes[i] > 0 {
				out = append(out, bufs[i][:offset+sizes[i]])
			}
		}
		if _, err := to.Write(out, offset); err != nil {
			return
		}
	}
}

// dial connects from the laptop.
func (p *pair) dial(tb testing.TB, network string, to netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	return p.laptop.Dial(ctx, network, netip.Addr{}, to)
}

func (p *pair) mustDial(tb testing.TB, network string, to netip.AddrPort) net.Conn {
	tb.Helper()
	c, err := p.dial(tb, network, to)
	if err != nil {
		tb.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

// hostListener listens on the loopback of the machine, and hands out what it
// accepts.
func hostListener(tb testing.TB) (port uint16, accepted <-chan *net.TCPConn) {
	tb.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	c := make(chan *net.TCPConn, 16)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c <- conn.(*net.TCPConn)
		}
	})
	tb.Cleanup(func() {
		l.Close()
		running.Wait()
		for len(c) > 0 {
			(<-c).Close()
		}
	})
	return l.Addr().(*net.TCPAddr).AddrPort().Port(), c
}

// take waits for the next connection of a listener.
func take(tb testing.TB, accepted <-chan *net.TCPConn) *net.TCPConn {
	tb.Helper()
	select {
	case c := <-accepted:
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { c.Close() })
		return c
	case <-time.After(patience):
		tb.Fatal("nobody connects")
		return nil
	}
}

// until waits for a condition.
func until(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(patience); !ok(); {
		if time.Now().After(end) {
			tb.Fatalf("never: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// isTimeout reports whether a deadline was over.
func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
