//go:build linux

package waysin_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"overlayd/examples/lab"
	"overlayd/examples/lab/labtest"
	"overlayd/overlay"
	"overlayd/overlay/coord"
)

const (
	// promised is how soon what was taken away ends, and what came back works.
	promised = time.Second
	// answersWithin is how long an echo is waited for.
	answersWithin = 2 * time.Second
	// nobody is the user and group without rights on every Debian.
	nobody = 65534
	// absent is an address of the LAN that no machine has.
	absent = "192.168.1.77"
)

// person is somebody without rights on a machine: another user than root, no
// capability, no way to get one, and no TUN.
type person struct {
	m      *lab.Machine
	binary string
	home   string
	unit   []string // the command line before his own
}

// newPerson gives him a home.
func newPerson(t *testing.T, m *lab.Machine) *person {
	t.Helper()
	binary := labtest.Overlayd(t)
	// Named like a lab's directory, so that the next run clears up after a
	// killed one. Nobody but root may look into those of a test.
	home, err := os.MkdirTemp("", fmt.Sprintf("ovl-%d-home-", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	if err := errors.Join(os.Chown(home, nobody, nobody), os.Chmod(filepath.Dir(binary), 0o755)); err != nil {
		t.Fatal(err)
	}
	p := &person{m: m, binary: binary, home: home}
	p.unit = []string{"unshare", "--mount", "sh", "-c", `mount -t tmpfs none /dev/net && exec "$@"`, "sh",
		"setpriv", fmt.Sprint("--reuid=", nobody), fmt.Sprint("--regid=", nobody), "--clear-groups",
		"--inh-caps=-all", "--bounding-set=-all", "--no-new-privs",
		"env", "-u", "OVERLAYD_STATE_DIR", "-u", "OVERLAYD_SOCKET", "-u", "XDG_STATE_HOME", "-u", "XDG_RUNTIME_DIR", "HOME=" + home}
	out := labtest.Run(t.Context(), t, m, p.unit[0], append(p.unit[1:], "sh", "-c", "ls /dev/net; id -u; grep CapBnd /proc/self/status")...)
	if got := strings.Fields(out); len(got) != 3 || got[0] != fmt.Sprint(nobody) || strings.Trim(got[2], "0") != "" {
		t.Fatalf("a person without rights has %q", got)
	}
	return p
}

func (p *person) args(args ...string) []string {
	return append(append(append([]string{}, p.unit[1:]...), p.binary), args...)
}

// serve starts his daemon and waits until it is ready.
func (p *person) serve(ctx context.Context, t *testing.T, args ...string) *lab.Process {
	t.Helper()
	daemon, err := p.m.Start(p.unit[0], p.args(args...)...)
	if err != nil {
		t.Fatal(err)
	}
	err = lab.Until(ctx, func(ctx context.Context) error {
		if !daemon.Running() {
			t.Fatalf("overlayd ended: %v\n%s", daemon.Err(), daemon.Tail())
		}
		_, err := p.overlayd(ctx, "status", "--check", "ready")
		return err
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, daemon.Tail())
	}
	return daemon
}

// overlayd runs a verb as him, who names no socket.
func (p *person) overlayd(ctx context.Context, args ...string) (string, error) {
	return p.m.Run(ctx, p.unit[0], p.args(args...)...)
}

// dial connects through his daemon.
func (p *person) dial(ctx context.Context, network, address string) (net.Conn, error) {
	l := overlay.Dial(filepath.Join(p.home, ".local/state/overlayd/overlayd.sock"))
	defer l.Close()
	return l.Dial(ctx, network, address)
}

// dialer is somebody who connects.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// echoes listens on the LAN host's port 22, and on 53 for datagrams, and echoes.
func echoes(t *testing.T, m *lab.Machine) {
	t.Helper()
	labtest.Serve(t, m, lab.HostAddr+":22", labtest.Echo)
	labtest.ServePackets(t, m, lab.HostAddr+":53", labtest.EchoPacket)
}

// reaches tries what there is behind a gateway: what answers, what refuses, and
// what is not there.
func reaches(ctx context.Context, t *testing.T, who string, dial dialer) {
	t.Helper()
	for _, network := range []string{"tcp", "udp"} {
		port := map[string]string{"tcp": ":22", "udp": ":53"}[network]
		c, err := dial(ctx, network, lab.HostAddr+port)
		if err != nil {
			t.Errorf("%s: %s: %v", who, network, err)
			continue
		}
		if err := echoed(c, answersWithin); err != nil {
			t.Errorf("%s: %s: %v", who, network, err)
		}
		if h, ok := c.(interface{ CloseWrite() error }); ok && network == "tcp" {
			if err := h.CloseWrite(); err != nil {
				t.Errorf("%s: %v", who, err)
			}
			_ = c.SetDeadline(time.Now().Add(answersWithin))
			if rest, err := io.ReadAll(c); err != nil || len(rest) != 0 {
				t.Errorf("%s: after the end: %q, %v", who, rest, err)
			}
		}
		c.Close()
	}
	for address, want := range map[string]error{lab.HostAddr + ":23": syscall.ECONNREFUSED, absent + ":22": syscall.EHOSTUNREACH} {
		began := time.Now()
		c, err := dial(ctx, "tcp", address)
		if err == nil {
			c.Close()
		}
		if !told(err, want) {
			t.Errorf("%s: %s: %v, want %v", who, address, err, want)
		}
		t.Logf("%s: %s after %v: %v", who, address, time.Since(began).Round(time.Millisecond), err)
	}
}

// told reports whether an error is the system's, or the daemon's word for it.
func told(err error, want error) bool {
	if f, ok := errors.AsType[*overlay.Fault](err); ok {
		word := map[error]string{
			syscall.ECONNREFUSED: "refused by the host", syscall.EHOSTUNREACH: "lab-gw says that the host does not answer",
		}[want]
		return f.Code == overlay.ExitUnreachable && strings.Contains(f.Message, word)
	}
	return errors.Is(err, want)
}

// network is a relay, a user, and links for her machines.
type network struct {
	*lab.Lab
	admin *coord.Admin
}

func newNetwork(t *testing.T) (context.Context, *network) {
	t.Helper()
	ctx, l := labtest.New(t, lab.Options{Overlayd: labtest.Overlayd(t)})
	if _, err := l.VPS.Serve(ctx, lab.RelayArgs...); err != nil {
		t.Fatal(err)
	}
	socket := overlay.Dial(l.VPS.Socket())
	t.Cleanup(socket.Close)
	n := &network{l, socket.Admin()}
	if _, err := n.admin.AddUser(ctx, "alice", nil, nil); err != nil {
		t.Fatal(err)
	}
	echoes(t, l.Host)
	return ctx, n
}

// link invites a machine of alice's.
func (n *network) link(ctx context.Context, t *testing.T, name string) string {
	t.Helper()
	link, err := n.admin.Invite(ctx, coord.Invite{Name: name, User: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	return link.Encode()
}

func (n *network) gatewayLink(ctx context.Context, t *testing.T) string {
	t.Helper()
	link, err := n.VPS.Overlayd(ctx, lab.GatewayInvite...)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// A laptop without any rights is a member like others, through a gateway that
// has them.
func TestWithoutRoot(t *testing.T) {
	labtest.NeedRoot(t)
	ctx, n := newNetwork(t)
	if _, err := n.Gateway.Serve(ctx, "gateway", n.gatewayLink(ctx, t)); err != nil {
		t.Fatal(err)
	}
	alice := newPerson(t, n.Laptop)
	link := n.link(ctx, t, "alice-1")
	if out, err := alice.overlayd(ctx, "up", link); lab.ExitCode(err) != overlay.ExitPermission || !strings.Contains(out, "--userspace") {
		t.Errorf("without --userspace: %v\n%s", err, out)
	}
	before, err := n.Laptop.Run(ctx, "sh", "-c", "ip addr; ip rule; ip route show table all")
	if err != nil {
		t.Fatal(err)
	}
	alice.serve(ctx, t, "up", "--userspace", link)
	reaches(ctx, t, "alice", alice.dial)
	alice.alone(ctx, t)

	out, err := alice.overlayd(ctx, "status", "--json")
	var s overlay.Status
	if err == nil {
		err = json.Unmarshal([]byte(out), &s)
	}
	if err != nil || s.State != overlay.StateReady || !s.Node.Userspace || s.Node.Interface != "" {
		t.Errorf("status: %v\n%s", err, out)
	}
	if out, err := alice.overlayd(ctx, "plan"); err != nil || !strings.Contains(out, "userspace reach 192.168.1.0/24") || strings.Contains(out, "ip ") {
		t.Errorf("plan: %v\n%s", err, out)
	}
	for _, target := range []string{lab.HostAddr, lab.GatewayOverlay, lab.VPSOverlay} {
		if out, err := alice.overlayd(ctx, "ping", "-c", "1", target); err != nil && target == lab.HostAddr || !strings.Contains(out, target) {
			t.Errorf("ping %s: %v\n%s", target, err, out)
		}
	}
	after, err := n.Laptop.Run(ctx, "sh", "-c", "ip addr; ip rule; ip route show table all")
	if err != nil || after != before {
		t.Errorf("the laptop is not as it was: %v\n%s\n--- before\n%s", err, after, before)
	}
	c, err := alice.dial(ctx, "tcp", lab.HostAddr+":22")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	n.revoke(ctx, t, c)
}

// alone: her proxy and her forwards are for her programs, and not for those of another
// user of the machine.
func (p *person) alone(ctx context.Context, t *testing.T) {
	t.Helper()
	for _, args := range [][]string{{"proxy"}, {"forward", "127.0.0.1:8022", lab.HostAddr + ":22"}} {
		if out, err := p.overlayd(ctx, args...); err != nil || !strings.Contains(out, "your own programs") {
			t.Errorf("%s: %v\n%s", args, err, out)
		}
	}
	const greet = `exec 3<>/dev/tcp/127.0.0.1/$0 && printf "$1" >&3 && head -c $2 <&3 | od -An -tx1`
	for _, try := range []struct{ port, says, length, hears string }{
		{"1080", `\5\1\0`, "2", "05 00"}, {"8022", "hello", "5", "68 65 6c 6c 6f"},
	} {
		for user, want := range map[int]string{nobody: try.hears, nobody - 1: ""} {
			out, _ := p.m.Run(ctx, "setpriv", fmt.Sprint("--reuid=", user), fmt.Sprint("--regid=", user), "--clear-groups", // a reset is no news
				"timeout", "10", "bash", "-c", greet, try.port, try.says, try.length)
			if got := strings.TrimSpace(out); got != want && !(want == "" && !strings.Contains(got, try.hears)) {
				t.Errorf("user %d hears %q on port %s, want %q", user, got, try.port, want)
			}
		}
	}
}

// revoke takes alice away while she has a connection.
func (n *network) revoke(ctx context.Context, t *testing.T, c net.Conn) {
	t.Helper()
	if err := echoed(c, answersWithin); err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	began := time.Now()
	done := make(chan error, 1)
	go func() { _, err := n.admin.Revoke(ctx, "alice"); done <- err }()
	_, err := c.Read(make([]byte, 1))
	if took := time.Since(began); errors.Is(err, os.ErrDeadlineExceeded) || took > promised {
		t.Errorf("the connection ended after %v: %v", took, err)
	} else {
		t.Logf("revoked: %v after %v", err, took)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A gateway without any rights serves its LAN to members with and without an
// interface, and says what is true about it.
func TestGatewayWithoutRoot(t *testing.T) {
	labtest.NeedRoot(t)
	ctx, n := newNetwork(t)
	labtest.Run(ctx, t, n.Gateway, "sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647")
	gw := newPerson(t, n.Gateway)
	daemon := gw.serve(ctx, t, "gateway", "--userspace", n.gatewayLink(ctx, t))
	if _, err := n.Laptop.Serve(ctx, "up", n.link(ctx, t, "alice-1")); err != nil {
		t.Fatal(err)
	}
	reaches(ctx, t, "with an interface", func(ctx context.Context, network, address string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		return n.Laptop.DialContext(ctx, network+"4", address)
	})
	second := newPerson(t, n.Internet)
	second.serve(ctx, t, "up", "--userspace", n.link(ctx, t, "alice-2"))
	reaches(ctx, t, "without", second.dial)

	// A datagram that is refused.
	c, err := n.Laptop.DialContext(ctx, "udp4", lab.HostAddr+":54")
	if err != nil {
		t.Fatal(err)
	}
	if err := echoed(c, answersWithin); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a datagram for nobody: %v", err)
	}
	c.Close()
	n.pings(ctx, t)
	n.remembers(ctx, t, gw)

	// The gateway's own ports are those of its machine, but for the loopback's.
	n.own(ctx, t)

	// It dies and comes back: the old connection ends, new ones work.
	live, err := n.Laptop.DialContext(ctx, "tcp4", lab.HostAddr+":22")
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	if err := echoed(live, answersWithin); err != nil {
		t.Fatal(err)
	}
	daemon.Kill()
	if _, err := gw.m.Start(gw.unit[0], gw.args("gateway", "--userspace")...); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	err = lab.Until(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		c, err := n.Laptop.DialContext(ctx, "tcp4", lab.HostAddr+":22")
		if err != nil {
			return err
		}
		defer c.Close()
		return echoed(c, answersWithin)
	})
	took := time.Since(began)
	t.Logf("a new connection works %v after the gateway's start", took)
	if err != nil || took > 5*promised { // a busy machine may be slow; the figure is in the log
		t.Errorf("after a restart: %v, %v", took, err)
	}
	if err := echoed(live, answersWithin); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("the connection of before: %v", err)
	}
	c, err = n.Laptop.DialContext(ctx, "tcp4", lab.HostAddr+":22")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	n.revoke(ctx, t, c)
}

// pings sends echo requests through the gateway: with a ping socket, and where
// it may have none.
func (n *network) pings(ctx context.Context, t *testing.T) {
	t.Helper()
	try := func(how string) {
		t.Helper()
		labtest.Run(ctx, t, n.Laptop, "ping", "-n", "-c", "2", "-i", "0.2", "-W", "2", lab.HostAddr)
		if out, err := n.Laptop.Run(ctx, "ping", "-n", "-c", "1", "-W", "5", absent); err == nil || !strings.Contains(out, "Unreachable") {
			t.Errorf("%s: ping to nobody: %v\n%s", how, err, out)
		}
	}
	try("ping socket")
	labtest.Run(ctx, t, n.Laptop, "ping", "-n", "-c", "1", "-s", "4000", "-W", "2", lab.HostAddr)
	labtest.Run(ctx, t, n.Gateway, "sysctl", "-qw", "net.ipv4.ping_group_range=1 0")
	try("probe")
	out, err := n.Laptop.Run(ctx, "ping", "-n", "-c", "1", "-W", "2", "-t", "1", lab.HostAddr)
	if err == nil || !strings.Contains(out, "From "+lab.GatewayOverlay) {
		t.Errorf("a TTL of 1: %v\n%s", err, out)
	}
}

// remembers looks for the connections in the gateway's record.
func (n *network) remembers(ctx context.Context, t *testing.T, gw *person) {
	t.Helper()
	err := lab.Until(ctx, func(ctx context.Context) error {
		out, err := gw.overlayd(ctx, "audit", "--json", "--user", "alice", "--host", lab.HostAddr+":22")
		if err != nil {
			return err
		}
		seen := map[string]bool{}
		for line := range strings.Lines(out) {
			var l overlay.FlowLine
			if json.Unmarshal([]byte(line), &l) == nil && strings.HasPrefix(l.SeenAs, lab.GatewayAddr+":") {
				seen[l.Node] = true
			}
		}
		if !seen["alice-1"] || !seen["alice-2"] {
			return fmt.Errorf("the record does not say as whom the LAN host saw alice:\n%s", out)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// own connects to the gateway's own address.
func (n *network) own(ctx context.Context, t *testing.T) {
	t.Helper()
	if _, err := n.admin.Grant(ctx, "alice", "lab-gw", time.Hour); err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{"0.0.0.0:8001", "127.0.0.1:8002"} {
		labtest.Serve(t, n.Gateway, at, labtest.Echo)
	}
	to := netip.MustParseAddr(lab.GatewayOverlay)
	err := lab.Until(ctx, func(ctx context.Context) error { // until the grant is in force there
		c, err := n.Laptop.DialContext(ctx, "tcp4", netip.AddrPortFrom(to, 8001).String())
		if err != nil {
			return err
		}
		defer c.Close()
		return echoed(c, answersWithin)
	})
	if err != nil {
		t.Errorf("a port of the gateway's machine: %v", err)
	}
	if c, err := n.Laptop.DialContext(ctx, "tcp4", netip.AddrPortFrom(to, 8002).String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a port of its loopback: %v", err)
		if err == nil {
			c.Close()
		}
	}
}
