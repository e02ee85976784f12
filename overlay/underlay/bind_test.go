package underlay

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"overlayd/overlay/key"
)

// heldSize is the length of a datagram that may arrive late, or not at all.
const heldSize = 200

// exchange sends trains of all kinds from a to b and compares what arrives.
func exchange(t *testing.T, a, b *host) {
	t.Helper()
	to, from := a.endpoint(b), b.endpoint(a)
	for _, sizes := range [][]int{{148}, {64, 92, 1000, 1000, 1000, 32}, {1452, 1452, 1452, 80}, {96, 1452}} {
		var bufs [][]byte
		for i, n := range sizes {
			p := data(n, byte(i+1))
			switch n { // the relay knows the lengths of the other types
			case 148:
				p[0] = typeInitiation
			case 92:
				p[0] = typeResponse
			case 64:
				p[0] = typeCookie
			}
			bufs = append(bufs, p)
		}
		if err := a.Send(bufs, to); err != nil {
			t.Fatal(err)
		}
		for _, want := range bufs {
			got := b.next()
			for len(got.b) == heldSize { // sent while there was no relay
				got = b.next()
			}
			if !bytes.Equal(got.b, want) {
				t.Fatalf("got %d bytes % x…, want %d bytes % x…", len(got.b), got.b[:8], len(want), want[:8])
			}
			if got.ep != from {
				t.Fatal("the endpoint is not the sender's")
			}
		}
	}
}

func TestThroughRelay(t *testing.T) {
	s, _ := startRelay(t, "127.0.0.1:0")
	a, b := pair(t, s.LocalAddr())
	a.waitFor("up")
	b.waitFor("up")
	exchange(t, a, b)
	exchange(t, b, a)

	want := Path{Kind: KindRelay, Transport: TransportUDP, Endpoint: s.LocalAddr().String(), RelayID: "r1"}
	if got := a.Path(b.key); got != want {
		t.Errorf("path %+v, want %+v", got, want)
	}
	if r := a.Relays()[0]; r.ID != "r1" || r.Name != "vps" || r.LastEcho.IsZero() || r.Endpoint != want.Endpoint {
		t.Errorf("relay %+v", r)
	}
	for name, n := range a.Counters() {
		if n != 0 {
			t.Errorf("%s is %d", name, n)
		}
	}
}

// TestOwnPort has the relay's own node as one end.
func TestOwnPort(t *testing.T) {
	s, _ := startRelay(t, "127.0.0.1:0")
	vps := newHost(t, 10, Options{Own: s.Attach(testNetwork, 10)})
	a := newHost(t, 11, Options{})
	introduce(vps, a)
	vps.SetRelays([]Relay{at(10, s.LocalAddr())})
	a.SetRelays([]Relay{at(11, s.LocalAddr())})
	a.waitFor("up")
	exchange(t, a, vps)
	exchange(t, vps, a)
	if p := vps.Path(a.key); p.Kind != KindRelay || p.Transport != TransportLocal || p.RelayID != "r1" {
		t.Errorf("path %+v", p)
	}
	if r := vps.Relays(); len(r) != 1 || r[0].State != "up" || r[0].Name != "vps" || r[0].Transport != TransportLocal {
		t.Errorf("relays %+v", r)
	}
}

// TestHeldUntilUp sends before there is any relay.
func TestHeldUntilUp(t *testing.T) {
	addr := freeAddr(t)
	a, b := pair(t, addr)
	init := data(148, 1)
	init[0] = typeInitiation
	for i := range 30 {
		if err := a.Send([][]byte{init, data(100, byte(i))}, a.endpoint(b)); err != nil {
			t.Fatal(err)
		}
	}
	if p := a.Path(b.key); p.Kind != KindNone || p.Reason != reasonRelayDown {
		t.Errorf("path %+v", p)
	}
	startRelay(t, addr.String())
	b.waitFor("up")
	a.waitFor("up")
	// b may have come up later than a, and then nobody was there to receive:
	// a's next batch is sent anyhow.
	if err := a.Send([][]byte{data(50, 99)}, a.endpoint(b)); err != nil {
		t.Fatal(err)
	}
	for {
		if p := b.next(); p.b[5] == 99 {
			break
		}
	}
	if n := a.Counters()["drop_held"]; n < 30 {
		t.Errorf("drop_held is %d: 60 were sent, 10 are held", n)
	}
}

// freeAddr returns a loopback address that nobody uses.
func freeAddr(t testing.TB) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// TestRelayRestarts takes the relay away and brings it back.
func TestRelayRestarts(t *testing.T) {
	s, stop := startRelay(t, "127.0.0.1:0")
	addr := s.LocalAddr()
	a, b := pair(t, addr)
	a.waitFor("up")
	b.waitFor("up")
	exchange(t, a, b)
	stop()
	a.waitFor("attaching")
	for range 3 {
		if err := a.Send([][]byte{data(heldSize, 3)}, a.endpoint(b)); err != nil {
			t.Fatal(err)
		}
	}
	startRelay(t, addr.String())
	a.waitFor("up")
	b.waitFor("up")
	exchange(t, a, b)
	exchange(t, b, a)
}

// TestOtherAddress attaches by the relay's second address when the first is
// dead, and to one of a family that is not there.
func TestOtherAddress(t *testing.T) {
	s, _ := startRelay(t, "127.0.0.1:0")
	a, b := pair(t, netip.MustParseAddrPort("[100::1]:9"), freeAddr(t), s.LocalAddr())
	a.waitFor("up")
	b.waitFor("up")
	exchange(t, a, b)
	if p := a.Path(b.key); p.Endpoint != s.LocalAddr().String() {
		t.Errorf("path %+v", p)
	}
}

// TestCloseOpen keeps peers and the port over cycles.
func TestCloseOpen(t *testing.T) {
	s, _ := startRelay(t, "127.0.0.1:0")
	a, b := pair(t, s.LocalAddr())
	b.waitFor("up")
	for range 3 {
		a.waitFor("up")
		exchange(t, a, b)
		port := a.port
		a.stop()
		if err := a.Close(); err != nil {
			t.Errorf("closed twice: %v", err)
		}
		if err := a.Send([][]byte{data(100, 1)}, a.endpoint(b)); err != nil {
			t.Errorf("send while closed: %v", err)
		}
		a.start()
		if _, _, err := a.Open(0); err == nil {
			t.Error("opened twice")
		}
		if a.port != port {
			t.Errorf("port %d became %d", port, a.port)
		}
		if p := b.next(); len(p.b) != 100 {
			t.Errorf("%d bytes arrived, want the 100 that were held", len(p.b))
		}
	}
}

// TestPeersComeAndGo keeps one endpoint object per peer as long as somebody
// holds it, and none longer.
func TestPeersComeAndGo(t *testing.T) {
	b := New(Options{})
	k := key.NewPrivate().Public()
	early, err := b.ParseEndpoint(Endpoint(k))
	if err != nil {
		t.Fatal(err)
	}
	if p := b.Path(k); p.Reason != reasonUnknownPeer {
		t.Errorf("path %+v", p)
	}
	b.SetPeers([]Peer{{Key: k, Label: 5}})
	if p := b.Path(k); p.Reason != reasonNoRelay {
		t.Errorf("path %+v", p)
	}
	b.SetPeers(nil)
	again, err := b.ParseEndpoint(Endpoint(k))
	if err != nil || again != early {
		t.Errorf("another object, %v", err)
	}
	b.SetPeers([]Peer{{Key: k, Label: 6}})
	if b.peers[k] != early {
		t.Error("another object after it came back")
	}
	b.SetPeers(nil)
	runtime.KeepAlive(early)
	early, again = nil, nil
	for range 3 {
		runtime.GC()
	}
	b.SetPeers(nil)
	if len(b.retired) != 0 {
		t.Error("a peer nobody holds is still known")
	}
	for _, s := range []string{"", "1.2.3.4:5", k.String()} {
		if _, err := b.ParseEndpoint(s); err == nil {
			t.Errorf("%q was taken", s)
		}
	}
}

// TestConcurrently does everything at once; it is for the race detector.
func TestConcurrently(t *testing.T) {
	s, _ := startRelay(t, "127.0.0.1:0")
	a, b := pair(t, s.LocalAddr())
	a.waitFor("up")
	b.waitFor("up")
	var wg sync.WaitGroup
	stop := make(chan struct{})
	repeat := func(f func()) {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					f()
					runtime.Gosched()
				}
			}
		})
	}
	for range 3 {
		ep := a.endpoint(b)
		bufs := [][]byte{data(100, 1), data(100, 2), data(50, 3)}
		repeat(func() { _ = a.Send(bufs, ep) })
	}
	repeat(func() { a.SetPeers([]Peer{b.as()}) })
	repeat(func() { a.SetRelays([]Relay{at(a.label, s.LocalAddr())}) })
	repeat(func() { a.Kick(); a.Relays(); a.Counters(); a.Path(b.key) })
	repeat(func() {
		select {
		case <-b.got:
		default:
		}
	})
	for range 5 {
		time.Sleep(10 * time.Millisecond)
		a.stop()
		a.start()
	}
	close(stop)
	wg.Wait()
	a.waitFor("up")
	for len(b.got) > 0 {
		<-b.got
	}
}

func TestSendAllocatesNothing(t *testing.T) {
	s, _ := startRelay(t, "127.0.0.1:0")
	a, b := pair(t, s.LocalAddr())
	a.waitFor("up")
	bufs := make([][]byte, 128)
	for i := range bufs {
		bufs[i] = data(1400, 1)
	}
	bufs[127] = bufs[127][:200]
	// The relay and the receiving host are in this process, and allocate: give
	// what is sent an unknown label.
	a.SetPeers([]Peer{{Key: b.key, Label: 77}})
	ep := a.endpoint(b)
	if n := testing.AllocsPerRun(100, func() {
		if err := a.Send(bufs, ep); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestRunRests: Run looks at once when it is poked, but whoever pokes it all the
// time does not keep it busy.
func TestRunRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(Options{})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- b.Run(ctx) }()
		looks := func() bool {
			b.hush.Store(true) // a look takes it away
			b.wake()
			synctest.Wait()
			return !b.hush.Load()
		}
		time.Sleep(time.Second)
		if !looks() {
			t.Error("the first poke has to wait")
		}
		for range 10 {
			if looks() {
				t.Error("it looks twice at one moment")
			}
		}
		time.Sleep(shortestNap)
		synctest.Wait()
		if b.hush.Load() {
			t.Error("a poke is forgotten")
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
