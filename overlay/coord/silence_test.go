package coord

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"overlayd/overlay/key"
)

// wire is a network of pipes that can be cut: then bytes vanish, as on a line
// whose NAT forgot it.
type wire struct {
	accept chan net.Conn
	done   chan struct{}
	refuse atomic.Bool // new connections fail
	mu     sync.Mutex
	conns  []*cutConn
}

type cutConn struct {
	net.Conn
	cut atomic.Bool
}

func (c *cutConn) Write(b []byte) (int, error) {
	if c.cut.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func newWire() *wire { return &wire{accept: make(chan net.Conn), done: make(chan struct{})} }

func (w *wire) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	if w.refuse.Load() {
		return nil, errors.New("no route to host")
	}
	a, b := net.Pipe()
	ours, theirs := &cutConn{Conn: a}, &cutConn{Conn: b}
	w.mu.Lock()
	w.conns = append(w.conns, ours, theirs)
	w.mu.Unlock()
	select {
	case w.accept <- theirs:
		return ours, nil
	case <-w.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		c.cut.Store(true)
	}
	w.conns = nil
}

func (w *wire) Accept() (net.Conn, error) {
	select {
	case c := <-w.accept:
		return c, nil
	case <-w.done:
		return nil, net.ErrClosed
	}
}

func (w *wire) Close() error {
	select {
	case <-w.done:
	default:
		close(w.done)
	}
	return nil
}

func (w *wire) Addr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort("203.0.113.10:443"))
}

// wireNetwork is a coordinator at one end of a wire, and a client at the other.
func wireNetwork(ctx context.Context, t *testing.T, path string, w *wire, running *sync.WaitGroup) (*Server, *http.Server, *Client) {
	t.Helper()
	store, err := OpenBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	cert, pin, err := SelfSigned(key.NewMachine(), "203.0.113.10")
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewServer(ServerOptions{Store: store, Overlay: testOverlay, Endpoint: w.Addr().String(), Pin: pin, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	web := NewHTTPServer(s.Handler(), cert, slog.New(slog.DiscardHandler))
	running.Go(func() { web.ServeTLS(w, "", "") })
	running.Go(func() { s.Run(ctx) })
	c, err := NewClient(ClientOptions{Endpoint: w.Addr().String(), Pin: pin, Machine: key.NewMachine(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	c.dial = w.dial
	return s, web, c
}

// heardNode is a node that follows its map over a wire, in virtual time.
type heardNode struct {
	t    *testing.T
	wire *wire
	s    *Server
	c    *Client
	id   string

	mu   sync.Mutex // guards what follows
	last ControlState
	lost int // how often
}

// heard runs a test with such a node, which has just come.
func heard(t *testing.T, test func(n *heardNode)) {
	path := filepath.Join(t.TempDir(), "db")
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		n := &heardNode{t: t, wire: newWire()}
		var wg sync.WaitGroup
		var web *http.Server
		n.s, web, n.c = wireNetwork(ctx, t, path, n.wire, &wg)
		link, err := n.s.Invite(ctx, Invite{})
		if err != nil {
			t.Fatal(err)
		}
		me, err := n.c.Enroll(ctx, EnrollRequest{Invite: link.Invite, Secret: link.Secret, WireGuard: key.NewPrivate().Public()})
		if err != nil {
			t.Fatal(err)
		}
		n.id = me.NodeID
		wg.Go(func() { n.c.Follow(ctx, FollowOptions{OnMap: func(*Map) {}, OnState: n.note}) })
		time.Sleep(time.Second)
		n.expect("at first", PhaseConnected, true)
		test(n)
		cancel()
		web.Close()
		wg.Wait()
	})
}

func (n *heardNode) note(st ControlState) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.last = st; st.Phase == PhaseLost {
		n.lost++
	}
}

func (n *heardNode) state() (ControlState, int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.last, n.lost
}

// online is what the server thinks.
func (n *heardNode) online() bool { return n.s.presence.sighting(n.id).online }

func (n *heardNode) expect(when string, phase Phase, online bool) {
	n.t.Helper()
	synctest.Wait()
	if st, _ := n.state(); st.Phase != phase || n.online() != online {
		n.t.Errorf("%s: the node is %s (%v), and online at the server: %v", when, st.Phase, st.Err, n.online())
	}
}

// TestSilence cuts the line under a stream. Both sides notice within 15 s, the node
// comes back when the line does, and an idle line of an hour loses nothing.
func TestSilence(t *testing.T) {
	heard(t, func(n *heardNode) {
		time.Sleep(time.Hour)
		n.expect("after an idle hour", PhaseConnected, true)
		if _, lost := n.state(); lost != 0 {
			t.Errorf("an idle line was lost %d times", lost)
		}

		n.wire.refuse.Store(true)
		n.wire.cut()
		cut := time.Now()
		for range 16 * 1000 {
			if st, _ := n.state(); st.Phase != PhaseConnected && !n.online() {
				break
			}
			time.Sleep(time.Millisecond)
			synctest.Wait()
		}
		if st, _ := n.state(); st.Phase == PhaseConnected || n.online() || time.Since(cut) > silence {
			t.Errorf("%s after the cut the node is %s, and online at the server: %v", time.Since(cut), st.Phase, n.online())
		}
		time.Sleep(time.Minute)
		n.wire.refuse.Store(false)
		time.Sleep(retryMost)
		n.expect("after the line is back", PhaseConnected, true)
	})
}

// TestKick: a dead line is noticed at once, a sound one is kept, and one who waits
// for his next try makes it.
func TestKick(t *testing.T) {
	heard(t, func(n *heardNode) {
		since, before := n.state()
		n.c.Kick()
		time.Sleep(checkTime)
		n.expect("kicked on a sound line", PhaseConnected, true)
		if st, lost := n.state(); lost != before || st.Since != since.Since {
			t.Error("a sound line was given up")
		}
		n.wire.cut()
		n.c.Kick()
		time.Sleep(checkTime + 100*time.Millisecond)
		n.expect("kicked on a dead line", PhaseConnected, true)
		if st, _ := n.state(); st.Since == since.Since {
			t.Error("the dead line counts as sound")
		}
		n.wire.refuse.Store(true)
		n.wire.cut()
		time.Sleep(2 * time.Minute) // it waits for the next try now, some seconds each time
		n.wire.refuse.Store(false)
		n.c.Kick()
		time.Sleep(10 * time.Millisecond)
		n.expect("kicked while it waits", PhaseConnected, true)
	})
}
