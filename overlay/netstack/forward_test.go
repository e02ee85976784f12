package netstack

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"
)

// TestForwardTCP: a connection comes out at the host's side, and each way of
// ending it, at either side, is that of the other.
func TestForwardTCP(t *testing.T) {
	p := newPair(t, Options{})
	port, accepted := hostListener(t)
	to := netip.AddrPortFrom(gateway, port)
	begin := func(t *testing.T) (near net.Conn, far *net.TCPConn) {
		t.Helper()
		near = p.mustDial(t, "tcp", to)
		far = take(t, accepted)
		seen := p.gateway.Outside(protoTCP, near.LocalAddr().(*net.TCPAddr).AddrPort(), to)
		if want := far.RemoteAddr().(*net.TCPAddr).AddrPort(); seen != want {
			t.Errorf("the flow is %v at the host's side, want %v", seen, want)
		}
		return near, far
	}
	message := bytes.Repeat([]byte("0123456789"), 200_000)
	t.Run("the client is done first", func(t *testing.T) {
		near, far := begin(t)
		go func() { near.Write(message); near.(halfCloser).CloseWrite() }()
		if got, err := io.ReadAll(far); err != nil || !bytes.Equal(got, message) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		go func() { far.Write(message); far.Close() }()
		if got, err := io.ReadAll(near); err != nil || !bytes.Equal(got, message) {
			t.Errorf("%d bytes came back, %v", len(got), err)
		}
	})
	t.Run("the host is done first", func(t *testing.T) {
		near, far := begin(t)
		go func() { far.Write(message); far.CloseWrite() }()
		if got, err := io.ReadAll(near); err != nil || !bytes.Equal(got, message) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		go func() { near.Write(message); near.Close() }()
		if got, err := io.ReadAll(far); err != nil || !bytes.Equal(got, message) {
			t.Errorf("%d bytes went, %v", len(got), err)
		}
	})
	t.Run("the client resets", func(t *testing.T) {
		near, far := begin(t)
		_ = near.(*stream).SetLinger(0)
		near.Close()
		if _, err := far.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the host reads %v", err)
		}
	})
	t.Run("the host resets", func(t *testing.T) {
		near, far := begin(t)
		_ = far.SetLinger(0)
		far.Close()
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client reads %v", err)
		}
	})
	t.Run("silent for too long", func(t *testing.T) {
		near, far := begin(t)
		now := time.Now()
		p.gateway.flows.abort(func(f *flow) bool { return f.over(now.Add(idleTCP - time.Minute)) })
		if _, err := far.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(near, make([]byte, 1)); err != nil {
			t.Fatalf("ended before its time: %v", err)
		}
		p.gateway.flows.abort(func(f *flow) bool { return f.over(now.Add(idleTCP + time.Minute)) })
		for _, c := range []net.Conn{near, far} {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("one side reads %v", err)
			}
		}
	})
	until(t, "all flows are gone", func() bool { return p.gateway.flows.number(protoTCP) == 0 })
	if n := len(p.gateway.stack.RegisteredEndpoints()); n > 8 { // those that wait for last words
		t.Errorf("%d endpoints are left", n)
	}
}

// TestDecline: who asks is told what the host was told.
func TestDecline(t *testing.T) {
	for _, tt := range []struct {
		name string
		host error
		want error
	}{
		{"refused", syscall.ECONNREFUSED, syscall.ECONNREFUSED},
		{"no such host", syscall.EHOSTUNREACH, syscall.EHOSTUNREACH},
		{"no way", syscall.ENETUNREACH, syscall.ENETUNREACH},
		{"a firewall of the host", syscall.EPERM, syscall.EHOSTUNREACH}, // as Linux reads "administratively prohibited"
		{"silence", context.DeadlineExceeded, context.DeadlineExceeded},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPair(t, Options{})
			p.gateway.dialer = func(context.Context, netip.AddrPort) (*net.TCPConn, error) {
				return nil, &net.OpError{Op: "dial", Net: "tcp", Err: tt.host}
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			if tt.want == context.DeadlineExceeded {
				cancel()
				ctx, cancel = context.WithTimeout(t.Context(), 200*time.Millisecond)
			}
			defer cancel()
			_, err := p.laptop.Dial(ctx, "tcp", netip.Addr{}, netip.AddrPortFrom(lanHost, 80))
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// TestNotAnsweredBefore: a SYN is answered after the host has its connection, and
// not before.
func TestNotAnsweredBefore(t *testing.T) {
	p := newPair(t, Options{})
	port, accepted := hostListener(t)
	asked, goOn := make(chan struct{}), make(chan struct{})
	p.gateway.dialer = func(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
		close(asked)
		<-goOn
		return dialHost(ctx, to)
	}
	done := make(chan error, 1)
	go func() {
		c, err := p.dial(t, "tcp", netip.AddrPortFrom(gateway, port))
		if err == nil {
			c.Close()
		}
		done <- err
	}()
	<-asked
	select {
	case err := <-done:
		t.Fatalf("answered before the host was: %v", err)
	default:
	}
	close(goOn)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	take(t, accepted)
}

// TestForbidden: what is not advertised is refused, whatever asks.
func TestForbidden(t *testing.T) {
	p := newPair(t, Options{})
	p.gateway.dialer = func(_ context.Context, to netip.AddrPort) (*net.TCPConn, error) {
		t.Errorf("the host was asked for %s", to)
		return nil, syscall.ECONNREFUSED
	}
	if _, err := p.dial(t, "tcp", netip.MustParseAddrPort("10.0.0.1:80")); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a connection: %v", err)
	}
	c := p.mustDial(t, "udp", netip.MustParseAddrPort("10.0.0.1:53"))
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	until(t, "both refusals are counted", func() bool { return p.gateway.count.forbidden.Load() == 2 })
}

// TestForwardUDP: datagrams pass both ways, short and long, and a port where
// nobody listens says so.
func TestForwardUDP(t *testing.T) {
	p := newPair(t, Options{})
	host, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	_ = host.SetDeadline(time.Now().Add(patience))
	port := host.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	c := p.mustDial(t, "udp", netip.AddrPortFrom(gateway, port))
	buf := make([]byte, 1<<16)
	for _, size := range []int{1, 1392, 1393, 9000, 40_000} {
		message := bytes.Repeat([]byte{byte(size)}, size)
		if _, err := c.Write(message); err != nil {
			t.Fatal(err)
		}
		n, from, err := host.ReadFrom(buf)
		if err != nil || !bytes.Equal(buf[:n], message) {
			t.Fatalf("%d bytes of %d, %v", n, size, err)
		}
		if _, err := host.WriteTo(message, from); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(buf); err != nil || !bytes.Equal(buf[:n], message) {
			t.Fatalf("%d bytes of %d came back, %v", n, size, err)
		}
	}
	now := time.Now()
	p.gateway.flows.abort(func(f *flow) bool { return f.over(now.Add(idleUDP + time.Minute)) })
	until(t, "the flow is gone", func() bool { return p.gateway.flows.number(protoUDP) == 0 })

	host.Close()
	if _, err := c.Write([]byte("anybody?")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(buf); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens, and Read says %v", err)
	}
}

// TestFull: there is a bound, a source has half of it, and status can tell.
func TestFull(t *testing.T) {
	p := newPair(t, Options{TCPFlows: 4, UDPFlows: 4})
	port, accepted := hostListener(t)
	to := netip.AddrPortFrom(gateway, port)
	first := p.mustDial(t, "tcp", to)
	far := take(t, accepted)
	p.mustDial(t, "tcp", to)
	take(t, accepted)
	if p.gateway.Full(time.Now()) {
		t.Error("full too early")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := p.laptop.Dial(ctx, "tcp", netip.Addr{}, to); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("one too many: %v", err)
	}
	if !p.gateway.Full(time.Now()) || p.gateway.Full(time.Now().Add(2*fullFor)) {
		t.Error("status does not say that it was full, or says so for ever")
	}
	first.Close()
	far.Close()
	until(t, "there is room again", func() bool {
		c, err := p.dial(t, "tcp", to)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// TestWithdrawn: a network that is served no more ends its flows.
func TestWithdrawn(t *testing.T) {
	p := newPair(t, Options{})
	port, accepted := hostListener(t)
	c := p.mustDial(t, "tcp", netip.AddrPortFrom(gateway, port))
	take(t, accepted)
	apply(t, p.gateway, State{Addrs: []netip.Addr{gateway}, MTU: testMTU, Overlay: overlay})
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("it goes on: %v", err)
	}
}
