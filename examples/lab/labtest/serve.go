//go:build linux

package labtest

import (
	"io"
	"net"
	"sync"
	"testing"

	"overlayd/examples/lab"
)

// Serve listens on a machine's TCP address and has handle serve every connection.
// The test's end closes them, and the listener: whoever was killed at the far end
// of one says nothing, and the kernel would ask after it for two and a half minutes.
func Serve(t testing.TB, m *lab.Machine, addr string, handle func(net.Conn)) net.Addr {
	t.Helper()
	l, err := m.Listen("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{listener: l, handle: handle, open: map[net.Conn]struct{}{}}
	s.running.Go(s.accept)
	t.Cleanup(s.close)
	return l.Addr()
}

// Echo sends back what comes over a connection.
func Echo(c net.Conn) { _, _ = io.Copy(c, c) } // how it ends is the client's to look at

// ServePackets answers every datagram that comes to a machine's address, until the
// test ends. To an answer of nil nothing is sent.
func ServePackets(t testing.TB, m *lab.Machine, addr string, answer func(datagram []byte, from net.Addr) []byte) net.Addr {
	t.Helper()
	c, err := m.ListenPacket("udp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			if b := answer(buf[:n], from); b != nil {
				_, _ = c.WriteTo(b, from)
			}
		}
	})
	t.Cleanup(func() {
		c.Close()
		running.Wait()
	})
	return c.LocalAddr()
}

// EchoPacket is the answer of an echo.
func EchoPacket(datagram []byte, _ net.Addr) []byte { return datagram }

// server accepts connections until it is closed.
type server struct {
	listener net.Listener
	handle   func(net.Conn)
	running  sync.WaitGroup // accept, and one for each open connection

	mu   sync.Mutex            // guards open
	open map[net.Conn]struct{} // nil once closed
}

func (s *server) accept() {
	for {
		c, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		closed := s.open == nil
		if !closed {
			s.open[c] = struct{}{}
		}
		s.mu.Unlock()
		if closed {
			c.Close()
			return
		}
		s.running.Go(func() {
			defer s.done(c)
			s.handle(c)
		})
	}
}

func (s *server) done(c net.Conn) {
	c.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
}

func (s *server) close() {
	s.listener.Close()
	s.mu.Lock()
	for c := range s.open {
		c.Close()
	}
	s.open = nil
	s.mu.Unlock()
	s.running.Wait()
}
