package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"overlayd/overlay"
	"overlayd/overlay/coord"
	"overlayd/overlay/key"
)

// world is the surroundings of one command line in a test: a daemon, a
// coordinator and a service manager that are plain data.
type world struct {
	out, err bytes.Buffer
	stdin    string
	env      map[string]string
	terminal bool

	status  overlay.Status
	pongs   []overlay.Pong
	carrier struct { // who is asked when pongs are none
		name  string
		pongs []overlay.Pong
	}
	check   overlay.Netcheck
	record  []string // its lines
	whois   overlay.Whois
	ways    overlay.Ways
	streams map[string]stream // by network and address; none: refused
	alone   error             // of a netcheck without a daemon
	down    error             // of the daemon's every call, when it does not run
	joined  bool              // this machine is a member already
	nodes   []coord.NodeInfo
	routes  []coord.RouteInfo
	invites []coord.InviteInfo
	refusal error      // of the coordinator's every call
	added   key.Public // the last device's

	calls  []string                                     // what was asked of daemon, coordinator and systemd
	member overlay.Options                              // of the daemon that was started
	hub    overlay.HubOptions                           // likewise, by relay
	run    func(context.Context, overlay.Options) error // what the started daemon does

	systemd systemd
	notRoot bool
}

var (
	testNow  = time.Date(2026, 5, 1, 10, 0, 0, 0, time.UTC)
	testLink = coord.Link{Endpoint: "203.0.113.10:443", Invite: "abcd2345", Secret: key.NewSecret()}
	linkText = testLink.Encode()
)

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{env: map[string]string{}, status: laptopStatus()}
	dir := t.TempDir()
	w.systemd = systemd{
		unitDir:    dir,
		notify:     func(s string) { w.calls = append(w.calls, "notify "+s) },
		executable: func() (string, error) { return "/usr/local/bin/overlayd", nil },
		ready:      func() error { return nil },
		systemctl: func(_ context.Context, args ...string) (string, error) {
			w.calls = append(w.calls, "systemctl "+strings.Join(args, " "))
			return "ActiveState=active\nSubState=running\nUnitFileState=enabled\nStatusText=laptop is 172.18.0.11\n", nil
		},
	}
	return w
}

func (w *world) program() *program {
	return &program{
		stdin: strings.NewReader(w.stdin), stdout: &w.out, stderr: &w.err,
		getenv:   func(k string) string { return w.env[k] },
		terminal: func(io.Writer) bool { return w.terminal },
		exec: func(name string, args []string) error {
			w.calls = append(w.calls, "exec "+name+" "+strings.Join(args, " "))
			return nil
		},
		exit:    func(code int) { panic(fmt.Sprintf("exit %d", code)) },
		now:     func() time.Time { return testNow },
		root:    func() bool { return !w.notRoot },
		systemd: w.systemd,
		engine: engine{
			dial: func(string) daemon { return w },
			connect: func(_ context.Context, _, network, address string) (stream, error) {
				if c := w.streams[network+" "+address]; c != nil {
					return c, nil
				}
				return nil, &overlay.Fault{Code: overlay.ExitDenied, Message: "refused by the policy", Hint: "overlayd request"}
			},
			coordinator: func(string) coordinator { return fakeCoordinator{world: w} },
			node: func(o overlay.Options) (runner, error) {
				w.member = o
				return w.runner(o), nil
			},
			hub: func(o overlay.HubOptions) (runner, error) {
				w.hub = o
				return w.runner(o.Options), nil
			},
			cleanup: func(_ context.Context, o overlay.Options) ([]string, error) {
				return []string{"removed " + o.Interface, "restored sysctls"}, nil
			},
			planText: func(_ context.Context, o overlay.Options) (string, error) {
				return "plan of " + o.StateDir + "\n", nil
			},
			netcheck: func(_ context.Context, o overlay.Options) (overlay.Netcheck, error) {
				w.calls = append(w.calls, "netcheck "+o.StateDir)
				return w.check, w.alone
			},
			joined: func(string) bool { return w.joined },
		},
	}
}

// do runs one command line.
func (w *world) do(args ...string) int {
	w.out.Reset()
	w.err.Reset()
	return w.program().main(context.Background(), args)
}

type runFunc func(context.Context) error

func (f runFunc) Run(ctx context.Context) error { return f(ctx) }

func (w *world) runner(o overlay.Options) runner {
	return runFunc(func(ctx context.Context) error {
		if w.run == nil {
			return nil
		}
		return w.run(ctx, o)
	})
}

func (w *world) Status(context.Context) (overlay.Status, error) { return w.status, w.down }
func (w *world) Plan(context.Context) (string, error)           { return "plan of the daemon", w.down }
func (w *world) Down(context.Context) error {
	w.calls = append(w.calls, "down")
	return w.down
}

func (w *world) Rotate(context.Context) (key.Public, error) {
	w.calls = append(w.calls, "rotate")
	return key.Public{}, nil
}

func (w *world) Renew(_ context.Context, link string) error {
	w.calls = append(w.calls, "renew "+link)
	return nil
}

func (w *world) Ping(_ context.Context, target string, count int, interval time.Duration, each func(overlay.Pong)) error {
	w.calls = append(w.calls, fmt.Sprintf("ping %s %d %s", target, count, interval))
	all := w.pongs
	if target == w.carrier.name {
		all = w.carrier.pongs
	}
	for _, p := range all {
		each(p)
	}
	return w.down
}

func (w *world) Netcheck(context.Context) (overlay.Netcheck, error) { return w.check, w.down }

func (w *world) Audit(_ context.Context, q overlay.AuditQuery, each func([]byte) error) error {
	w.calls = append(w.calls, fmt.Sprintf("audit %+v", q))
	for _, l := range w.record {
		if err := each([]byte(l)); err != nil {
			return err
		}
	}
	return w.down
}

func (w *world) Reach(context.Context) (overlay.Reach, error) {
	return overlay.Reach{
		Prefixes: []netip.Prefix{netip.MustParsePrefix("172.18.0.0/24"), netip.MustParsePrefix("192.168.1.0/24")},
		Names:    []string{"laptop", "Lab-GW"}, Domains: []string{"lab"},
	}, w.down
}

func (w *world) Ways(context.Context) (overlay.Ways, error) { return w.ways, w.down }

func (w *world) SetProxy(_ context.Context, listen, password string) (overlay.Ways, error) {
	w.calls = append(w.calls, fmt.Sprintf("proxy %s %d", listen, len(password)))
	w.ways.Proxy = &overlay.ProxyState{Listen: listen, Password: password != "", User: "overlayd", Outside: strings.HasPrefix(listen, "127.")}
	w.ways.OwnUser = true
	return w.ways, w.down
}

func (w *world) AddForward(_ context.Context, network, listen, target string, remote bool) (overlay.Ways, error) {
	w.calls = append(w.calls, fmt.Sprintf("forward %s %s %s %t", network, listen, target, remote))
	return w.ways, w.down
}

func (w *world) RemoveForward(_ context.Context, network, listen string) (overlay.Ways, error) {
	w.calls = append(w.calls, fmt.Sprintf("unforward %q %s", network, listen))
	left := w.ways
	left.Forwards = slices.DeleteFunc(slices.Clone(left.Forwards), func(f overlay.ForwardLine) bool { return f.Listen == listen })
	return left, w.down
}

func (w *world) Whois(_ context.Context, target string) (overlay.Whois, error) {
	w.whois.Target = target
	return w.whois, w.down
}

// fakeCoordinator keeps the members in the world.
type fakeCoordinator struct {
	*world
	coordinator // nil: a test that gets here fails
}

func (c fakeCoordinator) called(format string, args ...any) error {
	c.calls = append(c.calls, fmt.Sprintf(format, args...))
	return c.refusal
}

func (c fakeCoordinator) Invite(_ context.Context, i coord.Invite) (coord.Link, error) {
	return testLink, c.called("invite %q %v %v %d %s", i.Name, i.Routes, i.Address, i.Uses, i.TTL)
}
func (c fakeCoordinator) Invites(context.Context) ([]coord.InviteInfo, error) {
	return c.invites, c.refusal
}
func (c fakeCoordinator) RevokeInvite(_ context.Context, id string) error {
	return c.called("revoke %s", id)
}
func (c fakeCoordinator) Nodes(context.Context) ([]coord.NodeInfo, error) { return c.nodes, c.refusal }
func (c fakeCoordinator) RenameNode(_ context.Context, node, name string) (coord.NodeInfo, error) {
	return coord.NodeInfo{Node: coord.Node{Name: name}}, c.called("rename %s %s", node, name)
}
func (c fakeCoordinator) RenewNode(_ context.Context, node string, ttl time.Duration) (coord.NodeInfo, error) {
	n := coord.NodeInfo{Node: coord.Node{Name: node}}
	if ttl != coord.ForEver {
		n.Expires = time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)
	}
	return n, c.called("renew %s %s", node, ttl)
}
func (c fakeCoordinator) AddDevice(_ context.Context, user, name string, k key.Public) (coord.Device, error) {
	c.added = k
	d := coord.Device{
		RelayKey: relayKey, Endpoint: "203.0.113.10:443", Prefixes: []netip.Prefix{netip.MustParsePrefix("172.18.0.0/24"), netip.MustParsePrefix("192.168.1.0/24")},
	}
	d.Node = coord.Node{ID: "n9", Name: name, User: user, Addrs: []netip.Addr{netip.MustParseAddr("172.18.0.14")}, WireGuard: k, Host: "n1", State: coord.NodeActive}
	return d, c.called("add device %s of %s", name, user)
}

func (c fakeCoordinator) MakeSeed(_ context.Context, user string) (uri, seed string, err error) {
	return "otpauth://totp/overlayd:" + user + "?secret=AAAA", "AAAA", c.called("make seed of %s", user)
}

func (c fakeCoordinator) RemoveNode(_ context.Context, node string) (coord.NodeInfo, error) {
	return coord.NodeInfo{Node: coord.Node{Name: node}}, c.called("remove %s", node)
}
func (c fakeCoordinator) Routes(context.Context) ([]coord.RouteInfo, error) {
	return c.routes, c.refusal
}
func (c fakeCoordinator) ApproveRoute(_ context.Context, node string, p netip.Prefix) (coord.RouteInfo, error) {
	r := coord.RouteInfo{Route: coord.Route{Prefix: p, Approved: true}, Node: "lab-gw", Advertised: true, Online: true}
	return r, c.called("approve %q %s", node, p)
}
func (c fakeCoordinator) WithdrawRoute(_ context.Context, node string, p netip.Prefix) (coord.RouteInfo, error) {
	r := coord.RouteInfo{Route: coord.Route{Prefix: p}, Node: "lab-gw"}
	return r, c.called("withdraw %q %s", node, p)
}

var notRunning = &overlay.Fault{Code: overlay.ExitNotRunning, Message: "no overlayd answers", Hint: "overlayd up"}

var commandLines = []struct {
	name     string
	args     string
	set      func(*world)
	code     int
	out, err string
}{
	{name: "story", args: "", out: "Three machines, three commands"},
	{name: "help", args: "help", out: "Look after"},
	{name: "help of a verb", args: "help gateway", out: "overlayd gateway [LINK] [flags]"},
	{name: "help flag", args: "invite revoke --help", out: "Make a link worthless"},
	{name: "help of an unknown verb", args: "help stauts", code: 2, err: "hint: did you mean overlayd status?"},
	{name: "unknown verb", args: "stauts", code: 2, err: "overlayd: unknown verb \"stauts\"\nhint: did you mean overlayd status?\n"},
	{name: "habit", args: "join", code: 2, err: "did you mean overlayd up?"},
	{name: "unknown verb below", args: "nodes delete", code: 2, err: "overlayd: unknown verb \"delete\"\nhint: overlayd help nodes\n"},
	{name: "unknown flag", args: "gateway --advertize 10.0.0.0/8", code: 2, err: "overlayd: unknown flag --advertize\nhint: did you mean --advertise?\n"},
	{name: "ssh's own flag", args: "ssh -p 2222 lab-gw", code: 2, err: "unknown flag -p\nhint: ssh's own options come behind the host"},
	{name: "unknown short flag", args: "status -z", code: 2, err: "unknown flag -z"},
	{name: "flag without value", args: "up --name", code: 2, err: "flag needs an argument: --name"},
	{name: "too many words", args: "up " + linkText + " " + linkText, code: 2, err: "takes one LINK at most, got 2"},
	{name: "no words", args: "status now", code: 2, err: "overlayd: overlayd status takes no arguments"},
	{name: "bad level", args: "status --log-level loud", code: 2, err: `--log-level: "loud" is none of debug, info, warn, error`},

	{name: "host bits", args: "gateway --advertise 192.168.1.5/24", code: 2,
		err: "overlayd: --advertise: 192.168.1.5/24 has host bits set\nhint: did you mean 192.168.1.0/24?\n"},
	{name: "everything", args: "gateway --advertise 0.0.0.0/0", code: 2, err: "0.0.0.0/0 is everything there is"},
	{name: "no prefix", args: "gateway --advertise 192.168.1.0", code: 2, err: "write it as 192.168.1.0/24"},
	{name: "IPv6", args: "gateway --advertise fd00::/64", code: 2, err: "not an IPv4 prefix"},
	{name: "twice", args: "gateway --advertise 10.0.0.0/8 --advertise 10.1.0.0/16", code: 2, err: "10.0.0.0/8 contains 10.1.0.0/16"},
	{name: "mangled link", args: "gateway " + linkText[:len(linkText)-3], code: 2, err: "mangled"},
	{name: "address outside", args: "relay --public 203.0.113.10 --overlay 172.18.0.0/24 --address 10.0.0.1", code: 2, err: "10.0.0.1 is not in the overlay"},
	{name: "bad public", args: "relay --public 0.0.0.0", code: 2, err: "no address that others can reach"},
	{name: "certificate alone", args: "relay --public h --tls-cert f", code: 2, err: "--tls-cert and --tls-key belong together"},

	{name: "not running", args: "status", set: func(w *world) { w.down = notRunning }, code: 3, err: "overlayd: no overlayd answers\nhint: overlayd up\n"},
	{name: "check not running", args: "status --check live", set: func(w *world) { w.down = notRunning }, code: 3},
	{name: "check ready", args: "status --check ready"},
	{name: "check approval", args: "status --check ready", set: state(overlay.StateNeedsApproval), code: 4},
	{name: "check invite", args: "status --check ready", set: state(overlay.StateNeedsInvite), code: 4},
	{name: "check disabled", args: "status --check ready", set: state(overlay.StateDisabled), code: 6},
	{name: "check expired", args: "status --check ready", set: state(overlay.StateExpired), code: 6},
	{name: "check degraded", args: "status --check ready", set: state(overlay.StateDegraded), code: 5},
	{name: "check live degraded", args: "status --check live", set: state(overlay.StateDegraded)},
	{name: "check starting", args: "status --check ready", set: state(overlay.StateStarting), code: 5},
	{name: "check stopped", args: "status --check live", set: state(overlay.StateStopped), code: 3},
	{name: "check what", args: "status --check well", code: 2, err: `"well" is none of live, ready`},

	{name: "plan of the daemon", args: "plan", out: "plan of the daemon\n"},
	{name: "plan without it", args: "plan --state-dir /x", set: func(w *world) { w.down = notRunning }, out: "plan of /x\n"},
	{name: "down", args: "down", out: "stopped; the machine is as it was\n"},
	{name: "down without daemon", args: "down", set: func(w *world) { w.down = notRunning }, code: 3, err: "no overlayd answers"},
	{name: "cleanup", args: "cleanup --interface ovl7", out: "removed ovl7\nrestored sysctls\n"},

	{name: "ping", args: "ping lab-gw -c 2", set: func(w *world) {
		at := netip.MustParseAddr("172.18.0.200")
		w.pongs = []overlay.Pong{
			{Seq: 1, Addr: at, RTT: 1234 * time.Microsecond, Path: relayedPath("")},
			{Seq: 2, Addr: at, Lost: true, Path: relayedPath("")},
		}
	}, out: "pong from 172.18.0.200: seq 1, 1.23 ms, relay vps udp\nno answer from 172.18.0.200: seq 2, relay vps udp\n" +
		"2 sent, 1 answered, least 1.23 ms, mean 1.23 ms, most 1.23 ms\n"},
	{name: "ping in vain", args: "ping 192.168.1.9", set: func(w *world) {
		w.pongs = []overlay.Pong{{Seq: 1, Addr: netip.MustParseAddr("192.168.1.9"), Lost: true}}
	}, code: 7, out: "1 sent, 0 answered", err: "192.168.1.9 does not answer"},
	{name: "ping what", args: "ping", code: 2, err: "takes one NAME or IP"},

	{name: "no invites", args: "invite list", err: "no invite is open\n"},
	{name: "invite", args: "invite", out: linkText + "\n"},
	{name: "invite to a person", args: "invite --gateway 192.168.1.0/24", set: func(w *world) { w.terminal = true },
		out: linkText + "\n", err: "sudo overlayd gateway LINK"},
	{name: "invite of a relay", args: "invite --relay --name vps2", set: func(w *world) { w.terminal = true },
		out: linkText + "\n", err: "sudo overlayd relay --join LINK --public ADDRESS"},
	{name: "invite of a relay that is a gateway", args: "invite --relay --gateway 192.168.1.0/24", code: 2, err: "do not go together"},
	{name: "invite for many with one name", args: "invite --uses 3 --name x", code: 2, err: "3 machines cannot share one name or address"},
	{name: "invite for none", args: "invite --uses 0", code: 2, err: "--uses"},
	{name: "invite refused", args: "invite --address 172.18.0.10", set: func(w *world) {
		w.refusal = &coord.Problem{Kind: coord.KindConflict, Message: "172.18.0.10 belongs to vps", Hint: "choose another"}
	}, code: 8, err: "overlayd: 172.18.0.10 belongs to vps\nhint: choose another\n"},
	{name: "invite without daemon", args: "invite", set: func(w *world) {
		w.refusal = connect.NewError(connect.CodeUnavailable, &net.OpError{Op: "dial", Net: "unix", Err: fs.ErrNotExist})
	}, code: 3, err: "overlayd: no overlayd answers on "},
	{name: "invite on a laptop", args: "invite", set: func(w *world) {
		w.refusal = connect.NewError(connect.CodeUnimplemented, errors.New("404 Not Found"))
	}, code: 1, err: "overlayd: this machine is not the network's coordinator\nhint: run this command on the first relay\n"},
	{name: "revoke", args: "invite revoke abcd2345", out: "revoked abcd2345\n"},
	{name: "revoke by link", args: "invite revoke " + linkText, out: "revoked abcd2345\n"},
	{name: "rename", args: "nodes rename debian lab-gw", out: "debian is now called lab-gw\n"},
	{name: "rename badly", args: "nodes rename debian lab_gw", code: 2, err: `NAME: "lab_gw" is not a name`},
	{name: "remove", args: "nodes remove laptop", out: "removed laptop\n"},
	{name: "rotate", args: "rotate", out: key.Public{}.String() + "\n"},
	{name: "renew with a link", args: "renew " + linkText, out: "renewed; overlayd status tells"},
	{name: "renew with nothing", args: "renew", code: 2, err: "there is no link"},
	{name: "renew", args: "nodes renew laptop", out: "renewed laptop until 2027-01-02T03:04:05Z\n"},
	{name: "renew for ever", args: "nodes renew laptop --for never", out: "renewed laptop: it does not expire\n"},
	{name: "renew for nothing", args: "nodes renew laptop --for 0d", code: 2, err: "not above zero"},
	{name: "key-ttl of a gateway", args: "invite --gateway 192.168.1.0/24 --key-ttl 30d", code: 2, err: "does not expire"},
	{name: "approve", args: "routes approve 192.168.1.0/24", out: "192.168.1.0/24 through lab-gw: approved\n"},
	{name: "withdraw", args: "routes withdraw 192.168.1.0/24 --node lab-gw", out: "192.168.1.0/24 through lab-gw: withdrawn\n"},
	{name: "approve nonsense", args: "routes approve lab", code: 2, err: `PREFIX: "lab" is not a network prefix`},

	{name: "version", args: "version", out: "wireguard-go"},
	{name: "completion", args: "completion bash", out: "__start_overlayd"},
	{name: "completion of no shell", args: "completion tcsh", code: 2, err: `unknown shell "tcsh"`},
	{name: "complete nodes", args: "__complete ping ''", out: "lab-gw\nvps\n:4\n"},
	{name: "complete nothing", args: "__complete ping ''", set: func(w *world) { w.down = notRunning }, out: ":4"},
	{name: "complete choices", args: "__complete service install ''", out: "gateway"},
}

// TestCommandLines runs whole command lines and compares the exit code and what
// is printed: "" is nothing, a text with a newline at its end is all of it,
// any other has to be in it.
func TestCommandLines(t *testing.T) {
	for _, c := range commandLines {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			if c.set != nil {
				c.set(w)
			}
			args := strings.Fields(c.args)
			for i := range args {
				args[i] = strings.ReplaceAll(args[i], "''", "")
			}
			if code := w.do(args...); code != c.code {
				t.Errorf("exit code %d, want %d; stderr:\n%s", code, c.code, &w.err)
			}
			compare(t, "stdout", w.out.String(), c.out)
			if !strings.HasPrefix(c.args, "__complete") { // cobra explains itself there
				compare(t, "stderr", w.err.String(), c.err)
			}
		})
	}
}

func state(s string) func(*world) { return func(w *world) { w.status.State = s } }

func compare(t *testing.T, what, got, want string) {
	t.Helper()
	whole := want == "" || strings.HasSuffix(want, "\n")
	if whole && got != want || !whole && !strings.Contains(got, want) {
		t.Errorf("%s:\n%s\nwant:\n%s", what, got, want)
	}
}

// TestLinkStaysHidden gives every verb a link in every wrong place, and looks
// for its secret in what is printed.
func TestLinkStaysHidden(t *testing.T) {
	link := testLink.Encode()
	secret := strings.Split(link, ".")[len(strings.Split(link, "."))-2]
	broken := link[:len(link)-1]
	file := filepath.Join(t.TempDir(), "none")
	for _, args := range [][]string{
		{link}, {broken}, {"up", broken}, {"up", link, link}, {"gateway", broken}, {"gateway", "--advertise", link},
		{"relay", link}, {"relay", "--public", link}, {"relay", "--listen", link}, {"up", "--name", link},
		{"nodes", link}, {"nodes", "remove", link}, {"nodes", "rename", "a", link}, {"routes", "approve", link},
		{"invite", "--" + link}, {"invite", "revoke", broken}, {"ping", link}, {"ping", link, link},
		{"--config", link, "status"}, {"help", link}, {"completion", link}, {"service", "install", link},
		{"service", "install", "--print", "up", link}, {"service", "install", "up", link, link},
		{"status", "--check", link}, {"status", "--log-level", link}, {"up", "--link-file", file, "--port", link},
	} {
		t.Run(strings.Join(args[:1], " "), func(t *testing.T) {
			w := newWorld(t)
			w.refusal = &coord.Problem{Kind: coord.KindNotFound, Message: "there is no " + args[len(args)-1]}
			w.do(args...)
			if strings.Contains(w.out.String()+w.err.String(), secret) {
				t.Errorf("overlayd %s printed the secret:\n%s%s", args[0], &w.out, &w.err)
			}
		})
	}
}
