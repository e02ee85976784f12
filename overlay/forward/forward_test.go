package forward

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"overlayd/overlay/splice"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var loopback = netip.MustParseAddrPort("127.0.0.1:0")

// start serves a forward until the test ends, or the returned function is called.
func start(t *testing.T, network string, dial func(context.Context, string, string) (net.Conn, error)) (f *Forward, at string, end func()) {
	t.Helper()
	return startWith(t, network, Options{Dial: dial})
}

func startWith(t *testing.T, network string, o Options) (f *Forward, at string, end func()) {
	t.Helper()
	f, err := Listen(Rule{Network: network, Listen: loopback, Target: "nas.lab:80"}, o)
	if err != nil {
		t.Fatal(err)
	}
	if f.ln != nil {
		at = f.ln.Addr().String()
	} else {
		at = f.socket.LocalAddr().String()
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Serve(ctx) }()
	end = sync.OnceFunc(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if s := f.Status(); s.Open != 0 {
			t.Errorf("%d are open after the end", s.Open)
		}
	})
	t.Cleanup(end)
	return f, at, end
}

func dial(t *testing.T, network, at string) net.Conn {
	t.Helper()
	c, err := net.Dial(network, at)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() { c.Close() })
	return c
}

// TestTCP: bytes and half-closes pass; and all ends with the forward.
func TestTCP(t *testing.T) {
	far := make(chan net.Conn, 2)
	f, at, end := start(t, "tcp", func(_ context.Context, network, address string) (net.Conn, error) {
		if network != "tcp" || address != "nas.lab:80" {
			t.Errorf("asked for %s %s", network, address)
		}
		near, other := net.Pipe()
		far <- other
		return near, nil
	})
	c := dial(t, "tcp", at)
	io.WriteString(c, "ping")
	host := <-far
	buf := make([]byte, 4)
	if _, err := io.ReadFull(host, buf); err != nil || string(buf) != "ping" {
		t.Fatalf("%q, %v", buf, err)
	}
	go io.WriteString(host, "pong")
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "pong" {
		t.Fatalf("%q, %v", buf, err)
	}
	if s := f.Status(); s.Open != 1 || s.Accepted != 1 || s.Failed != nil {
		t.Errorf("%+v", s)
	}
	end()
	if _, err := c.Read(buf); err == nil {
		t.Error("a connection outlives its forward")
	}
	if _, err := net.Dial("tcp", at); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the port is still open: %v", err)
	}
}

// TestTCPFails: the client sees it, and the reason is kept until it works.
func TestTCPFails(t *testing.T) {
	refusal := errors.New("the gateway is away")
	f, at, _ := start(t, "tcp", func(context.Context, string, string) (net.Conn, error) { return nil, refusal })
	c, err := net.Dial("tcp", at) // the reset may come before it returns
	if err == nil {
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client sees %v, want a reset", err)
	}
	if s := f.Status(); s.Failed != refusal || s.Failures != 1 {
		t.Errorf("%+v", s)
	}
}

// TestTaken: a port in use is an error that can be told.
func TestTaken(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		f, at, _ := start(t, network, nil)
		_, err := Listen(Rule{Network: network, Listen: netip.MustParseAddrPort(at), Target: "x:1"}, f.o)
		if !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("%s: %v", network, err)
		}
	}
	if _, err := Listen(Rule{Network: "sctp", Listen: loopback}, Options{}); err == nil {
		t.Error("a forward of sctp is made")
	}
}

// TestUDP: answers find back to who asked, and there are only so many clients.
func TestUDP(t *testing.T) {
	host, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		buf := make([]byte, splice.LongestDatagram)
		for {
			n, from, err := host.ReadFrom(buf)
			if err != nil {
				return
			}
			host.WriteTo(buf[:n], from)
		}
	})
	defer running.Wait()
	defer host.Close()
	f, at, _ := start(t, "udp", func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, host.LocalAddr().String())
	})
	clients := []net.Conn{dial(t, "udp", at), dial(t, "udp", at)}
	for i, c := range clients {
		io.WriteString(c, string(rune('a'+i)))
	}
	for i, c := range clients {
		buf := make([]byte, 10)
		if n, err := c.Read(buf); err != nil || string(buf[:n]) != string(rune('a'+i)) {
			t.Errorf("client %d got %q, %v", i, buf[:n], err)
		}
	}
	if s := f.Status(); s.Open != 2 || s.Accepted != 2 {
		t.Errorf("%+v", s)
	}
	for range mostClients + 5 {
		c := dial(t, "udp", at)
		io.WriteString(c, "x")
		if _, err := c.Read(make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
	}
	if s := f.Status(); s.Open > mostClients || s.Full == 0 {
		t.Errorf("%+v", s)
	}
}

// TestUDPRefused: a host that is not there ends the client's socket, and the next
// datagram tries again.
func TestUDPRefused(t *testing.T) {
	gone, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	f, at, _ := start(t, "udp", func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, gone.LocalAddr().String())
	})
	c := dial(t, "udp", at)
	for end := time.Now().Add(10 * time.Second); f.accepted.Load() < 3; <-time.After(time.Millisecond) {
		io.WriteString(c, "x")
		if time.Now().After(end) {
			t.Fatal("a client that was refused is not made anew")
		}
	}
}

// TestStrangers: who may not use a forward is reset, or heard by nobody, and the
// target is not asked.
func TestStrangers(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		asked := make(chan netip.AddrPort, 1)
		f, at, _ := startWith(t, network, Options{
			Dial: func(context.Context, string, string) (net.Conn, error) {
				t.Error("the target is asked")
				return nil, errors.New("no")
			},
			Admit: func(how string, client, _ netip.AddrPort) bool {
				if how != network {
					t.Errorf("asked for %s", how)
				}
				asked <- client
				return false
			},
		})
		c, err := net.Dial(network, at) // the reset may come before it returns
		if err == nil {
			defer c.Close()
			io.WriteString(c, "let me in")
		}
		if client := <-asked; c != nil && client.String() != c.LocalAddr().String() {
			t.Errorf("asked about %s, want %s", client, c.LocalAddr())
		}
		for end := time.Now().Add(10 * time.Second); f.Status().Strange != 1; <-time.After(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%+v", f.Status())
			}
		}
		if s := f.Status(); s.Accepted != 0 {
			t.Errorf("%+v", s)
		}
		if network == "tcp" && err == nil {
			c.SetDeadline(time.Now().Add(10 * time.Second))
			_, err = c.Read(make([]byte, 1))
		}
		if network == "tcp" && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the stranger sees %v", err)
		}
	}
}
