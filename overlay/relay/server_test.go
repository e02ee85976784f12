package relay

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"overlayd/overlay/key"
	"overlayd/overlay/udp"
)

var (
	testSecret  = key.NewSecret()
	testNetwork = Network{1, 2, 3}
)

// pass makes what a coordinator would hand to a node.
func pass(n Network, l Label, serial uint64, notAfter time.Time) ([]byte, key.Secret) {
	b := Ticket{Network: n, Label: l, NotAfter: notAfter, Serial: serial}.Append(nil)
	return b, SessionKey(testSecret, b)
}

// startServer runs a relay on loopback until the test ends, or stop is called.
func startServer(t testing.TB, listen netip.AddrPort) (s *Server, stop func()) {
	t.Helper()
	s, err := NewServer(ServerOptions{Listen: listen, Secret: testSecret, Log: slog.New(slog.DiscardHandler), Shards: 2})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return s, stop
}

// testNode drives a Session over a real socket.
type testNode struct {
	t       testing.TB
	relay   netip.AddrPort
	sock    *udp.Socket
	session *Session
	data    chan []byte
	wake    chan struct{}
}

func startNode(t testing.TB, relay netip.AddrPort, l Label) *testNode {
	t.Helper()
	ticket, k := pass(testNetwork, l, uint64(l), time.Now().Add(time.Hour))
	any := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	if relay.Addr().Is6() {
		any = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
	}
	sock, err := udp.Listen(any, udp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	n := &testNode{
		t: t, relay: relay, sock: sock,
		session: NewSession(SessionOptions{Ticket: ticket, Key: k}),
		data:    make(chan []byte, 1000),
		wake:    make(chan struct{}, 1),
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(n.read)
	wg.Go(func() { n.drive(ctx) })
	t.Cleanup(func() {
		cancel()
		sock.Close()
		wg.Wait()
	})
	return n
}

func (n *testNode) read() {
	r := n.sock.NewReader(4)
	for {
		trains, err := r.Read()
		if err != nil {
			return
		}
		for _, tr := range trains {
			for b := tr.Buf; len(b) > 0; {
				d := b[:min(tr.Size, len(b))]
				b = b[len(d):]
				if d[0] != kindControl {
					n.session.Heard(time.Now())
					n.data <- bytes.Clone(d)
					continue
				}
				if reply := n.session.Handle(time.Now(), d); reply != nil {
					n.sock.Send(n.relay, reply)
				}
				select {
				case n.wake <- struct{}{}:
				default:
				}
			}
		}
	}
}

func (n *testNode) drive(ctx context.Context) {
	for {
		frame, next := n.session.Tick(time.Now())
		if frame != nil {
			n.sock.Send(n.relay, frame)
		}
		select {
		case <-ctx.Done():
			return
		case <-n.wake:
		case <-time.After(time.Until(next)):
		}
	}
}

// waitUp waits until the session is up.
func (n *testNode) waitUp() {
	n.t.Helper()
	n.waitFor(func(s SessionStatus) bool { return s.State == Up })
}

func (n *testNode) waitFor(ok func(SessionStatus) bool) {
	n.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(5 * time.Second)
	for !ok(n.session.Status()) {
		select {
		case <-tick.C:
		case <-deadline:
			n.t.Fatalf("status %+v", n.session.Status())
		}
	}
}

// datagram makes a transport message of size bytes for dst.
func datagram(dst Label, size int, seed byte) []byte {
	b := make([]byte, size)
	b[0] = dataTransport
	stamp(b, dst)
	for i := headerSize; i < size; i++ {
		b[i] = seed + byte(i)
	}
	return b
}

func (n *testNode) send(b []byte) {
	n.session.Sent(time.Now())
	if err := n.sock.Send(n.relay, b); err != nil {
		n.t.Error(err)
	}
}

func (n *testNode) receive() []byte {
	n.t.Helper()
	select {
	case b := <-n.data:
		return b
	case <-time.After(5 * time.Second):
		n.t.Fatal("nothing came")
		return nil
	}
}

func TestTwoNodes(t *testing.T) {
	for _, loop := range []string{"127.0.0.1:0", "[::1]:0", "0.0.0.0:0"} {
		t.Run(loop, func(t *testing.T) {
			s, _ := startServer(t, netip.MustParseAddrPort(loop))
			at4 := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), s.LocalAddr().Port())
			at6 := netip.AddrPortFrom(netip.IPv6Loopback(), s.LocalAddr().Port())
			a, b := at4, at4
			if s.LocalAddr().Addr().Is6() {
				a, b = at6, at6
			} else if s.LocalAddr().Addr().IsUnspecified() && s.shards[0].v6 != nil {
				b = at6 // the two families meet
			}
			laptop, gateway := startNode(t, a, 11), startNode(t, b, 200)
			laptop.waitUp()
			gateway.waitUp()
			if got := laptop.session.Status(); got.Observed.Port() != laptop.sock.LocalAddr().Port() || got.RTT <= 0 {
				t.Errorf("status %+v", got)
			}
			w := laptop.sock.NewWriter()
			var want [][]byte
			for i := range 100 {
				d := datagram(200, 1000, byte(i))
				w.Add(laptop.relay, len(d), d)
				d = bytes.Clone(d)
				stamp(d, 11)
				want = append(want, d)
			}
			if n := w.Flush(); n != 0 {
				t.Fatal(n)
			}
			for i := range want {
				if got := gateway.receive(); !bytes.Equal(got, want[i]) {
					t.Fatalf("datagram %d differs", i)
				}
			}
			gateway.send(datagram(11, 148, 1)) // not a length for type 4 only: any from 32 on is
			if got := laptop.receive(); labelOf(got) != 200 {
				t.Errorf("came from label %d", labelOf(got))
			}
			c := s.Counters() // which counts after it has sent
			for end := time.Now().Add(5 * time.Second); c["forwarded_datagrams"] < 101 && time.Now().Before(end); c = s.Counters() {
				runtime.Gosched()
			}
			if c["forwarded_datagrams"] != 101 || c["sessions"] != 2 {
				t.Errorf("%v", c)
			}
		})
	}
}

func TestPort(t *testing.T) {
	s, _ := startServer(t, netip.MustParseAddrPort("127.0.0.1:0"))
	p := s.Attach(testNetwork, 10)
	node := startNode(t, s.LocalAddr(), 11)
	node.waitUp()
	node.send(datagram(10, 500, 1))
	node.send(datagram(0, 501, 2))
	bufs := [][]byte{make([]byte, 2000), make([]byte, 2000), make([]byte, 2000)}
	sizes, src := make([]int, 3), make([]Label, 3)
	for got := 0; got < 2; {
		n, err := p.Receive(bufs, sizes, src)
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			want := datagram(0, 500+got, byte(1+got))
			if src[i] != 11 || !bytes.Equal(bufs[i][:sizes[i]], want) {
				t.Errorf("datagram %d: from %d, %d bytes", got, src[i], sizes[i])
			}
			got++
		}
	}
	out := [][]byte{datagram(0, 800, 3), datagram(0, 800, 4), datagram(0, 90, 5)}
	p.Send(11, out)
	for i := range out {
		if labelOf(out[i]) != 0 {
			t.Error("Send left the label in")
		}
		got := node.receive()
		if labelOf(got) != 10 {
			t.Errorf("came from label %d", labelOf(got))
		}
		stamp(got, 0)
		if !bytes.Equal(got, out[i]) {
			t.Errorf("datagram %d differs", i)
		}
	}
	p.Send(10, out) // to itself
	p.Send(99, out) // to nobody
	if c := s.Counters(); c["drop_no_peer"] != 6 {
		t.Errorf("%v", c)
	}
	done := make(chan error)
	go func() {
		_, err := p.Receive(bufs, sizes, src)
		done <- err
	}()
	p.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	node.send(datagram(10, 500, 1))
	p2 := s.Attach(testNetwork, 10)
	defer p2.Close()
}

// TestRestart stops the relay under two nodes; the next one has no session of
// theirs, and says so.
func TestRestart(t *testing.T) {
	s, stop := startServer(t, netip.MustParseAddrPort("127.0.0.1:0"))
	a, b := startNode(t, s.LocalAddr(), 11), startNode(t, s.LocalAddr(), 12)
	a.waitUp()
	b.waitUp()
	boot := a.session.Status().BootID
	for _, h := range s.shards { // as kill -9: no GOAWAY
		for _, k := range h.sockets() {
			k.Close()
		}
	}
	stop()
	s2, _ := startServer(t, s.LocalAddr())
	b.session.Kick(time.Now())
	b.wake <- struct{}{}
	a.send(datagram(12, 100, 1)) // UNKNOWN comes back
	restarted := func(st SessionStatus) bool { return st.State == Up && st.BootID != boot }
	a.waitFor(restarted)
	b.waitFor(restarted)
	a.send(datagram(12, 100, 2))
	if got := b.receive(); labelOf(got) != 11 {
		t.Errorf("came from %d", labelOf(got))
	}
	if n := s2.Sessions(); n != 2 {
		t.Errorf("%d sessions", n)
	}
}

func TestDisconnect(t *testing.T) {
	s, _ := startServer(t, netip.MustParseAddrPort("127.0.0.1:0"))
	a := startNode(t, s.LocalAddr(), 11)
	a.waitUp()
	s.Disconnect(testNetwork, 11, 11)
	a.waitFor(func(st SessionStatus) bool { return st.State == Lost && st.Reason == ReasonRemoved })
	if s.Sessions() != 0 {
		t.Error("it still has a session")
	}
	a.session.Kick(time.Now()) // it tries again, and is refused
	a.wake <- struct{}{}
	a.waitFor(func(SessionStatus) bool { return s.Counters()["attaches_refused"] > 0 })
	a.session.Renew(pass(testNetwork, 11, 12, time.Now().Add(time.Hour))) // the label's next owner
	a.wake <- struct{}{}
	a.waitUp()
}

func TestPortInUse(t *testing.T) {
	s, _ := startServer(t, netip.MustParseAddrPort("127.0.0.1:0"))
	if _, err := NewServer(ServerOptions{Listen: s.LocalAddr(), Secret: testSecret, Shards: 2}); err == nil {
		t.Error("two relays on one port")
	}
}
