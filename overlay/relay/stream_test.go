package relay

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/websocket"
)

// web serves a relay's streams by HTTPS on loopback, until the test ends.
func web(t testing.TB, h http.Handler) (endpoint string, believe *tls.Config) {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.EnableHTTP2 = true // as the coordinator's server does
	s.StartTLS()
	t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return s.Listener.Addr().String(), &tls.Config{RootCAs: roots, ServerName: "example.com"}
}

func noProxy(*http.Request) (*url.URL, error) { return nil, nil }

// webNode drives a Session over a Stream.
type webNode struct {
	testNode
	stream *Stream
	sink   atomic.Pointer[atomic.Int64] // counts bytes instead of keeping them; nil: they are kept
	came   chan struct{}
}

func startWebNode(t testing.TB, endpoint string, believe *tls.Config, l Label) *webNode {
	t.Helper()
	st, err := Dial(t.Context(), DialOptions{Endpoint: endpoint, TLS: believe, Proxy: noProxy})
	if err != nil {
		t.Fatal(err)
	}
	ticket, k := pass(testNetwork, l, uint64(l), time.Now().Add(time.Hour))
	n := &webNode{stream: st, came: make(chan struct{}, 1), testNode: testNode{
		t: t, session: NewSession(SessionOptions{Ticket: ticket, Key: k}),
		data: make(chan []byte, 5000), wake: make(chan struct{}, 1),
	}}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(n.read)
	wg.Go(func() { n.drive(ctx) })
	t.Cleanup(func() {
		cancel()
		st.Close()
		st.Wait()
		wg.Wait()
	})
	return n
}

func (n *webNode) read() {
	for {
		trains, err := n.stream.Read()
		if sink := n.sink.Load(); sink != nil {
			for _, tr := range trains {
				sink.Add(int64(len(tr.Buf)))
			}
			select {
			case n.came <- struct{}{}:
			default:
			}
			trains = nil
		}
		for _, tr := range trains {
			for b := tr.Buf; len(b) > 0; {
				d := b[:min(tr.Size, len(b))]
				b = b[len(d):]
				if d[0] != kindControl {
					n.data <- bytes.Clone(d)
					continue
				}
				if reply := n.session.Handle(time.Now(), d); reply != nil {
					n.stream.SendControl(reply)
				}
				select {
				case n.wake <- struct{}{}:
				default:
				}
			}
		}
		if err != nil {
			return
		}
	}
}

func (n *webNode) drive(ctx context.Context) {
	for {
		frame, next := n.session.Tick(time.Now())
		if frame != nil {
			n.stream.SendControl(frame)
		}
		select {
		case <-ctx.Done():
			return
		case <-n.wake:
		case <-time.After(time.Until(next)):
		}
	}
}

// exchange sends trains both ways and looks at what arrives.
func exchange(t *testing.T, sendA, sendB func(train []byte, size int), a, b *testNode, la, lb Label) {
	t.Helper()
	for _, dir := range []struct {
		send     func([]byte, int)
		to       *testNode
		from, at Label
	}{{sendA, b, la, lb}, {sendB, a, lb, la}} {
		var train []byte
		var want [][]byte
		for i := range 30 {
			size := 1200
			if i == 29 {
				size = 77 // the last of a train may be shorter
			}
			d := datagram(dir.at, size, byte(i))
			train = append(train, d...)
			d = bytes.Clone(d)
			stamp(d, dir.from)
			want = append(want, d)
		}
		dir.send(train, 1200)
		for i := range want {
			if got := dir.to.receive(); !bytes.Equal(got, want[i]) {
				t.Fatalf("from %d: datagram %d differs: %d bytes, label %d", dir.from, i, len(got), labelOf(got))
			}
		}
	}
}

func (n *webNode) sendTrain(train []byte, size int) { n.stream.Send(bytes.Clone(train), size) }

func (n *testNode) sendTrain(train []byte, size int) {
	w := n.sock.NewWriter()
	w.Add(n.relay, size, train)
	w.Flush()
}

// TestStreams carries trains between nodes by TLS, by UDP, and the relay's own.
func TestStreams(t *testing.T) {
	s, _ := startServer(t, netip.MustParseAddrPort("127.0.0.1:0"))
	endpoint, believe := web(t, s)
	a, b := startWebNode(t, endpoint, believe, 11), startWebNode(t, endpoint, believe, 12)
	c := startNode(t, s.LocalAddr(), 13)
	p := s.Attach(testNetwork, 10)
	defer p.Close()
	for _, n := range []*testNode{&a.testNode, &b.testNode, c} {
		n.waitUp()
	}
	if st := a.session.Status(); !st.Observed.Addr().IsLoopback() || st.RTT <= 0 {
		t.Errorf("status %+v", st)
	}
	t.Run("tls to tls", func(t *testing.T) {
		exchange(t, a.sendTrain, b.sendTrain, &a.testNode, &b.testNode, 11, 12)
	})
	t.Run("tls to udp", func(t *testing.T) {
		exchange(t, a.sendTrain, c.sendTrain, &a.testNode, c, 11, 13)
	})
	t.Run("tls to the own node", func(t *testing.T) {
		a.stream.Send(datagram(0, 500, 1), 500)
		bufs, sizes, src := [][]byte{make([]byte, 2000)}, make([]int, 1), make([]Label, 1)
		if n, err := p.Receive(bufs, sizes, src); n != 1 || err != nil || src[0] != 11 || sizes[0] != 500 {
			t.Fatal(n, err, src, sizes)
		}
		p.Send(11, [][]byte{datagram(0, 600, 2), datagram(0, 90, 3)})
		for _, want := range []int{600, 90} {
			if got := a.receive(); len(got) != want || labelOf(got) != 10 {
				t.Errorf("%d bytes from %d", len(got), labelOf(got))
			}
		}
	})
	if c := s.Counters(); c["sessions"] != 3 || c["streams"] != 2 || c["streams_opened"] != 2 {
		t.Errorf("%v", c)
	}
}

// TestStreamAndBack moves a node between UDP and TLS: the connection that it
// left is closed, and one that goes takes its session along.
func TestStreamAndBack(t *testing.T) {
	s, _ := startServer(t, netip.MustParseAddrPort("127.0.0.1:0"))
	s.calls.patience = 50 * time.Millisecond
	endpoint, believe := web(t, s)
	peer := startNode(t, s.LocalAddr(), 12)
	peer.waitUp()
	first := startNode(t, s.LocalAddr(), 11)
	first.waitUp()
	tls := startWebNode(t, endpoint, believe, 11)
	tls.waitUp()
	peer.send(datagram(11, 100, 1))
	if got := tls.receive(); labelOf(got) != 12 {
		t.Error("it did not move to TLS")
	}
	again := startNode(t, s.LocalAddr(), 11)
	again.waitUp()
	peer.send(datagram(11, 100, 2))
	if got := again.receive(); labelOf(got) != 12 {
		t.Error("it did not move back")
	}
	waitFor(t, "the left stream's end", func() bool { return s.Counters()["streams"] == 0 })
	if c := s.Counters(); c["sessions"] != 2 || c["streams_idle"] != 1 {
		t.Errorf("%v", c)
	}
	other := startWebNode(t, endpoint, believe, 13)
	other.waitUp()
	other.stream.Close()
	waitFor(t, "the session's end", func() bool { return s.Sessions() == 2 })
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s does not come", what)
		}
	}
}

// TestStreamGoodbye: a relay that stops tells its streams, and a node that was
// removed.
func TestStreamGoodbye(t *testing.T) {
	s, stop := startServer(t, netip.MustParseAddrPort("127.0.0.1:0"))
	endpoint, believe := web(t, s)
	a, b := startWebNode(t, endpoint, believe, 11), startWebNode(t, endpoint, believe, 12)
	a.waitUp()
	b.waitUp()
	s.Disconnect(testNetwork, 11, 11)
	a.waitFor(func(st SessionStatus) bool { return st.Reason == ReasonRemoved })
	a.stream.Wait()
	stop()
	b.waitFor(func(st SessionStatus) bool { return st.Reason == ReasonStopping })
	b.stream.Wait()
	if _, err := Dial(t.Context(), DialOptions{Endpoint: endpoint, TLS: believe, Proxy: noProxy}); obstacleOf(err) != ObstacleFull {
		t.Errorf("a stopped relay: %v", err)
	}
}

func obstacleOf(err error) Obstacle {
	if e, ok := errors.AsType[*DialError](err); ok {
		return e.Obstacle
	}
	return ""
}

// TestSlowStream: a node that does not read loses what is old, and nobody else
// notices.
func TestSlowStream(t *testing.T) {
	s, _ := startServer(t, netip.MustParseAddrPort("127.0.0.1:0"))
	endpoint, believe := web(t, s)
	sender, good := startWebNode(t, endpoint, believe, 11), startWebNode(t, endpoint, believe, 12)
	sender.waitUp()
	good.waitUp()
	st, err := Dial(t.Context(), DialOptions{Endpoint: endpoint, TLS: believe, Proxy: noProxy})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Wait()
	defer st.Close()
	ticket, k := pass(testNetwork, 66, 66, time.Now().Add(time.Hour))
	slow := NewSession(SessionOptions{Ticket: ticket, Key: k})
	frame, _ := slow.Tick(time.Now())
	st.SendControl(frame)
	for slow.Status().State != Up {
		trains, err := st.Read()
		if err != nil {
			t.Fatal(err)
		}
		if reply := slow.Handle(time.Now(), trains[0].Buf); reply != nil {
			st.SendControl(reply)
		}
	}
	// From here on nobody reads st.
	const size = 1300
	train := bytes.Repeat(datagram(66, size, 1), 20)
	for i := 0; s.Counters()["drop_slow_stream"] == 0; i++ {
		if i > 1_000_000 {
			t.Fatal("nothing is dropped")
		}
		sender.stream.Send(train, size)
		if i%100 == 0 {
			sender.stream.Send(datagram(12, 100, 7), 100)
			if got := good.receive(); labelOf(got) != 11 {
				t.Fatal("the other node got something else")
			}
		}
	}
	if n := s.calls.len(); n != 3 {
		t.Errorf("%d streams", n)
	}
}

// TestStreamLimits: strangers get neither much room nor much time.
func TestStreamLimits(t *testing.T) {
	s, _ := startServer(t, netip.MustParseAddrPort("127.0.0.1:0"))
	s.calls.patience = time.Second // more than three handshakes take on a busy machine
	s.calls.most = 2
	endpoint, believe := web(t, s)
	dial := func() (*Stream, error) {
		return Dial(t.Context(), DialOptions{Endpoint: endpoint, TLS: believe, Proxy: noProxy})
	}
	var quiet []*Stream
	for range 2 {
		st, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		quiet = append(quiet, st)
	}
	if _, err := dial(); obstacleOf(err) != ObstacleFull {
		t.Errorf("a third one: %v", err)
	}
	for _, st := range quiet {
		go func() { // it talks all the time, of nothing
			for st.SendControl(make([]byte, pingSize)) || st.isOpen() {
				time.Sleep(time.Millisecond)
			}
		}()
		for { // until the relay hangs up
			if _, err := st.Read(); err != nil {
				break
			}
		}
		st.Close()
		st.Wait()
	}
	if c := s.Counters(); c["streams_idle"] != 2 || c["streams_refused"] != 1 {
		t.Errorf("%v", c)
	}
}

func (s *Stream) isOpen() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.closed
}

func TestStreamsPerSource(t *testing.T) {
	c := &calls{most: 1000, all: map[*call]struct{}{}, sources: map[netip.Addr]int{}}
	var open []*call
	for i := range maxStreamsPerSource + 10 { // one customer's IPv6 network is one source
		if o := c.open(netip.MustParseAddrPort(fmt.Sprintf("[2001:db8::%x]:1", i+1))); o != nil {
			open = append(open, o)
		}
	}
	if len(open) != maxStreamsPerSource {
		t.Errorf("%d of one source", len(open))
	}
	if o := c.open(netip.MustParseAddrPort("192.0.2.1:1")); o == nil {
		t.Error("others are kept out")
	} else {
		open = append(open, o)
	}
	for _, o := range open {
		c.done(o)
	}
	if c.len() != 0 || len(c.sources) != 0 {
		t.Errorf("left over: %d, %v", c.len(), c.sources)
	}
}

// TestReplayedAttach: what one connection has seen counts for nothing on another.
func TestReplayedAttach(t *testing.T) {
	tb := newTable(10, 10)
	start := time.Unix(1000, 0)
	d := newDoor(testSecret, start, tb)
	ticket, k := pass(testNetwork, 11, 1, start.Add(time.Hour))
	f := attach{nonce: nonce{1}, ticket: [ticketSize]byte(ticket)}
	addr := netip.MustParseAddrPort("192.0.2.1:443")
	one := origin{addr, &call{id: 1, idle: time.NewTimer(time.Hour), patience: time.Hour}}
	two := origin{addr, &call{id: 2, idle: time.NewTimer(time.Hour), patience: time.Hour}}
	reply, what := d.control(nil, start, one, f.Append(nil, k))
	if what != challenged {
		t.Fatal(eventNames[what])
	}
	f.token = parseChallenge(reply).token
	second := f.Append(nil, k)
	for _, from := range []origin{two, byUDP(addr)} {
		if _, what := d.control(nil, start, from, second); what != challenged {
			t.Errorf("%s", eventNames[what])
		}
	}
	if _, what := d.control(nil, start, one, second); what != attached || tb.from(one) == nil || tb.from(two) != nil || tb.at(addr) != nil {
		t.Errorf("%s", eventNames[what])
	}
}

// TestForeignWebSocket: another's implementation understands us, with pings and
// fragments of its own making.
func TestForeignWebSocket(t *testing.T) {
	s, _ := startServer(t, netip.MustParseAddrPort("127.0.0.1:0"))
	endpoint, believe := web(t, s)
	config, err := websocket.NewConfig("wss://"+endpoint+StreamPath, "https://example.com")
	if err != nil {
		t.Fatal(err)
	}
	config.TlsConfig = believe
	ws, err := websocket.DialConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	ws.PayloadType = websocket.BinaryFrame
	ticket, k := pass(testNetwork, 11, 1, time.Now().Add(time.Hour))
	session := NewSession(SessionOptions{Ticket: ticket, Key: k})
	frame, _ := session.Tick(time.Now())
	for session.Status().State != Up {
		if w, err := ws.NewFrameWriter(websocket.PingFrame); err != nil {
			t.Fatal(err)
		} else if _, err := w.Write([]byte("are you there")); err != nil {
			t.Fatal(err)
		}
		if err := websocket.Message.Send(ws, appendDatagram(nil, frame)); err != nil {
			t.Fatal(err)
		}
		var m []byte
		if err := websocket.Message.Receive(ws, &m); err != nil {
			t.Fatal(err)
		}
		got, err := trains(nil, m)
		if err != nil || len(got) != 1 {
			t.Fatal(got, err)
		}
		frame = session.Handle(time.Now(), got[0].Buf)
	}
	// And the other way round.
	echo := websocket.Server{Handler: func(ws *websocket.Conn) {
		ws.PayloadType = websocket.BinaryFrame
		io.Copy(ws, ws)
	}}
	endpoint, believe = web(t, echo)
	st, err := Dial(t.Context(), DialOptions{Endpoint: endpoint, TLS: believe, Proxy: noProxy})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Wait()
	defer st.Close()
	for _, size := range []int{1, 123, 124, 125, 126, 1000, 16000, 65533, 65534, 65535} {
		d := bytes.Repeat([]byte{byte(size)}, size)
		st.Send(d, size)
		var got []byte
		for len(got) < lengthSize+size { // an echo of bytes, not of messages
			n, err := st.in.message(st.message)
			if err != nil {
				t.Fatal(size, err)
			}
			got = append(got, st.message[:n]...)
		}
		if !bytes.Equal(got, appendDatagram(nil, d)) {
			t.Errorf("%d bytes come back changed", size)
		}
	}
}

// selfSigned is a certificate that nobody believes.
func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "box"}, NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"example.com"}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}
}

// listen serves each connection by f, until the test ends.
func listen(t *testing.T, f func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				f(c)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
	return ln.Addr().String()
}

// connectProxy is an HTTP proxy that knows CONNECT.
func connectProxy(t *testing.T) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, word, ok := parseProxyLogin(r)
		if r.Method != http.MethodConnect || !ok || user != "anna" || word != "hidden-word" {
			t.Errorf("%s by %q", r.Method, user)
			return
		}
		out, err := net.Dial("tcp", r.Host)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer out.Close()
		in, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer in.Close()
		io.WriteString(in, "HTTP/1.1 200 OK\r\n\r\n")
		go func() {
			io.Copy(out, in)
			out.Close()
		}()
		io.Copy(in, out)
	})
}

func parseProxyLogin(r *http.Request) (user, word string, ok bool) {
	return (&http.Request{Header: http.Header{"Authorization": r.Header["Proxy-Authorization"]}}).BasicAuth()
}

// TestDialEnds: a dial that nobody wants any more ends at once.
func TestDialEnds(t *testing.T) {
	silent := listen(t, func(c net.Conn) { io.Copy(io.Discard, c) })
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := Dial(ctx, DialOptions{Endpoint: silent, Proxy: noProxy}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
