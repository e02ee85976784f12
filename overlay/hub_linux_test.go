package overlay

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"overlayd/overlay/coord"
	"overlayd/overlay/key"
)

// inNamespace runs the calling test once more in a child process that has a
// network namespace of its own, which goes with the process. It returns true in
// the child.
func inNamespace(t *testing.T) bool {
	t.Helper()
	const mark = "OVERLAYD_TEST_CHILD"
	if os.Getenv(mark) == t.Name() {
		// without IPv6, whose duplicate address detection changes the picture for a second
		command(t, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
		for _, args := range []string{
			"link set lo up",
			"link add eth0 type veth peer name eth0-peer",
			"addr add 203.0.113.10/24 dev eth0",
			"link set eth0 up",
			"link set eth0-peer up",
			"route add default via 203.0.113.1",
		} {
			command(t, "ip", strings.Fields(args)...)
		}
		for strings.Count(command(t, "ip", "-o", "link"), "state UP") < 2 {
			// a veth's two ends see each other a moment later
		}
		return true
	}
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("this test needs root, and CI has to run it")
		}
		t.Skip("SKIPPED: needs root for a network namespace")
	}
	child := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=60s")
	child.Env = append(os.Environ(), mark+"="+t.Name())
	child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := child.CombinedOutput()
	if err != nil {
		t.Fatalf("in the namespace: %v\n%s", err, out)
	}
	return false
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// hostState is what a stopped daemon must leave as it was.
func hostState(t *testing.T) string {
	t.Helper()
	return command(t, "ip", "rule") + command(t, "ip", "route", "show", "table", "all") +
		command(t, "ip", "-o", "link") + command(t, "ip", "-o", "addr")
}

// TestHubLifecycle starts a hub twice on one state directory, uses its local
// API, and looks for what it leaves behind.
func TestHubLifecycle(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	before := hostState(t)
	dir := t.TempDir()
	var first Status
	for _, laptop := range []string{"laptop", "other"} {
		goroutines := goleak.IgnoreCurrent()
		s := runHub(t, dir, laptop)
		if s.State != StateReady || s.Node.Role != string(coord.RoleRelay) || len(s.Node.IPs) != 1 {
			t.Errorf("status %+v", s)
		}
		if first.Schema == "" {
			first = s
		}
		if s.Node.PublicKey != first.Node.PublicKey || s.Node.IPs[0] != first.Node.IPs[0] {
			t.Errorf("after a restart it is %v, was %v", s.Node, first.Node)
		}
		if err := goleak.Find(goroutines); err != nil {
			t.Errorf("left behind: %v", err)
		}
		if after := hostState(t); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
	}
}

// TestHubCertificate: with a certificate of the operator's, invites pin nothing,
// and the hub's own node reaches the API all the same.
func TestHubCertificate(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	cert, _, err := coord.SelfSigned(key.NewMachine(), "vpn.example.org")
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: cert.Certificate[0]},
		keyFile:  {Type: "PRIVATE KEY", Bytes: der},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ready := make(chan struct{})
	h, err := NewHub(HubOptions{
		Options: Options{
			StateDir: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "sock"),
			Log: slog.New(slog.DiscardHandler), Ready: func() { close(ready) },
		},
		Public: "vpn.example.org", TLSCert: certFile, TLSKey: keyFile,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	select {
	case err := <-ended:
		t.Fatalf("the hub ended: %v", err)
	case <-ready:
	}
	l := Dial(filepath.Join(dir, "sock"))
	defer l.Close()
	link, err := l.Admin().Invite(ctx, coord.Invite{})
	if err != nil || !link.Pin.IsZero() || link.Endpoint != "vpn.example.org:443" {
		t.Errorf("link %v, %v", link, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// startHub runs a hub, and returns it when it is ready. How it ends is sent to ended.
func startHub(t *testing.T, dir string) (h *Hub, ended <-chan error) {
	t.Helper()
	ready := make(chan struct{})
	h, err := NewHub(HubOptions{
		Options: Options{
			StateDir: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "sock"),
			Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Ready: func() { close(ready) },
		},
		Public: "203.0.113.10", Overlay: netip.MustParsePrefix("172.18.0.0/24"), Address: netip.MustParseAddr("172.18.0.10"),
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- h.Run(t.Context()) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatalf("ended before it was ready: %v", err)
	}
	return h, done
}

// runHub runs a hub until it is ready, does what an operator does, and stops it.
func runHub(t *testing.T, dir, laptop string) Status {
	t.Helper()
	_, ended := startHub(t, dir)
	l := Dial(filepath.Join(dir, "sock"))
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()

	link, err := l.Admin().Invite(ctx, coord.Invite{Name: laptop})
	if err != nil || link.Endpoint != "203.0.113.10:443" {
		t.Errorf("invite %v, %v", link, err)
	}
	pongs := 0
	err = l.Ping(ctx, "172.18.0.10", 1, 0, func(p Pong) {
		if !p.Lost && p.Path.String() == "this machine" && p.Path.Direct {
			pongs++
		}
	})
	if err != nil || pongs != 1 {
		t.Errorf("ping of itself: %d pongs, %v", pongs, err)
	}
	if err := l.Ping(ctx, "8.8.8.8", 1, 0, func(Pong) {}); AsFault(err).Code != ExitUnreachable {
		t.Errorf("ping of somebody outside: %v", err)
	}
	if c, err := l.Netcheck(ctx); err != nil || c.Schema != NetcheckSchema || !c.ByDaemon || len(c.Relays) != 1 ||
		c.Relays[0].InUse != "local" || len(c.Findings) != 0 || len(c.Counters) < 50 {
		t.Errorf("netcheck on the relay's own machine: %v, %+v", err, c)
	}
	if err := l.Ping(ctx, "nobody", 1, 0, func(Pong) {}); AsFault(err).Code != ExitUsage {
		t.Errorf("ping of nobody: %v", err)
	}
	s, err := l.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := l.Plan(ctx); err != nil || !strings.Contains(text, "172.18.0.10") {
		t.Errorf("plan %q, %v", text, err)
	}
	command(t, "ip", "link", "delete", DefaultInterface)
	for exec.Command("ip", "link", "show", DefaultInterface).Run() != nil {
		if ctx.Err() != nil {
			t.Fatal("the deleted interface does not come back")
		}
	}
	pongs = 0
	for pongs == 0 && ctx.Err() == nil {
		if err := l.Ping(ctx, "172.18.0.10", 1, 0, func(p Pong) {
			if !p.Lost {
				pongs++
			}
		}); err != nil && AsFault(err).Code != ExitNotJoined {
			t.Fatal(err)
		}
	}
	if err := l.Down(ctx); err != nil {
		t.Errorf("down: %v", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("run: %v", err)
	}
	if err := l.Down(ctx); AsFault(err).Code != ExitNotRunning {
		t.Errorf("down of a stopped daemon: %v", err)
	}
	return s
}

// TestRefusals: what a daemon does not start with, and what it says then. The
// machine stays as it was.
func TestRefusals(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	hub := func(change func(*HubOptions)) func(dir string) error {
		return func(dir string) error {
			o := HubOptions{
				Options: Options{StateDir: dir, Socket: filepath.Join(dir, "sock"), Log: slog.New(slog.DiscardHandler)},
				Public:  "203.0.113.10",
			}
			change(&o)
			h, err := NewHub(o)
			if err != nil {
				return err
			}
			return h.Run(t.Context())
		}
	}
	node := func(link string) func(dir string) error {
		return func(dir string) error {
			n, err := New(Options{StateDir: dir, Socket: filepath.Join(dir, "sock"), Link: link, Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				return err
			}
			return n.Run(t.Context())
		}
	}
	command(t, "ip", "addr", "add", "10.20.0.1/16", "dev", "eth0")
	before := hostState(t)
	tests := []struct {
		name string
		run  func(dir string) error
		code int
		says string
	}{
		{"no public address", hub(func(o *HubOptions) { o.Public = "" }), ExitUsage, "--public"},
		{"a public address that is none", hub(func(o *HubOptions) { o.Public = "nonsense" }), ExitUsage, "nonsense"},
		{"overlay on a connected network", hub(func(o *HubOptions) { o.Overlay = netip.MustParsePrefix("10.20.30.0/24") }), ExitConflict, "10.20.0.0/16"},
		{"address outside the overlay", hub(func(o *HubOptions) { o.Address = netip.MustParseAddr("10.99.0.1") }), ExitConflict, "10.99.0.1"},
		{"not joined", node(""), ExitNotJoined, "not joined"},
		{"mangled link", node("ovl://203.0.113.10:443/x"), ExitUsage, "link"},
		{"nobody at the coordinator", node(testLink()), ExitUnreachable, "203.0.113.10"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.run(filepath.Join(t.TempDir(), "state"))
			if err == nil {
				t.Fatal("it ran")
			}
			f := AsFault(err)
			if f.Code != tt.code || !strings.Contains(f.Message, tt.says) || f.Hint == "" {
				t.Errorf("code %d, %q, hint %q; want code %d and %q", f.Code, f.Message, f.Hint, tt.code, tt.says)
			}
			if after := hostState(t); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
		})
	}
	t.Run("port in use", func(t *testing.T) {
		dir := t.TempDir()
		ready, ended := make(chan struct{}), make(chan error, 1)
		h, err := NewHub(HubOptions{
			Options: Options{
				StateDir: filepath.Join(dir, "a"), Socket: filepath.Join(dir, "a.sock"),
				Log: slog.New(slog.DiscardHandler), Ready: func() { close(ready) },
			},
			Public: "203.0.113.10",
		})
		if err != nil {
			t.Fatal(err)
		}
		go func() { ended <- h.Run(t.Context()) }()
		select {
		case <-ready:
		case err := <-ended:
			t.Fatal(err)
		}
		defer func() { h.node.Stop(); <-ended }()
		err = hub(func(*HubOptions) {})(filepath.Join(dir, "b"))
		if f := AsFault(err); f.Code != ExitConflict || !strings.Contains(f.Message, "443") {
			t.Errorf("a second relay: %v", err)
		}
		err = hub(func(*HubOptions) {})(filepath.Join(dir, "a"))
		if f, ok := errors.AsType[*Fault](err); !ok || f.Code != ExitConflict || !strings.Contains(f.Message, "state directory") {
			t.Errorf("a second daemon on one state directory: %v", err)
		}
	})
}

func testLink() string {
	return coord.Link{Endpoint: "203.0.113.10:4444", Invite: "aaaaaaaa"}.Encode()
}
