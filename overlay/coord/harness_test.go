package coord

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"overlayd/overlay/key"
	"overlayd/overlay/record"
)

func TestMain(m *testing.M) {
	runCrashChild() // does not return in the child of TestCrash
	goleak.VerifyTestMain(m)
}

// patience is for what happens soon, on the slowest machine.
const patience = time.Minute

// atOnce is how many of a crowd shake hands at the same time: with hundreds, on a
// machine that is busy with other things, none would be done in time.
const atOnce = 32

var testOverlay = netip.MustParsePrefix("172.18.0.0/16")

// network is a coordinator on loopback, over real TLS.
type network struct {
	t       testing.TB
	server  *Server
	admin   *Admin
	pin     key.Pin
	addr    string
	log     *syncBuffer
	now     *clock
	removed chan Removal
	events  *Events

	published *publisher
	ended     atomic.Int32 // what Changed says next
}

// clock is the wall clock of a test, moved by hand.
type clock struct {
	mu  sync.Mutex
	off time.Duration
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.off)
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.off += d
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// testPasses makes passes that say what they are for.
type testPasses struct{}

func (testPasses) Pass(_ key.Secret, label uint32, serial uint64, notAfter time.Time) ([]byte, key.Secret) {
	return []byte("relay " + addrOf(testOverlay, label).String() + " " + notAfter.UTC().Format(time.RFC3339)), key.NewSecret()
}

// openPolicy lets every node see every other.
const openPolicy = `rules:
  - {name: open, src: "*", dst: "*"}
`

func newNetwork(t testing.TB) *network {
	t.Helper()
	store, err := OpenBolt(filepath.Join(t.TempDir(), "coord.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return startNetwork(t, store, ln, key.NewMachine())
}

// startNetwork starts a coordinator, with the machine's key for TLS, and stops
// it when the test ends.
func startNetwork(t testing.TB, store Store, ln net.Listener, machine key.Machine) *network {
	t.Helper()
	cert, pin, err := SelfSigned(machine, "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	n := &network{t: t, published: &publisher{}, pin: pin, addr: ln.Addr().String(), log: &syncBuffer{}, now: &clock{}, removed: make(chan Removal, 100)}
	log := slog.New(slog.NewTextHandler(n.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	n.events = recordEvents(t, t.TempDir())
	n.server, err = NewServer(ServerOptions{
		Store: store, Log: log, Overlay: testOverlay, Endpoint: n.addr, Pin: pin, Passes: testPasses{},
		Relay: Relay{ID: "r1", Name: "vps", Endpoint: n.addr}, Now: n.now.Now,
		Removed: func(r Removal) { n.removed <- r }, Policy: openPolicy, Events: n.events,
		Publisher: n.published, Changed: func() int { return int(n.ended.Swap(0)) },
	})
	if err != nil {
		t.Fatal(err)
	}
	local := httptest.NewServer(n.server.AdminHandler())
	n.admin = NewAdmin(local.Client(), local.URL)
	web := NewHTTPServer(n.server.Handler(), cert, log)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := n.server.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	wg.Go(func() {
		if err := web.ServeTLS(ln, "", ""); !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		down, stop := context.WithTimeout(context.Background(), patience)
		defer stop()
		if err := web.Shutdown(down); err != nil {
			web.Close()
		}
		wg.Wait()
		local.Close()
	})
	return n
}

// recordEvents keeps a record until the test ends.
func recordEvents(t testing.TB, dir string) *Events {
	t.Helper()
	log, err := record.Open(dir, "control", record.Options{Chain: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := log.Run(ctx); err != nil {
			t.Errorf("record: %v", err)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return &Events{Dir: dir, Name: "control", Log: log}
}

// lines returns what the record holds now.
func (n *network) lines() (es []Event) {
	n.t.Helper()
	if err := n.events.Log.Sync(context.Background()); err != nil {
		n.t.Fatal(err)
	}
	if err := record.Read(n.events.Dir, n.events.Name, func(line []byte) error {
		var e Event
		if err := json.Unmarshal(line, &e); err != nil {
			return err
		}
		es = append(es, e)
		return nil
	}); err != nil {
		n.t.Fatal(err)
	}
	return es
}

// adminOf is the Admin service as a node's own machine reaches it: by its
// daemon.
func (n *network) adminOf(nd *node) *Admin {
	mux := http.NewServeMux()
	mux.Handle(nd.c.AdminProxy())
	local := httptest.NewServer(mux)
	n.t.Cleanup(local.Close)
	return NewAdmin(local.Client(), local.URL)
}

// enforcing follows as a node that enforces every map at once, and cuts flows.
func (n *network) enforcing(nd *node, cut int) *following {
	var mu sync.Mutex
	var now Applied
	report := make(chan struct{}, 1)
	f := n.follow(nd, FollowOptions{
		BootID: 1, Report: report,
		Applied: func() Applied { mu.Lock(); defer mu.Unlock(); return now },
		OnMap: func(m *Map) {
			mu.Lock()
			now = Applied{m.Version, cut}
			mu.Unlock()
			select {
			case report <- struct{}{}:
			default:
			}
		},
	})
	f.await("the first map", func(*Map) bool { return true })
	return f
}

// node is a simulated node.
type node struct {
	c       *Client
	machine key.Machine
	private key.Private
	Enrolled
}

func (n *network) client(m key.Machine) *Client {
	n.t.Helper()
	c, err := NewClient(ClientOptions{Endpoint: n.addr, Pin: n.pin, Machine: m, Now: n.now.Now, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		n.t.Fatal(err)
	}
	return c
}

func (n *network) stranger() *node {
	nd := &node{machine: key.NewMachine(), private: key.NewPrivate()}
	nd.c = n.client(nd.machine)
	return nd
}

func (n *network) invite(i Invite) Link {
	n.t.Helper()
	l, err := n.server.Invite(context.Background(), i)
	if err != nil {
		n.t.Fatal(err)
	}
	return l
}

func (nd *node) enroll(l Link, name string, advertise ...netip.Prefix) error {
	var err error
	nd.Enrolled, err = nd.c.Enroll(context.Background(), EnrollRequest{
		Invite: l.Invite, Secret: l.Secret, Name: name, WireGuard: nd.private.Public(), Advertise: advertise,
	})
	return err
}

// enrollSoon is enroll for one of a crowd: who gets no answer in time asks again.
func (nd *node) enrollSoon(l Link, name string) error {
	for end := time.Now().Add(patience); ; {
		err := nd.enroll(l, name)
		if p, ok := AsProblem(err); !ok || p.Kind != KindUnreachable || time.Now().After(end) {
			return err
		}
	}
}

// join is a stranger that became a member.
func (n *network) join(i Invite, name string, advertise ...netip.Prefix) *node {
	n.t.Helper()
	nd := n.stranger()
	if err := nd.enroll(n.invite(i), name, advertise...); err != nil {
		n.t.Fatal(err)
	}
	return nd
}

// following is a node's running Follow, and the maps it got.
type following struct {
	t      testing.TB
	cancel context.CancelFunc
	done   chan struct{}
	err    error // after done

	mu     sync.Mutex
	newest *Map
	states []ControlState
	moved  chan struct{} // closed at each map, then replaced
}

func (n *network) follow(nd *node, o FollowOptions) *following {
	n.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	f := &following{t: n.t, cancel: cancel, done: make(chan struct{}), moved: make(chan struct{})}
	also := o.OnMap
	o.OnMap = func(m *Map) {
		if also != nil {
			also(m)
		}
		f.note(func() { f.newest = m })
	}
	o.OnState = func(s ControlState) { f.note(func() { f.states = append(f.states, s) }) }
	go func() {
		defer close(f.done)
		f.err = nd.c.Follow(ctx, o)
	}()
	n.t.Cleanup(func() { cancel(); <-f.done })
	return f
}

func (f *following) note(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	close(f.moved)
	f.moved = make(chan struct{})
}

// await returns the first map from now on that is right.
func (f *following) await(what string, right func(*Map) bool) *Map {
	f.t.Helper()
	timeout := time.After(patience)
	for {
		f.mu.Lock()
		m, moved := f.newest, f.moved
		f.mu.Unlock()
		if m != nil && right(m) {
			return m
		}
		select {
		case <-moved:
		case <-f.done:
			f.t.Fatalf("follow ended (%v) while waiting for: %s", f.err, what)
		case <-timeout:
			f.t.Fatalf("no map came with: %s; the last is %.2000s", what, fmt.Sprintf("%+v", m))
		}
	}
}

func (f *following) ended() error {
	f.t.Helper()
	select {
	case <-f.done:
		return f.err
	case <-time.After(patience):
		f.t.Fatal("follow did not end")
		return nil
	}
}

func wantKind(t testing.TB, err error, k Kind, words ...string) {
	t.Helper()
	p, ok := AsProblem(err)
	if !ok || p.Kind != k {
		t.Errorf("got %v, want a problem of kind %s", err, k)
		return
	}
	for _, w := range words {
		if !bytes.Contains([]byte(p.Message+" "+p.Hint), []byte(w)) {
			t.Errorf("%q (hint: %s) does not say %q", p.Message, p.Hint, w)
		}
	}
}

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func post(t testing.TB, url string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, bytes.NewReader([]byte("{}")))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	return r
}
