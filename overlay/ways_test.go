package overlay

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"overlayd/overlay/forward"
	"overlayd/overlay/local"
	"overlayd/overlay/owner"
	"overlayd/overlay/proxy"
)

// freePort is an address of the loopback that nobody listens on.
func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return netip.MustParseAddrPort(ln.Addr().String())
}

// runWays keeps the ways of a node until the returned function is called.
func runWays(t *testing.T, n *Node) (stop func()) {
	t.Helper()
	if err := n.ways.load(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.ways.run(ctx) }()
	for end := time.Now().Add(10 * time.Second); ; <-time.After(time.Millisecond) {
		n.ways.mu.Lock()
		running := n.ways.ctx != nil
		n.ways.mu.Unlock()
		if running {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the ways are not run")
		}
	}
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// opened waits until something listens.
func opened(t *testing.T, at netip.AddrPort) net.Conn {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; <-time.After(5 * time.Millisecond) {
		c, err := net.Dial("tcp", at.String())
		if err == nil {
			c.SetDeadline(time.Now().Add(10 * time.Second))
			t.Cleanup(func() { c.Close() })
			return c
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// TestWaysAreKept: proxy and forwards are there again after a restart, and gone
// when they were taken away.
func TestWaysAreKept(t *testing.T) {
	host := serveTCP(t, func(c *net.TCPConn) { io.WriteString(c, "hello") })
	n := dialingNode(t, loopback{tcp: host})
	stop := runWays(t, n)
	proxyAt, fwdAt := freePort(t), freePort(t)
	rule := forward.Rule{Network: "tcp", Listen: fwdAt, Target: "lab-gw:80"}
	if err := n.ways.setProxy(proxyAt, "correct horse battery"); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second changes nothing
		if err := n.ways.addForward(rule); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if b, err := os.ReadFile(n.dir.file(waysFile)); err != nil || strings.Contains(string(b), "horse") {
		t.Errorf("the file holds %s: %v", b, err)
	}
	if i, err := os.Stat(n.dir.file(waysFile)); err != nil || i.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v", i.Mode(), err)
	}

	again := dialingNode(t, loopback{tcp: host})
	again.dir, again.o.StateDir = n.dir, n.o.StateDir
	stop = runWays(t, again)
	if b, err := io.ReadAll(opened(t, fwdAt)); err != nil || string(b) != "hello" {
		t.Errorf("the forward brings %q, %v", b, err)
	}
	c := opened(t, proxyAt)
	io.WriteString(c, "CONNECT lab-gw:80 HTTP/1.1\r\nHost: x\r\n\r\n")
	got := make([]byte, 12)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "HTTP/1.1 407" {
		t.Errorf("the proxy answers %q, %v: want its password asked for", got, err)
	}
	s := again.ways.state()
	if s.Proxy == nil || !s.Proxy.Password || s.Proxy.Error != nil || len(s.Forwards) != 1 || s.Forwards[0].Target != "lab-gw:80" || s.Forwards[0].Accepted != 1 {
		t.Errorf("the state is %+v", s)
	}
	if err := again.ways.proxyOff(); err != nil {
		t.Fatal(err)
	}
	if err := again.ways.removeForward("", fwdAt); err != nil {
		t.Fatal(err)
	}
	if err := again.ways.removeForward("", fwdAt); err == nil {
		t.Error("a forward is removed twice")
	}
	for _, at := range []netip.AddrPort{fwdAt, proxyAt} {
		if c, err := net.Dial("tcp", at.String()); err == nil {
			c.Close()
			t.Errorf("%s still listens", at)
		}
	}
	stop()
	if err := again.ways.addForward(rule); err == nil {
		t.Error("a forward is made after the end")
	}
}

// TestWaysConflicts: ports that are taken, and what would let others in.
func TestWaysConflicts(t *testing.T) {
	n := dialingNode(t, loopback{})
	defer runWays(t, n)()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	taken, free := netip.MustParseAddrPort(ln.Addr().String()), freePort(t)
	code := func(err error) int {
		if err == nil {
			return ExitOK
		}
		return AsFault(err).Code
	}
	if got := code(n.ways.setProxy(taken, "")); got != ExitConflict {
		t.Errorf("a proxy on a taken port: %d", got)
	}
	if got := code(n.ways.setProxy(netip.MustParseAddrPort("0.0.0.0:1"), "")); got != ExitUsage {
		t.Errorf("a proxy for everybody without a password: %d", got)
	}
	if got := code(n.ways.setProxy(free, "short")); got != ExitUsage {
		t.Errorf("a short password: %d", got)
	}
	if got := code(n.ways.setProxy(free, "")); got != ExitOK {
		t.Errorf("a proxy: %d", got)
	}
	if got := code(n.ways.setProxy(taken, "")); got != ExitConflict || n.ways.state().Proxy.Listen != free.String() {
		t.Errorf("a proxy that cannot move: %d, %+v", got, n.ways.state().Proxy)
	}
	if got := code(n.ways.setProxy(free, "correct horse battery")); got != ExitOK || !n.ways.state().Proxy.Password {
		t.Errorf("the same port with a password: %d", got)
	}
	if got := code(n.ways.addForward(forward.Rule{Network: "tcp", Listen: taken, Target: "lab-gw:80"})); got != ExitConflict || len(n.ways.state().Forwards) != 0 {
		t.Errorf("a forward on a taken port: %d", got)
	}
	at := freePort(t)
	if got := code(n.ways.addForward(forward.Rule{Network: "tcp", Listen: at, Target: "lab-gw:80"})); got != ExitOK {
		t.Errorf("a forward: %d", got)
	}
	if got := code(n.ways.addForward(forward.Rule{Network: "tcp", Listen: at, Target: "lab-gw:81"})); got != ExitConflict {
		t.Errorf("another forward on its port: %d", got)
	}
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"a forward on another program's port": {n.ways.addForward(forward.Rule{Network: "tcp", Listen: taken, Target: "lab-gw:80"}), "by another program"},
		"a forward on the proxy's port":       {n.ways.addForward(forward.Rule{Network: "tcp", Listen: free, Target: "lab-gw:80"}), "own proxy listens on " + free.String()},
		"a forward beside another": {
			n.ways.addForward(forward.Rule{Network: "tcp", Listen: netip.AddrPortFrom(netip.IPv4Unspecified(), at.Port()), Target: "lab-gw:81"}),
			"tcp port " + at.String() + " is forwarded to lab-gw:80",
		},
		"a proxy on a forward's port": {n.ways.setProxy(at, ""), "tcp port " + at.String() + " is forwarded to lab-gw:80"},
	} {
		if code(c.err) != ExitConflict || !strings.Contains(c.err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, c.err, c.want)
		}
	}
	for _, m := range []*local.ForwardRequest{
		{Network: "tcp", Listen: "0.0.0.0:80", Target: "lab-gw:80"},
		{Network: "tcp", Listen: ":80", Target: "lab-gw:80"},
		{Network: "tcp", Listen: "127.0.0.1:0", Target: "lab-gw:80"},
		{Network: "tcp", Listen: "127.0.0.1:80", Target: "lab-gw"},
		{Network: "tcp", Listen: "127.0.0.1:80", Target: ":80"},
		{Network: "sctp", Listen: "127.0.0.1:80", Target: "lab-gw:80"},
	} {
		if _, err := readForward(t.Context(), m); code(err) != ExitUsage {
			t.Errorf("%v: %v", m, err)
		}
	}
	if _, err := readForward(t.Context(), &local.ForwardRequest{Network: "tcp", Listen: "0.0.0.0:80", Target: "lab-gw:80", AllowRemote: true}); err != nil {
		t.Error(err)
	}
}

// TestReach: what the PAC file and ssh's configuration are made of, and what the
// proxy tells of errors.
func TestReach(t *testing.T) {
	n := dialingNode(t, &lanSockets{lans: map[string]map[string][]string{nearGW: {"_domains.overlayd.invalid": {"lab"}}, farGW: {}}})
	r := n.reach(t.Context())
	if !slices.Contains(r.Names, "Lab-GW") || !slices.Equal(r.Domains, []string{"lab"}) ||
		!slices.Contains(r.Prefixes, prefix("192.168.1.0/24")) || !slices.Contains(r.Prefixes, prefix("172.18.0.0/24")) ||
		slices.Contains(r.Prefixes, prefix("10.9.0.0/16")) { // this machine's own network
		t.Errorf("got %+v", r)
	}
	for why, want := range map[DialReason]proxy.Reason{
		ReasonPolicy: proxy.Forbidden, ReasonOutside: proxy.Forbidden, ReasonNoName: proxy.NoName, ReasonRefused: proxy.Refused,
		ReasonUnreachable: proxy.Unreachable, ReasonOffline: proxy.TimedOut, ReasonTimeout: proxy.TimedOut, ReasonFailed: proxy.Failed,
	} {
		if reason, text := explainToProxy(&DialError{Reason: why, Target: "nas.lab:80", Via: "lab-gw"}); reason != want || !strings.Contains(text, "hint: ") {
			t.Errorf("%s is told as %d %q", why, reason, text)
		}
	}
}

// TestOwnUser: without a password, a port of the loopback is for the programs of
// the daemon's user, and root's; one with a password is for who knows it.
func TestOwnUser(t *testing.T) {
	if !owner.Known {
		t.Skip("this system does not tell whose a connection is")
	}
	host := serveTCP(t, func(c *net.TCPConn) { io.WriteString(c, "hello") })
	n := dialingNode(t, loopback{tcp: host})
	self := os.Getuid()
	for _, test := range []struct {
		name     string
		daemon   int // its user
		password string
		in       bool
	}{
		{"the same user", self, "", true},
		{"another user", self + 1, "", self == 0}, // root may anyway
		{"another user, with a password", self + 1, "correct horse battery", true},
		{"root's daemon", 0, "", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			n.uid = test.daemon
			admit := n.admits(netip.MustParseAddrPort("127.0.0.1:1080"), test.password != "")
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			c, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			client, server := netip.MustParseAddrPort(c.LocalAddr().String()), netip.MustParseAddrPort(c.RemoteAddr().String())
			if in := admit == nil || admit("tcp", client, server); in != test.in {
				t.Errorf("it is let in: %t, want %t", in, test.in)
			}
			gone := netip.AddrPortFrom(client.Addr(), 1)
			if admit != nil && admit("tcp", gone, server) {
				t.Error("a client that is nobody's is let in")
			}
		})
	}
	n.uid = 1
	if n.admits(netip.MustParseAddrPort("0.0.0.0:80"), false) != nil {
		t.Error("a port for other machines asks for this machine's users")
	}
}
