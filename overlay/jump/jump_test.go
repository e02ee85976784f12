package jump

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"

	"overlayd/internal/limit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is for what happens soon, on the slowest machine.
const patience = 30 * time.Second

func signer(t testing.TB) ssh.Signer {
	t.Helper()
	_, k, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// host is a jump host on loopback.
type host struct {
	t      *testing.T
	server *Server
	addr   string
	alice  ssh.Signer
	echo   string // host:port that echoes

	mu      sync.Mutex // guards what follows
	users   map[string]string
	refused []string
	dialed  []string
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{t: t, alice: signer(t), users: map[string]string{}}
	h.users[string(h.alice.PublicKey().Marshal())] = "alice"
	var err error
	h.server, err = New(Options{
		HostKey: signer(t), Log: slog.New(slog.DiscardHandler), Dial: h.dial,
		User: func(key []byte) (string, string, bool) {
			h.mu.Lock()
			defer h.mu.Unlock()
			name, ok := h.users[string(key)]
			return "id-" + name, name, ok
		},
		Refused: func(name string, _ netip.AddrPort, why string) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.refused = append(h.refused, name+": "+why)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ln := listen(t)
	echo := listen(t)
	h.addr, h.echo = ln.Addr().String(), echo.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := h.server.Serve(ctx, ln); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	running.Go(func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		echo.Close()
		running.Wait()
	})
	return h
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// dial is the way to the targets of the tests.
func (h *host) dial(ctx context.Context, g Guest, name string, port uint16) (net.Conn, error) {
	h.mu.Lock()
	h.dialed = append(h.dialed, fmt.Sprintf("%s %s:%d", g.Name, name, port))
	h.mu.Unlock()
	switch name {
	case "forbidden":
		return nil, fmt.Errorf("dial: %w", fs.ErrPermission)
	case "closed":
		return nil, fmt.Errorf("dial: %w", syscall.ECONNREFUSED)
	case "away":
		return nil, errors.New("lab-gw is offline")
	}
	return new(net.Dialer).DialContext(ctx, "tcp", h.echo)
}

func (h *host) config(user string, k ssh.Signer) *ssh.ClientConfig {
	return &ssh.ClientConfig{User: user, Auth: []ssh.AuthMethod{ssh.PublicKeys(k)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(), Timeout: patience}
}

func (h *host) login(user string, k ssh.Signer) (*ssh.Client, error) {
	return ssh.Dial("tcp", h.addr, h.config(user, k))
}

func (h *host) mustLogin() *ssh.Client {
	h.t.Helper()
	c, err := h.login("alice", h.alice)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	return c
}

func TestForward(t *testing.T) {
	h := newHost(t)
	c := h.mustLogin()
	conn, err := c.Dial("tcp", "192.168.1.201:22")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "hello"); err != nil {
		t.Fatal(err)
	}
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(conn); err != nil || string(b) != "hello" {
		t.Errorf("after a half-close came %q, %v", b, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.dialed) != 1 || h.dialed[0] != "alice 192.168.1.201:22" {
		t.Errorf("dialed %q", h.dialed)
	}
}

func TestRefusals(t *testing.T) {
	h := newHost(t)
	c := h.mustLogin()
	for target, want := range map[string]struct {
		reason ssh.RejectionReason
		text   string
	}{
		"forbidden:22": {ssh.Prohibited, "refused by policy"},
		"closed:22":    {ssh.ConnectionFailed, "connection refused"},
		"away:22":      {ssh.ConnectionFailed, "lab-gw is offline"},
	} {
		_, err := c.Dial("tcp", target)
		if o, ok := errors.AsType[*ssh.OpenChannelError](err); !ok || o.Reason != want.reason || o.Message != want.text {
			t.Errorf("%s: %v", target, err)
		}
	}
	for _, kind := range []string{"session", "x11", "auth-agent@openssh.com", "direct-streamlocal@openssh.com", "tun@openssh.com", ""} {
		_, _, err := c.OpenChannel(kind, nil)
		if o, ok := errors.AsType[*ssh.OpenChannelError](err); !ok || o.Reason != ssh.Prohibited || !strings.Contains(o.Message, "ssh -J") {
			t.Errorf("channel %q: %v", kind, err)
		}
	}
	if ln, err := c.Listen("tcp", "127.0.0.1:0"); err == nil {
		ln.Close()
		t.Error("a remote forward was made")
	}
	if ln, err := c.ListenUnix("/tmp/x"); err == nil {
		ln.Close()
		t.Error("a remote forward of a socket was made")
	}
	if ok, _, err := c.SendRequest("keepalive@openssh.com", true, nil); ok || err != nil {
		t.Errorf("keepalive: %v, %v", ok, err)
	}
	if _, _, err := c.OpenChannel("direct-tcpip", []byte("nonsense")); err == nil {
		t.Error("nonsense was opened")
	}
	if _, err := c.Dial("tcp", "192.168.1.201:22"); err != nil {
		t.Errorf("after all that: %v", err)
	}
}

func TestLogins(t *testing.T) {
	h := newHost(t)
	for name, c := range map[string]struct {
		user string
		key  ssh.Signer
	}{
		"a stranger's key":        {"alice", signer(t)},
		"another user's name":     {"bob", h.alice},
		"a name in other case":    {"Alice", h.alice},
		"a name that escapes\x1b": {"\x1b[2J", h.alice},
	} {
		if conn, err := h.login(c.user, c.key); err == nil {
			conn.Close()
			t.Errorf("%s: is let in", name)
		}
	}
	h.mustLogin()
	refused := func() int { // the client hears of it before it is told here
		h.mu.Lock()
		defer h.mu.Unlock()
		return len(h.refused)
	}
	for end := time.Now().Add(patience); refused() < 4 && time.Now().Before(end); <-time.After(time.Millisecond) {
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.refused) != 4 || strings.Contains(strings.Join(h.refused, ""), "\x1b") {
		t.Errorf("refused: %q", h.refused)
	}
}

// TestOldAlgorithms: what is not of today is not spoken.
func TestOldAlgorithms(t *testing.T) {
	h := newHost(t)
	for name, set := range map[string]func(*ssh.ClientConfig){
		"SHA-1 exchange": func(c *ssh.ClientConfig) { c.KeyExchanges = []string{"diffie-hellman-group14-sha1"} },
		"CTR":            func(c *ssh.ClientConfig) { c.Ciphers = []string{"aes128-ctr"} },
	} {
		cc := h.config("alice", h.alice)
		set(cc)
		if conn, err := ssh.Dial("tcp", h.addr, cc); err == nil {
			conn.Close()
			t.Errorf("%s is spoken", name)
		}
	}
}

// TestHeed: a key that was taken away ends what was begun with it, at once.
func TestHeed(t *testing.T) {
	h := newHost(t)
	bob := signer(t)
	h.users[string(bob.PublicKey().Marshal())] = "bob"
	c := h.mustLogin()
	other, err := h.login("bob", bob)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	conn, err := c.Dial("tcp", "192.168.1.201:22")
	if err != nil {
		t.Fatal(err)
	}
	if n := h.server.Heed(); n != 0 {
		t.Errorf("%d sessions ended for nothing", n)
	}
	h.mu.Lock()
	delete(h.users, string(h.alice.PublicKey().Marshal()))
	h.mu.Unlock()
	if n := h.server.Heed(); n != 1 {
		t.Errorf("%d sessions ended", n)
	}
	if _, err := io.ReadAll(conn); err != nil && !errors.Is(err, io.EOF) {
		t.Logf("the channel ended with %v", err)
	}
	c.Wait()
	if _, err := other.Dial("tcp", "192.168.1.201:22"); err != nil {
		t.Errorf("bob: %v", err)
	}
	if _, err := h.login("alice", h.alice); err == nil {
		t.Error("alice is back")
	}
}

// TestStrangers: who does not speak ssh, or not yet, takes nobody's place, and who
// fails often waits.
func TestStrangers(t *testing.T) {
	h := newHost(t)
	var open []net.Conn
	for range maxUnprovedOf {
		c, err := net.Dial("tcp", h.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		if _, err := io.ReadFull(c, make([]byte, len("SSH-2.0-overlayd"))); err != nil {
			t.Fatalf("no greeting: %v", err)
		}
		open = append(open, c)
	}
	c, err := net.Dial("tcp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if b, err := io.ReadAll(c); len(b) > 0 || errors.Is(err, syscall.ETIMEDOUT) {
		t.Errorf("one too many is greeted with %q, %v", b, err)
	}
	for _, c := range open {
		io.WriteString(c, "GET / HTTP/1.1\r\n\r\n"+strings.Repeat("\x00\xff", 4096))
		io.Copy(io.Discard, c) // until the server hangs up
	}
	// The server hangs up a moment before it counts.
	for tries := 0; ; tries++ {
		c, err := net.Dial("tcp", h.addr)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		_, err = c.Read(make([]byte, 1))
		c.Close()
		if err != nil {
			break
		}
		if tries == 3 {
			t.Fatalf("after %d failures the source is still greeted", maxUnprovedOf)
		}
	}
}

// TestChannelsAreBounded: a user has so many channels, by however many sessions,
// and others are not kept out by them.
func TestChannelsAreBounded(t *testing.T) {
	h := newHost(t)
	one, two, bob := h.mustLogin(), h.mustLogin(), signer(t)
	h.mu.Lock()
	h.users[string(bob.PublicKey().Marshal())] = "bob"
	h.mu.Unlock()
	other, err := h.login("bob", bob)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	var conns []net.Conn
	for i := range maxChannels {
		conn, err := []*ssh.Client{one, two}[i%2].Dial("tcp", "192.168.1.201:22")
		if err != nil {
			t.Fatalf("channel %d: %v", i, err)
		}
		conns = append(conns, conn)
	}
	_, err = two.Dial("tcp", "192.168.1.201:22")
	if o, ok := errors.AsType[*ssh.OpenChannelError](err); !ok || o.Reason != ssh.ResourceShortage {
		t.Errorf("one too many: %v", err)
	}
	if _, err := other.Dial("tcp", "192.168.1.201:22"); err != nil {
		t.Errorf("bob: %v", err)
	}
	conns[0].Close()
	for end := time.Now().Add(patience); ; {
		if _, err = one.Dial("tcp", "192.168.1.201:22"); err == nil || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		t.Errorf("after one ended: %v", err)
	}
}

// TestSessionsAreBounded: a user has so many sessions; the next is told why it is
// none, and that counts as no failure.
func TestSessionsAreBounded(t *testing.T) {
	h := newHost(t)
	var open []*ssh.Client
	for range maxSessionsOf {
		open = append(open, h.mustLogin())
	}
	for end := time.Now().Add(patience); h.server.Sessions() < maxSessionsOf && time.Now().Before(end); <-time.After(time.Millisecond) {
	}
	var told string
	config := h.config("alice", h.alice)
	config.BannerCallback = func(message string) error {
		told = message
		return nil
	}
	for range limit.Burst + 1 {
		if c, err := ssh.Dial("tcp", h.addr, config); err == nil {
			c.Close()
			t.Fatal("one too many is let in")
		}
		if !strings.Contains(told, "too many sessions") {
			t.Errorf("it is told %q", told)
		}
	}
	open[0].Close()
	var err error
	for end := time.Now().Add(patience); ; {
		if _, err = h.login("alice", h.alice); err == nil || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		t.Errorf("after one ended: %v", err)
	}
	if h.mu.Lock(); len(h.refused) != 0 {
		t.Errorf("refused: %q", h.refused)
	}
	h.mu.Unlock()
}

func FuzzParseOpen(f *testing.F) {
	for _, o := range []open{{"192.168.1.201", 22, "127.0.0.1", 65535}, {"nas.lab", 0, "", 0}, {"", 22, "", 0}, {"a\x1bb", 22, "", 0}, {"x", 1 << 20, "", 0}} {
		f.Add(ssh.Marshal(o))
	}
	f.Add([]byte{0, 0, 0, 9, 'x'})
	f.Fuzz(func(t *testing.T, b []byte) {
		host, port, err := parseOpen(b)
		if err == nil && (host == "" || port == 0 || len(host) > maxHost || strings.ContainsAny(host, "\x00\x1b\n\r")) {
			t.Errorf("%q is %q %d", b, host, port)
		}
	})
}
