package underlay

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"overlayd/overlay/key"
	"overlayd/overlay/relay"
)

// gate passes UDP between nodes and a relay, or does not.
type gate struct {
	open  atomic.Bool
	conn  *net.UDPConn
	relay netip.AddrPort
	wg    sync.WaitGroup

	mu    sync.Mutex // guards outer
	outer map[netip.AddrPort]*net.UDPConn
}

func newGate(t *testing.T, to netip.AddrPort) *gate {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{conn: conn, relay: to, outer: map[netip.AddrPort]*net.UDPConn{}}
	g.wg.Go(g.in)
	t.Cleanup(func() {
		conn.Close()
		g.mu.Lock()
		for _, c := range g.outer {
			c.Close()
		}
		g.mu.Unlock()
		g.wg.Wait()
	})
	return g
}

func (g *gate) addr() netip.AddrPort { return g.conn.LocalAddr().(*net.UDPAddr).AddrPort() }

func (g *gate) in() {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := g.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		if c := g.from(from); c != nil && g.open.Load() {
			c.Write(buf[:n])
		}
	}
}

// from returns the socket that stands for a node.
func (g *gate) from(node netip.AddrPort) *net.UDPConn {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.outer[node]
	if c == nil {
		var err error
		if c, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(g.relay)); err != nil {
			return nil
		}
		g.outer[node] = c
		g.wg.Go(func() {
			buf := make([]byte, 1<<16)
			for {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				if g.open.Load() {
					g.conn.WriteToUDPAddrPort(buf[:n], node)
				}
			}
		})
	}
	return c
}

// web serves a relay's streams; dial is what a node needs to reach it.
func web(t *testing.T, h http.Handler) (dial func(context.Context, Relay) (*relay.Stream, error)) {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return func(ctx context.Context, _ Relay) (*relay.Stream, error) {
		return relay.Dial(ctx, relay.DialOptions{
			Endpoint: s.Listener.Addr().String(), TLS: &tls.Config{RootCAs: roots, ServerName: "example.com"},
			Proxy: func(*http.Request) (*url.URL, error) { return nil, nil },
		})
	}
}

func onTLS(r RelayStatus) bool {
	return r.State == "up" && r.Transport == TransportTLS && r.Reason == ReasonUDPBlocked
}

func onUDP(r RelayStatus) bool {
	return r.State == "up" && r.Transport == TransportUDP && r.Reason == ""
}

// talk sends batches both ways and looks at what comes.
func talk(t *testing.T, a, b *host) {
	t.Helper()
	for _, dir := range []struct{ from, to *host }{{a, b}, {b, a}} {
		var bufs [][]byte
		for i := range 70 {
			bufs = append(bufs, data(1000-i%3, byte(i)))
		}
		if err := dir.from.Send(bufs, dir.from.endpoint(dir.to)); err != nil {
			t.Fatal(err)
		}
		for i := range bufs {
			got := dir.to.next()
			if !bytes.Equal(got.b, bufs[i]) || got.ep != dir.to.endpoint(dir.from) {
				t.Fatalf("packet %d differs: %d bytes", i, len(got.b))
			}
		}
	}
}

// TestByTLS: UDP is blocked at one node, then at none, then in the middle of it.
func TestByTLS(t *testing.T) {
	s, _ := startRelay(t, "127.0.0.1:0")
	g := newGate(t, s.LocalAddr())
	dial := web(t, s)
	a, b := newHost(t, 11, Options{Dial: dial}), newHost(t, 200, Options{})
	introduce(a, b)
	a.SetRelays([]Relay{at(11, g.addr())})
	b.SetRelays([]Relay{at(200, s.LocalAddr())})
	a.waitRelay(onTLS)
	b.waitRelay(onUDP)
	talk(t, a, b)
	if p := a.Path(b.key); p.Kind != KindRelay || p.Transport != TransportTLS || p.Reason != ReasonUDPBlocked {
		t.Errorf("path %+v", p)
	}
	g.open.Store(true)
	a.Kick()
	a.waitRelay(onUDP)
	talk(t, a, b)
	if p := a.Path(b.key); p.Transport != TransportUDP || p.Reason != "" {
		t.Errorf("path %+v", p)
	}
	g.open.Store(false)
	a.Kick()
	a.waitRelay(onTLS)
	talk(t, a, b)
	if c := s.Counters(); c["sessions"] != 2 {
		t.Errorf("%v", c)
	}
}

// TestTLSBothSides: UDP reaches the relay from nowhere; the Bind is closed and
// opened again meanwhile, and the ticket is renewed.
func TestTLSBothSides(t *testing.T) {
	s, _ := startRelay(t, "127.0.0.1:0")
	g := newGate(t, s.LocalAddr())
	dial := web(t, s)
	a, b := newHost(t, 11, Options{Dial: dial}), newHost(t, 200, Options{Dial: dial})
	introduce(a, b)
	for _, h := range []*host{a, b} {
		h.SetRelays([]Relay{at(h.label, g.addr())})
	}
	a.waitRelay(onTLS)
	b.waitRelay(onTLS)
	talk(t, a, b)
	renewed := at(11, g.addr())
	renewed.Ticket = relay.Ticket{Network: testNetwork, Label: 11, NotAfter: time.Now().Add(2 * time.Hour), Serial: 2}.Append(nil)
	renewed.Key = relay.SessionKey(testSecret, renewed.Ticket)
	a.SetRelays([]Relay{renewed})
	talk(t, a, b)
	a.stop()
	a.start()
	a.waitRelay(onTLS)
	talk(t, a, b)
	a.SetRelays(nil)
	for end := time.Now().Add(deadline); s.Sessions() > 1; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the relay that is gone from the map is kept")
		}
	}
}

// TestNoWay: the reason why TLS is no way either is told, in a word and in words.
func TestNoWay(t *testing.T) {
	s, _ := startRelay(t, "127.0.0.1:0")
	g := newGate(t, s.LocalAddr())
	var dials atomic.Int32
	portal := web(t, http.RedirectHandler("https://portal.example/", http.StatusFound))
	a := newHost(t, 11, Options{Dial: func(ctx context.Context, r Relay) (*relay.Stream, error) {
		dials.Add(1)
		return portal(ctx, r)
	}})
	a.SetRelays([]Relay{at(11, g.addr())})
	a.waitRelay(func(r RelayStatus) bool {
		return r.State != "up" && r.Reason == string(relay.ObstaclePortal) && r.Detail != ""
	})
	if n := dials.Load(); n > 2 {
		t.Errorf("%d dials", n)
	}
	g.open.Store(true)
	a.Kick()
	a.waitRelay(onUDP)
}

// TestTargetIsWhole: who dials a relay is told all that the map says of it.
func TestTargetIsWhole(t *testing.T) {
	want := Relay{ID: "r", Name: "vps", Endpoint: "203.0.113.10:443", Pin: key.PinOf(&x509.Certificate{RawSubjectPublicKeyInfo: []byte("a key")}), Addrs: []netip.AddrPort{netip.MustParseAddrPort("203.0.113.10:443")}}
	l := &leg{id: "r"}
	l.set(want)
	if got := l.target(); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}
