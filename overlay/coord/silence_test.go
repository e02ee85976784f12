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

// TestSilence cuts the line under a stream, in virtual time. Both sides notice
// within 15 s, the node comes back when the line does, and an idle line of an
// hour loses nothing.
func TestSilence(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w := newWire()
		var wg sync.WaitGroup
		s, web, c := wireNetwork(ctx, t, path, w, &wg)
		link, err := s.Invite(ctx, Invite{})
		if err != nil {
			t.Fatal(err)
		}
		me, err := c.Enroll(ctx, EnrollRequest{Invite: link.Invite, Secret: link.Secret, WireGuard: key.NewPrivate().Public()})
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var last ControlState
		lost := 0
		state := func() (ControlState, int) {
			mu.Lock()
			defer mu.Unlock()
			return last, lost
		}
		wg.Go(func() {
			c.Follow(ctx, FollowOptions{OnMap: func(*Map) {}, OnState: func(st ControlState) {
				mu.Lock()
				defer mu.Unlock()
				if last = st; st.Phase == PhaseLost {
					lost++
				}
			}})
		})
		expect := func(when string, phase Phase, online bool) {
			t.Helper()
			synctest.Wait()
			if st, _ := state(); st.Phase != phase || s.presence.sighting(me.NodeID).online != online {
				t.Errorf("%s: the node is %s (%v), and online at the server: %v", when, st.Phase, st.Err, !online)
			}
		}
		time.Sleep(time.Second)
		expect("at first", PhaseConnected, true)
		time.Sleep(time.Hour)
		expect("after an idle hour", PhaseConnected, true)
		if _, n := state(); n != 0 {
			t.Errorf("an idle line was lost %d times", n)
		}

		w.refuse.Store(true)
		w.cut()
		cut := time.Now()
		for range 16 * 1000 {
			if st, _ := state(); st.Phase != PhaseConnected && !s.presence.sighting(me.NodeID).online {
				break
			}
			time.Sleep(time.Millisecond)
			synctest.Wait()
		}
		if st, _ := state(); st.Phase == PhaseConnected || s.presence.sighting(me.NodeID).online || time.Since(cut) > silence {
			t.Errorf("%s after the cut the node is %s, and online at the server: %v", time.Since(cut), st.Phase, s.presence.sighting(me.NodeID).online)
		}
		time.Sleep(time.Minute)
		w.refuse.Store(false)
		time.Sleep(retryMost)
		expect("after the line is back", PhaseConnected, true)

		// Kick: a dead line is noticed at once, a sound one is kept.
		_, before := state()
		since, _ := state()
		c.Kick()
		time.Sleep(checkTime)
		expect("kicked on a sound line", PhaseConnected, true)
		if st, n := state(); n != before || st.Since != since.Since {
			t.Error("a sound line was given up")
		}
		w.cut()
		c.Kick()
		time.Sleep(checkTime + 100*time.Millisecond)
		expect("kicked on a dead line", PhaseConnected, true)
		if st, _ := state(); st.Since == since.Since {
			t.Error("the dead line counts as sound")
		}
		w.refuse.Store(true)
		w.cut()
		time.Sleep(2 * time.Minute) // it waits for the next try now, some seconds each time
		w.refuse.Store(false)
		c.Kick()
		time.Sleep(10 * time.Millisecond)
		expect("kicked while it waits", PhaseConnected, true)

		cancel()
		web.Close()
		wg.Wait()
	})
}
