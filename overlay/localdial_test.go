package overlay

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"testing"
	"time"
)

// loopback are sockets that know one host: this machine.
type loopback struct{ tcp, udp string }

func (l loopback) Dial(ctx context.Context, network string, _ netip.Addr, to netip.AddrPort) (net.Conn, error) {
	at := l.tcp
	if network == "udp" {
		at = l.udp
	}
	return new(net.Dialer).DialContext(ctx, network, at)
}

func (loopback) Listen(context.Context, string, netip.AddrPort) (net.Listener, error) {
	return nil, errors.New("not this way")
}

func (loopback) ListenPacket(context.Context, string, netip.AddrPort) (net.PacketConn, error) {
	return nil, errors.New("not this way")
}

// localAPI serves the connections of a node on a socket of its own.
func localAPI(t *testing.T, s sockets) *Local {
	t.Helper()
	n := dialingNode(t, s)
	dials := newLocalDials(n)
	mux := http.NewServeMux()
	mux.Handle(dialPath, dials)
	ctx, stop := context.WithCancel(context.Background())
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: mux, BaseContext: func(net.Listener) context.Context { return ctx }}
	served := make(chan struct{})
	go func() {
		defer close(served)
		server.Serve(ln)
	}()
	l := Dial(socket)
	t.Cleanup(func() {
		stop()
		l.Close()
		server.Close()
		<-served
		dials.running.Wait() // a connection that outlives the node hangs the test
	})
	return l
}

// serveTCP answers one connection.
func serveTCP(t *testing.T, answer func(*net.TCPConn)) (address string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if c, err := ln.Accept(); err == nil {
			defer c.Close()
			answer(c.(*net.TCPConn))
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return ln.Addr().String()
}

// TestLocalDial: bytes and the end of each direction pass the socket.
func TestLocalDial(t *testing.T) {
	at := serveTCP(t, func(c *net.TCPConn) {
		asked, err := io.ReadAll(c)
		if err != nil {
			t.Error(err)
		}
		c.Write(append([]byte("got "), asked...))
	})
	c, err := localAPI(t, loopback{tcp: at}).Dial(t.Context(), "tcp", "lab-gw:80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if over, err := c.Fate(t.Context()); over || err != nil {
		t.Errorf("a live connection is over: %t, %v", over, err)
	}
	question := bytes.Repeat([]byte("a question "), 10_000)
	if _, err := io.Copy(c, bytes.NewReader(question)); err != nil {
		t.Fatal(err)
	}
	c.CloseWrite()
	answer, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(answer, append([]byte("got "), question...)) {
		t.Errorf("%d bytes came back: %v", len(answer), err)
	}
	if over, err := c.Fate(t.Context()); !over || err != nil {
		t.Errorf("over %t, %v: want an end as it should be", over, err)
	}
}

// TestLocalDialTorn: a reset is told, though the socket cannot carry one.
func TestLocalDialTorn(t *testing.T) {
	at := serveTCP(t, func(c *net.TCPConn) {
		io.ReadFull(c, make([]byte, 1))
		c.SetLinger(0)
	})
	c, err := localAPI(t, loopback{tcp: at}).Dial(t.Context(), "tcp", "lab-gw:80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write([]byte("x"))
	io.Copy(io.Discard, c) // an end or an error: see above
	over, err := c.Fate(t.Context())
	if !over || err == nil || AsFault(err).Code != ExitUnreachable {
		t.Errorf("over %t, %v: want a reset", over, err)
	}
}

// TestLocalDialRefused: why there is no connection reaches the caller, with the
// exit code and the hint.
func TestLocalDialRefused(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := ln.Addr().String()
	ln.Close()
	l := localAPI(t, loopback{tcp: closed})
	for address, code := range map[string]int{"lab-gw:80": ExitUnreachable, "nowhere:80": ExitUnreachable, "198.51.100.1:80": ExitUnreachable, "lab-gw": ExitUsage} {
		_, err := l.Dial(t.Context(), "tcp", address)
		if f := AsFault(err); err == nil || f.Code != code || f.Hint == "" {
			t.Errorf("%s: %v (hint %q), want exit code %d", address, err, f.Hint, code)
		}
	}
	if _, err := Dial(filepath.Join(t.TempDir(), "none")).Dial(t.Context(), "tcp", "lab-gw:80"); err == nil || AsFault(err).Code != ExitNotRunning {
		t.Errorf("without a daemon: %v", err)
	}
}

// TestLocalDialUDP: datagrams keep their bounds, also an empty one's.
func TestLocalDialUDP(t *testing.T) {
	echo, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, longestDatagram)
		for {
			n, from, err := echo.ReadFrom(buf)
			if err != nil {
				return
			}
			echo.WriteTo(buf[:n], from)
		}
	}()
	defer func() { echo.Close(); <-done }()
	c, err := localAPI(t, loopback{udp: echo.LocalAddr().String()}).Dial(t.Context(), "udp", "lab-gw:53")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	for _, want := range []string{"a", "", "a longer one", string(make([]byte, 60_000))} {
		if _, err := c.Write([]byte(want)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, longestDatagram)
		n, err := c.Read(buf)
		if err != nil || string(buf[:n]) != want {
			t.Fatalf("%d bytes came back (%v), want %d", n, err, len(want))
		}
	}
}

// FuzzDatagram: what is read is what was written, and nothing is read that was
// not.
func FuzzDatagram(f *testing.F) {
	f.Add([]byte{0, 1, 'a'})
	f.Add([]byte{0, 0})
	f.Add([]byte{255, 255, 1})
	f.Add([]byte{0, 9, 'a'})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, buf := bytes.NewReader(b), make([]byte, longestDatagram)
		var again []byte
		for {
			n, err := readDatagram(r, buf)
			if err != nil {
				if rest := b[len(again):]; err == io.EOF && len(rest) != 0 {
					t.Fatalf("the end, before %x", rest)
				}
				return
			}
			again = appendDatagram(again, buf[:n])
			if !bytes.HasPrefix(b, again) {
				t.Fatalf("%x was read from %x", again, b)
			}
		}
	})
}
