package overlay

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"overlayd/overlay/coord"
)

// fakeSockets answer as they are told, and remember what they were asked.
type fakeSockets struct {
	errs   map[string]error // by address with port; none: there is a connection
	dialed []string
}

func (f *fakeSockets) Dial(ctx context.Context, network string, _ netip.Addr, to netip.AddrPort) (net.Conn, error) {
	f.dialed = append(f.dialed, network+" "+to.String())
	switch err := f.errs[to.String()]; {
	case err == context.DeadlineExceeded:
		<-ctx.Done()
		return nil, &net.OpError{Op: "dial", Net: network, Err: ctx.Err()}
	case err != nil:
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	c, other := net.Pipe()
	other.Close()
	return c, nil
}

func (f *fakeSockets) Listen(_ context.Context, network string, at netip.AddrPort) (net.Listener, error) {
	f.dialed = append(f.dialed, "listen "+network+" "+at.String())
	return nil, f.errs[at.String()]
}

func (f *fakeSockets) ListenPacket(_ context.Context, network string, at netip.AddrPort) (net.PacketConn, error) {
	f.dialed = append(f.dialed, "listen "+network+" "+at.String())
	return nil, f.errs[at.String()]
}

// dialingNode is a laptop with a gateway to 192.168.1.0/24 and one that is away.
func dialingNode(t *testing.T, s sockets) *Node {
	t.Helper()
	n, err := New(Options{StateDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	m := testMap(testNode("laptop", 11, coord.RoleMember, true),
		testNode("Lab-GW", 200, coord.RoleGateway, true, approved("192.168.1.0/24"), approved("10.9.0.0/16")),
		testNode("far-gw", 201, coord.RoleGateway, false, approved("192.168.7.0/24")))
	m.Closed = []netip.Prefix{prefix("10.55.0.0/16")}
	n.update(func(v *view) { v.m, v.plan, v.live = m, testPlan(m, testHost("10.9.0.5/16")), &machine{sockets: s} })
	return n
}

// TestDial: which address is asked, and what is said when that fails.
func TestDial(t *testing.T) {
	tests := []struct {
		name    string
		network string
		address string
		err     error  // of the sockets
		dialed  string // "": the sockets are not asked
		reason  DialReason
		code    int
		says    string // part of the message
		hint    string // part of the hint
	}{
		{name: "an address", network: "tcp", address: "192.168.1.10:80", dialed: "tcp 192.168.1.10:80"},
		{name: "a name in another case, with a dot", network: "tcp4", address: "LAB-gw.:ssh", dialed: "tcp 172.18.0.200:22"},
		{name: "this machine", network: "udp", address: "laptop:53", dialed: "udp 172.18.0.11:53"},
		{name: "mapped", network: "tcp", address: "[::ffff:192.168.1.10]:80", dialed: "tcp 192.168.1.10:80"},
		{name: "refused", network: "tcp", address: "192.168.1.10:81", err: syscall.ECONNREFUSED, dialed: "tcp 192.168.1.10:81",
			reason: ReasonRefused, code: ExitUnreachable, says: "connect to 192.168.1.10:81: refused by the host", hint: "service"},
		{name: "refused by name", network: "tcp", address: "lab-gw:81", err: syscall.ECONNREFUSED, dialed: "tcp 172.18.0.200:81",
			reason: ReasonRefused, code: ExitUnreachable, says: "connect to lab-gw:81 (172.18.0.200): refused"},
		{name: "no such host there", network: "tcp", address: "192.168.1.77:80", err: syscall.EHOSTUNREACH, dialed: "tcp 192.168.1.77:80",
			reason: ReasonUnreachable, code: ExitUnreachable, says: "Lab-GW says that the host does not answer"},
		{name: "silence", network: "tcp", address: "192.168.1.9:80", err: context.DeadlineExceeded, dialed: "tcp 192.168.1.9:80",
			reason: ReasonTimeout, code: ExitUnreachable, says: "no answer in time", hint: "overlayd ping 192.168.1.9`"},
		{name: "gateway away", network: "tcp", address: "192.168.7.9:80", err: syscall.ETIMEDOUT, dialed: "tcp 192.168.7.9:80",
			reason: ReasonOffline, code: ExitUnreachable, says: "far-gw, which carries it, is offline", hint: "on far-gw"},
		{name: "no route", network: "tcp", address: "198.51.100.1:80", reason: ReasonOutside, code: ExitUnreachable,
			says: "no node carries that address", hint: "overlayd explain 198.51.100.1:80`"},
		{name: "own network wins", network: "tcp", address: "10.9.3.4:80", reason: ReasonOutside, code: ExitUnreachable,
			says: "10.9.0.0/16 via Lab-GW is not used: eth0 is itself on 10.9.0.0/16"},
		{name: "closed to this machine", network: "udp", address: "10.55.3.4:53", reason: ReasonPolicy, code: ExitDenied,
			says: "refused by the policy, which lets this machine reach nothing in 10.55.0.0/16", hint: "overlayd request 10.55.3.4:53/udp"},
		{name: "the loopback", network: "tcp", address: "127.0.0.1:80", reason: ReasonOutside, code: ExitUnreachable},
		{name: "unknown name", network: "tcp", address: "nowhere:80", reason: ReasonNoName, code: ExitFailure,
			says: "connect to nowhere: no machine of the network", hint: "overlayd peers"},
		{name: "the wrong family", network: "tcp6", address: "lab-gw:80", reason: ReasonNoName, code: ExitFailure, says: "no address for tcp6"},
		{name: "no port", network: "tcp", address: "lab-gw", code: ExitUsage, says: "not a host with a port"},
		{name: "a port too high", network: "tcp", address: "lab-gw:70000", code: ExitUsage, says: "is no port"},
		{name: "another protocol", network: "sctp", address: "lab-gw:1", code: ExitUsage, says: "does not pass"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &lanSockets{fakeSockets: fakeSockets{errs: map[string]error{}}, lans: map[string]map[string][]string{nearGW: {}, farGW: {}}}
				if _, at, ok := strings.Cut(test.dialed, " "); ok {
					s.errs[at] = test.err
				}
				c, err := dialingNode(t, s).DialContext(t.Context(), test.network, test.address)
				if got := strings.Join(s.dialed, ";"); got != test.dialed {
					t.Errorf("the sockets were asked %q, want %q", got, test.dialed)
				}
				if test.code == 0 {
					if err != nil {
						t.Fatal(err)
					}
					c.Close()
					return
				}
				f := AsFault(err)
				if f.Code != test.code || !strings.Contains(f.Message, test.says) || !strings.Contains(f.Hint, test.hint) {
					t.Errorf("got %d %q (hint %q), want %d %q (hint %q)", f.Code, f.Message, f.Hint, test.code, test.says, test.hint)
				}
				if d, ok := errors.AsType[*DialError](err); ok != (test.reason != "") || ok && d.Reason != test.reason {
					t.Errorf("got %#v, want the reason %q", err, test.reason)
				}
				if test.err != nil && test.err != context.DeadlineExceeded && !errors.Is(err, test.err) {
					t.Errorf("%v does not wrap what the sockets said", err)
				}
			})
		})
	}
}

// TestDialWaitsForStart: who is early waits for the first plan, but not for ever.
func TestDialWaitsForStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeSockets{}
		n := dialingNode(t, s)
		ready := n.look()
		n.update(func(v *view) { *v = view{} })
		began := time.Now()
		_, err := n.DialContext(t.Context(), "tcp", "192.168.1.10:80")
		if AsFault(err).Code != ExitNotJoined || time.Since(began) != startWait {
			t.Errorf("after %v: %v, want the node's not being ready after %v", time.Since(began), err, startWait)
		}
		time.AfterFunc(time.Second, func() { n.update(func(v *view) { *v = ready }) })
		c, err := n.DialContext(t.Context(), "tcp", "192.168.1.10:80")
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	})
}

// TestDialAfterEnd: nobody waits for a node whose Run has returned, or hears that it is
// only starting.
func TestDialAfterEnd(t *testing.T) {
	for name, c := range map[string]struct{ cause, want error }{
		"it was told to stop": {nil, errStopped},
		"it failed":           {syscall.EPERM, syscall.EPERM},
	} {
		synctest.Test(t, func(t *testing.T) {
			n := dialingNode(t, &fakeSockets{})
			n.update(func(v *view) { *v = view{} })
			time.AfterFunc(time.Second, func() { n.end(c.cause) })
			began := time.Now()
			_, err := n.DialContext(t.Context(), "tcp", "192.168.1.10:80")
			if !errors.Is(err, c.want) || time.Since(began) != time.Second {
				t.Errorf("%s: after %v: %v, want %v when it ended", name, time.Since(began), err, c.want)
			}
			if _, err := n.Listen(t.Context(), "tcp", ":80"); !errors.Is(err, c.want) {
				t.Errorf("%s: to listen: %v", name, err)
			}
		})
	}
}

// TestListenOwn: only this node's own addresses are listened on.
func TestListenOwn(t *testing.T) {
	s := &fakeSockets{errs: map[string]error{"172.18.0.11:81": syscall.EADDRINUSE}}
	n := dialingNode(t, s)
	for address, code := range map[string]int{
		":80": ExitOK, "172.18.0.11:80": ExitOK, ":81": ExitConflict,
		"0.0.0.0:80": ExitUsage, "192.168.1.10:80": ExitUsage, "127.0.0.1:80": ExitUsage, "80": ExitUsage,
	} {
		_, err := n.Listen(t.Context(), "tcp", address)
		got := ExitOK
		if err != nil {
			got = AsFault(err).Code
		}
		if got != code {
			t.Errorf("Listen %s: %v, want exit code %d", address, err, code)
		}
	}
	if _, err := n.ListenPacket(t.Context(), "udp", ":53"); err != nil {
		t.Error(err)
	}
}
