package netstack

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"
)

// halfCloser is what TCP connections of both kinds can.
type halfCloser interface{ CloseWrite() error }

// TestDialAndListen: two stacks talk to each other; what is sent arrives, also
// what is sent after the other side is done, and then it is over.
func TestDialAndListen(t *testing.T) {
	p := newPair(t, Options{})
	l, err := p.gateway.Listen(t.Context(), "tcp", netip.AddrPortFrom(netip.Addr{}, 80))
	if err != nil {
		t.Fatal(err)
	}
	if got := l.Addr().String(); got != "172.18.0.200:80" {
		t.Errorf("listens on %s", got)
	}
	if _, err := p.gateway.Listen(t.Context(), "tcp", netip.AddrPortFrom(netip.Addr{}, 80)); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second listener: %v", err)
	}
	question, answer := make([]byte, 8<<20), make([]byte, 4<<20)
	rand.Read(question)
	rand.Read(answer)
	served := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			served <- err
			return
		}
		defer c.Close()
		got, err := io.ReadAll(c)
		if err == nil && !bytes.Equal(got, question) {
			err = errors.New("the question was changed")
		}
		if err == nil {
			_, err = c.Write(answer)
		}
		served <- err
	}()
	c := p.mustDial(t, "tcp", netip.AddrPortFrom(gateway, 80))
	if _, err := c.Write(question); err != nil {
		t.Fatal(err)
	}
	if err := c.(halfCloser).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, answer) {
		t.Errorf("%d bytes came back, %v", len(got), err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	closed := make(chan error, 1)
	go func() { _, err := l.Accept(); closed <- err }()
	l.Close()
	if err := <-closed; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
	if _, err := p.dial(t, "tcp", netip.AddrPortFrom(gateway, 80)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after Close: %v", err)
	}
}

// TestPortsInTurn: no port comes again while there are others.
func TestPortsInTurn(t *testing.T) {
	p := newPair(t, Options{})
	l, err := p.gateway.Listen(t.Context(), "tcp", netip.AddrPortFrom(netip.Addr{}, 80))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	back := func() { p.laptop.nextPort.Store(lastPort - firstPort - 1) }
	back()
	for i, want := range []int{lastPort, firstPort, firstPort + 1, firstPort + 2} {
		if i == 3 {
			back() // to those that are taken
		}
		c := p.mustDial(t, "tcp", netip.AddrPortFrom(gateway, 80))
		defer c.Close()
		if got := c.LocalAddr().(*net.TCPAddr).Port; got != want {
			t.Errorf("connection %d is from port %d, want %d", i, got, want)
		}
	}
}

// TestConnection: deadlines, Close and resets are those of a kernel's connection.
func TestConnection(t *testing.T) {
	p := newPair(t, Options{})
	l, err := p.gateway.Listen(t.Context(), "tcp", netip.AddrPortFrom(gateway, 80))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := p.mustDial(t, "tcp", netip.AddrPortFrom(gateway, 80))
	other, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	one := make([]byte, 1)
	_ = c.SetReadDeadline(time.Now())
	if _, err := c.Read(one); !isTimeout(err) {
		t.Errorf("after the deadline: %v", err)
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	_ = other.(*stream).SetLinger(0)
	other.Close()
	if _, err := c.Read(one); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after a reset: %v", err)
	}

	c = p.mustDial(t, "tcp", netip.AddrPortFrom(gateway, 80))
	read := make(chan error, 1)
	go func() { _, err := c.Read(one); read <- err }()
	c.Close()
	if err := <-read; !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.laptop.Dial(ctx, "tcp", netip.Addr{}, netip.AddrPortFrom(gateway, 80)); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
}

// TestDatagrams: sockets for datagrams of both stacks, long ones too; a port
// where nobody listens says so.
func TestDatagrams(t *testing.T) {
	p := newPair(t, Options{})
	apply(t, p.gateway, State{Addrs: []netip.Addr{gateway}, MTU: testMTU, Overlay: overlay})
	l, err := p.gateway.ListenPacket(t.Context(), "udp", netip.AddrPortFrom(gateway, 53))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_ = l.SetDeadline(time.Now().Add(patience))
	c := p.mustDial(t, "udp", netip.AddrPortFrom(gateway, 53))
	message := bytes.Repeat([]byte("question "), 800)
	if _, err := c.Write(message); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1<<16)
	n, from, err := l.ReadFrom(buf)
	if err != nil || !bytes.Equal(buf[:n], message) {
		t.Fatalf("%d bytes, %v", n, err)
	}
	if _, err := l.WriteTo([]byte("answer"), from); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(buf); err != nil || string(buf[:n]) != "answer" {
		t.Errorf("got %q, %v", buf[:n], err)
	}
	c = p.mustDial(t, "udp", netip.AddrPortFrom(gateway, 54))
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(buf); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens, and Read says %v", err)
	}
}

// TestPing: an echo request to a stack is answered, by it alone.
func TestPing(t *testing.T) {
	p := newPair(t, Options{})
	c, err := p.laptop.ListenICMP()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	k := flowKey{protoICMP, netip.AddrPortFrom(laptop, 7), netip.AddrPortFrom(gateway, 0)}
	request := quoteEcho(k, 1)[20:]
	if _, err := c.WriteTo(request, &net.IPAddr{IP: gateway.AsSlice()}); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, from, err := c.ReadFrom(buf)
	if err != nil || n != len(request) || buf[0] != 0 || from.String() != gateway.String() {
		t.Errorf("got % x from %v, %v", buf[:n], from, err)
	}
}

// TestTarget: the host is let near what is advertised, and nothing else.
func TestTarget(t *testing.T) {
	st := State{
		Addrs: []netip.Addr{gateway}, Overlay: overlay, Host: home,
		Serves: []netip.Prefix{lan, netip.MustParsePrefix("64.0.0.0/2"), netip.MustParsePrefix("128.0.0.0/1")},
	}
	for _, tt := range []struct {
		dst, want string // "": refused
	}{
		{"192.168.1.201", "192.168.1.201"},
		{"172.18.0.200", "127.0.0.1"}, // its own: this machine's services
		{"172.18.0.11", ""},           // another node, though 128.0.0.0/1 has it
		{"127.0.0.1", ""},             // though 64.0.0.0/2 has it
		{"10.0.0.1", ""},
		{"0.0.0.0", ""},
		{"224.0.0.1", ""},
		{"255.255.255.255", ""},
		{"169.254.169.254", "169.254.169.254"}, // within 128.0.0.0/1, as for a kernel
	} {
		got, ok := st.target(netip.MustParseAddr(tt.dst))
		if ok != (tt.want != "") || ok && got.String() != tt.want {
			t.Errorf("%s: %s, %v, want %q", tt.dst, got, ok, tt.want)
		}
	}
	if _, ok := (&State{Addrs: []netip.Addr{gateway}}).target(gateway); ok {
		t.Error("services of a machine that has none to show")
	}
}

// FuzzWrite gives the stack whatever a peer might send.
func FuzzWrite(f *testing.F) {
	k := flowKey{protoTCP, netip.AddrPortFrom(laptop, 4000), netip.AddrPortFrom(lanHost, 80)}
	f.Add(quoteTCP(k, 7))
	f.Add(quoteUDP(flowKey{protoUDP, k.src, k.dst}))
	f.Add(quoteEcho(flowKey{protoICMP, k.src, k.dst}, 1))
	f.Add([]byte{0x60, 0, 0, 0})
	f.Fuzz(func(t *testing.T, p []byte) {
		s := newStack(t, Options{})
		defer s.Close()
		apply(t, s, State{Addrs: []netip.Addr{gateway}, MTU: testMTU, Overlay: overlay, Serves: []netip.Prefix{lan}})
		s.dialer = func(context.Context, netip.AddrPort) (*net.TCPConn, error) { return nil, syscall.ECONNREFUSED }
		if len(p) > 9 && p[9] != protoTCP {
			p[9] = 0 // nothing leaves this process
		}
		if _, err := s.Write([][]byte{p}, 0); err != nil {
			t.Fatal(err)
		}
	})
}

// BenchmarkStream sends through both stacks.
func BenchmarkStream(b *testing.B) {
	p := newPair(b, Options{})
	l, err := p.gateway.Listen(b.Context(), "tcp", netip.AddrPortFrom(gateway, 80))
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.Copy(io.Discard, c)
	}()
	c, err := p.dial(b, "tcp", netip.AddrPortFrom(gateway, 80))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	piece := make([]byte, 256<<10)
	b.SetBytes(int64(len(piece)))
	for b.Loop() {
		if _, err := c.Write(piece); err != nil {
			b.Fatal(err)
		}
	}
}
