//go:build linux

package lab_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"overlayd/examples/lab"
	"overlayd/examples/lab/labtest"
	"overlayd/overlay"
	"overlayd/overlay/coord"
)

// endsWithin is how soon what was taken away ends: a second is promised.
const endsWithin = time.Second

// accessPolicy lets alice have one port of one host, and bob everything.
const accessPolicy = `
hosts: {nas: 192.168.1.201}
rules:
  - {name: students-ssh, src: group:students, dst: nas, ports: tcp/22}
  - {name: admins, src: user:bob, dst: "*"}
tests:
  - {who: alice, accept: "nas:22", deny: ["nas:80", "nas:53/udp"]}
`

// company is a lab with people in it: alice on the laptop, and bob on the
// machine in the middle of the internet.
type company struct {
	*lab.Lab
	admin                      *coord.Admin
	relay, gateway, alice, bob *lab.Process
	bare                       string // the laptop, before overlayd
}

func newCompany(t *testing.T, o lab.Options) (context.Context, *company) {
	t.Helper()
	labtest.NeedRoot(t)
	o.Overlayd = labtest.Overlayd(t)
	ctx, l := labtest.New(t, o)
	c := &company{Lab: l, bare: everything(ctx, t, l.Laptop)}
	c.relay = serve(ctx, t, l.VPS, lab.RelayArgs...)
	socket := overlay.Dial(l.VPS.Socket())
	t.Cleanup(socket.Close)
	c.admin = socket.Admin()
	for _, name := range []string{"alice", "bob"} {
		must[coord.User](t)(c.admin.AddUser(ctx, name, nil, nil))
	}
	must[coord.Group](t)(c.admin.AddGroup(ctx, "students", []string{"alice"}))
	must[coord.PolicyChange](t)(c.admin.ApplyPolicy(ctx, accessPolicy))
	link := must[string](t)(l.VPS.Overlayd(ctx, lab.GatewayInvite...))
	c.gateway = serve(ctx, t, l.Gateway, "gateway", link)
	c.alice = c.atHome(ctx, t, "up", c.invite(ctx, t, "alice"))
	c.bob = serve(ctx, t, l.Internet, "up", c.invite(ctx, t, "bob"))
	return ctx, c
}

// atHome starts the laptop's overlayd with a name server of its own: that of who runs
// the tests may have an address of the lab's LAN.
func (c *company) atHome(ctx context.Context, t *testing.T, args ...string) *lab.Process {
	t.Helper()
	resolv := filepath.Join(c.Dir, "resolv.conf")
	if err := os.WriteFile(resolv, []byte("nameserver 10.0.77.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	const script = `mount --bind "$1" /etc/resolv.conf && shift && exec "$0" "$@"`
	p := must[*lab.Process](t)(c.Laptop.Start("sh", append([]string{"-c", script, c.Options.Overlayd, resolv}, args...)...))
	if err := c.Laptop.Ready(ctx, p); err != nil {
		t.Fatal(err)
	}
	return p
}

func (c *company) invite(ctx context.Context, t *testing.T, user string) string {
	t.Helper()
	link := must[coord.Link](t)(c.admin.Invite(ctx, coord.Invite{Name: user + "-1", User: user}))
	return link.Encode()
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func serve(ctx context.Context, t *testing.T, m *lab.Machine, args ...string) *lab.Process {
	t.Helper()
	return must[*lab.Process](t)(m.Serve(ctx, args...))
}

// services listens on the LAN host's ports 22 and 80, and on 53 for datagrams.
// What comes is echoed.
func services(t *testing.T, m *lab.Machine) {
	t.Helper()
	for _, port := range []string{"22", "80"} {
		labtest.Serve(t, m, lab.HostAddr+":"+port, labtest.Echo)
	}
	labtest.ServePackets(t, m, lab.HostAddr+":53", labtest.EchoPacket)
}

// says sends a word over a connection, and returns how the echo fails to come.
func says(conn net.Conn, within time.Duration) error {
	_ = conn.SetDeadline(time.Now().Add(within))
	if _, err := io.WriteString(conn, "hello"); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 5))
	return err
}

// reaches dials a service and says something, within two seconds.
func reaches(ctx context.Context, m *lab.Machine, network, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := m.DialContext(ctx, network, addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	return says(conn, 2*time.Second)
}

// Alice reaches what the policy says and nothing else, and is told at once; bob
// reaches everything. It is the same whichever way the packets go.
func TestAccess(t *testing.T) {
	for _, tt := range []struct {
		name, kind, transport string
		o                     lab.Options
	}{
		{"by the relay", "relay", "udp", lab.Options{Home: lab.Hard, Lab: lab.Hard}},
		{"directly", "direct", "udp", lab.Options{}},
		{"by TLS", "relay", "tls", lab.Options{Home: lab.NoUDP, Lab: lab.Hard}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, c := newCompany(t, tt.o)
			services(t, c.Host)
			if err := reaches(ctx, c.Laptop, "tcp4", "192.168.1.201:22"); err != nil {
				t.Errorf("alice does not reach port 22: %v", err)
			}
			waitFor(ctx, t, c.Laptop, func(s status) error {
				for _, p := range s.Peers {
					if p.Name == "lab-gw" && p.Path.Kind == tt.kind && p.Path.Transport == tt.transport {
						return nil
					}
				}
				// A path is only looked for while packets want to go somewhere.
				if err := reaches(ctx, c.Laptop, "tcp4", "192.168.1.201:22"); err != nil {
					return err
				}
				return fmt.Errorf("alice's peers are %+v, want %s %s", s.Peers, tt.kind, tt.transport)
			})
			c.refuses(ctx, t)
			for _, s := range [][2]string{{"tcp4", "192.168.1.201:22"}, {"tcp4", "192.168.1.201:80"}, {"udp4", "192.168.1.201:53"}} {
				if err := reaches(ctx, c.Internet, s[0], s[1]); err != nil {
					t.Errorf("bob does not reach %s %s: %v", s[0], s[1], err)
				}
			}
			labtest.Run(ctx, t, c.Internet, "ping", "-n", "-c", "2", "-i", "0.2", "-W", "2", lab.HostAddr)
			if err := reaches(ctx, c.Laptop, "tcp4", "192.168.1.201:22"); err != nil {
				t.Errorf("alice does not reach port 22 any more: %v", err)
			}
			c.remembers(ctx, t)
			c.closes(ctx, t)
		})
	}
}

// closes takes the last rule from alice. Nothing behind the gateway is for her
// then, and her own machine says so at once, in the words of the gateway.
func (c *company) closes(ctx context.Context, t *testing.T) {
	t.Helper()
	const nothing = "rules:\n  - {name: admins, src: user:bob, dst: \"*\"}\n"
	must[coord.PolicyChange](t)(c.admin.ApplyPolicy(ctx, nothing))
	waitFor(ctx, t, c.Laptop, func(s status) error {
		for _, r := range s.Routes {
			if r.Prefix == lab.LAN && r.State == overlay.RouteRefused {
				return nil
			}
		}
		return fmt.Errorf("alice's routes are %+v, want one that is refused", s.Routes)
	})
	c.refusesAll(ctx, t)
	c.toolsSay(ctx, t)
	for _, args := range [][]string{{"ping", lab.HostAddr}, {"nc", lab.HostAddr, "22"}} {
		out, err := c.Laptop.Run(ctx, c.Options.Overlayd, args...)
		if lab.ExitCode(err) != overlay.ExitDenied || !strings.Contains(out, "nothing in "+lab.LAN) {
			t.Errorf("overlayd %s: %v\n%s", args, err, out)
		}
	}
}

// toolsSay has curl and ping tell alice of a refusal, each in its own words.
func (c *company) toolsSay(ctx context.Context, t *testing.T) {
	t.Helper()
	out, err := c.Laptop.Run(ctx, "curl", "-sS", "-m", "5", "http://192.168.1.201/")
	if lab.ExitCode(err) != 7 || !strings.Contains(out, "onnect") {
		t.Errorf("curl: %v\n%s", err, out)
	}
	out, err = c.Laptop.Run(ctx, "ping", "-n", "-c", "1", "-W", "2", lab.HostAddr)
	if err == nil || !strings.Contains(out, "Packet filtered") {
		t.Errorf("ping: %v\n%s", err, out)
	}
}

// refusesAll tries what lies behind the gateway, and a member that alice may not
// talk to: by TCP and UDP she is refused within a second.
func (c *company) refusesAll(ctx context.Context, t *testing.T) {
	t.Helper()
	began := time.Now()
	for _, at := range []string{"192.168.1.201:22", "192.168.1.77:80", lab.VPSOverlay + ":443"} {
		if err := reaches(ctx, c.Laptop, "tcp4", at); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: %v, want a refusal", at, err)
		}
	}
	if err := reaches(ctx, c.Laptop, "udp4", "192.168.1.201:53"); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("port 53: %v, want an error at once", err)
	}
	if took := time.Since(began); took > endsWithin {
		t.Errorf("alice was refused after %v", took)
	}
}

// refuses tries what alice may not, in the ways that people try.
func (c *company) refuses(ctx context.Context, t *testing.T) {
	t.Helper()
	began := time.Now()
	if err := reaches(ctx, c.Laptop, "tcp4", "192.168.1.201:80"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("port 80: %v, want a refusal", err)
	}
	if err := reaches(ctx, c.Laptop, "udp4", "192.168.1.201:53"); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("port 53: %v, want an error at once", err)
	}
	if took := time.Since(began); took > endsWithin {
		t.Errorf("alice was refused after %v", took)
	}
	c.toolsSay(ctx, t)
	out, err := c.Laptop.Run(ctx, c.Options.Overlayd, "ping", "-c", "1", lab.HostAddr)
	if lab.ExitCode(err) != overlay.ExitDenied || !strings.Contains(out, "refused by policy of lab-gw") {
		t.Errorf("overlayd ping: %v\n%s", err, out)
	}
	if out, err = c.Gateway.Run(ctx, "ping", "-n", "-c", "1", "-W", "1", lab.LaptopOverlay); err == nil {
		t.Errorf("the gateway reaches into the laptop:\n%s", out)
	}
}

// remembers asks the gateway's record about what was done.
func (c *company) remembers(ctx context.Context, t *testing.T) {
	t.Helper()
	err := lab.Until(ctx, func(ctx context.Context) error {
		allowed, err := c.Gateway.Overlayd(ctx, "audit", "--user", "alice", "--host", "192.168.1.201:22")
		if err != nil {
			return err
		}
		denied, err := c.Gateway.Overlayd(ctx, "audit", "--user", "alice", "--denied")
		if err != nil {
			return err
		}
		if !strings.Contains(allowed, "allowed by students-ssh") || strings.Contains(allowed, "denied") {
			return fmt.Errorf("the record of port 22:\n%s", allowed)
		}
		if !strings.Contains(denied, "192.168.1.201:80 tcp  denied: policy") || !strings.Contains(denied, "192.168.1.201 icmp  denied: policy") {
			return fmt.Errorf("the record of what was denied:\n%s", denied)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// Whoever looks at a connection on the LAN host learns from the gateway whose it
// is, while it goes on and afterwards.
func TestWhois(t *testing.T) {
	labtest.Waits(t)
	ctx, c := newCompany(t, lab.Options{Home: lab.Hard, Lab: lab.Hard})
	l := must[net.Listener](t)(c.Host.Listen("tcp4", lab.HostAddr+":22"))
	defer l.Close()
	conn, seen := connected(ctx, t, c.Laptop, l)
	at := seen.RemoteAddr().String() // 192.168.1.200 and a port
	out, err := c.Gateway.Overlayd(ctx, "whois", at)
	if err != nil || !strings.Contains(out, "now, since") || !strings.Contains(out, "alice on alice-1") {
		t.Errorf("whois %s: %v\n%s", at, err, out)
	}
	conn.(*net.TCPConn).SetLinger(0) // the flow is over at once
	conn.Close()
	err = lab.Until(ctx, func(ctx context.Context) error {
		out, err := c.Gateway.Overlayd(ctx, "whois", at)
		if err == nil && (strings.Contains(out, "now, since") || !strings.Contains(out, "alice on alice-1")) {
			err = fmt.Errorf("whois %s afterwards:\n%s", at, out)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if out, err := c.Gateway.Overlayd(ctx, "whois", lab.GatewayAddr+":1"); err == nil {
		t.Errorf("whois of nobody:\n%s", out)
	}
}

// udpStream is a UDP stream to the LAN host that is answered.
type udpStream struct {
	conn net.Conn
	wg   sync.WaitGroup

	mu   sync.Mutex // guards what follows
	last time.Time  // when an answer came
}

// datagramsTo begins a stream, which the test's end stops.
func datagramsTo(ctx context.Context, t *testing.T, m *lab.Machine, addr string) *udpStream {
	t.Helper()
	s := &udpStream{conn: must[net.Conn](t)(m.DialContext(ctx, "udp4", addr))}
	ended := make(chan struct{})
	s.wg.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ended:
				return
			case <-tick.C:
				_, _ = io.WriteString(s.conn, "tick") // an error is an ICMP message, and what comes back counts
			}
		}
	})
	s.wg.Go(func() {
		buf := make([]byte, 100)
		for {
			n, err := s.conn.Read(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if n > 0 {
				s.mu.Lock()
				s.last = time.Now()
				s.mu.Unlock()
			}
		}
	})
	t.Cleanup(func() {
		close(ended)
		s.conn.Close()
		s.wg.Wait()
	})
	return s
}

// heard returns when the last answer came.
func (s *udpStream) heard() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// flows waits for an answer.
func (s *udpStream) flows(ctx context.Context, t *testing.T) {
	t.Helper()
	began := time.Now()
	err := lab.Until(ctx, func(context.Context) error {
		if !s.heard().After(began) {
			return errors.New("no datagram comes back")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// breaks waits until nothing comes over a connection any more but an error, and
// returns when and which.
func breaks(conn net.Conn, within time.Duration) (time.Time, error) {
	_ = conn.SetReadDeadline(time.Now().Add(within))
	buf := make([]byte, 1500)
	for {
		if _, err := conn.Read(buf); err != nil {
			return time.Now(), err
		}
	}
}

// session is alice's: a TCP connection to port 22 with its other end, and
// datagrams to port 53, which have to be allowed.
type session struct {
	conn, peer net.Conn
	udp        *udpStream
}

func (c *company) session(ctx context.Context, t *testing.T) *session {
	t.Helper()
	l := must[net.Listener](t)(c.Host.Listen("tcp4", lab.HostAddr+":22"))
	t.Cleanup(func() { l.Close() })
	s := &session{}
	s.conn, s.peer = connected(ctx, t, c.Laptop, l)
	labtest.ServePackets(t, c.Host, lab.HostAddr+":53", labtest.EchoPacket)
	s.udp = datagramsTo(ctx, t, c.Laptop, "192.168.1.201:53")
	s.udp.flows(ctx, t)
	return s
}

// ends checks that everything of the session is over within a second of a
// moment: both ends of the connection get a reset, and no datagram comes back.
func (s *session) ends(t *testing.T, moment time.Time) {
	t.Helper()
	const most = 5 * time.Second // to tell late from never
	type end struct {
		at  time.Time
		err error
	}
	far := make(chan end, 1)
	go func() {
		at, err := breaks(s.peer, most)
		far <- end{at, err}
	}()
	at, err := breaks(s.conn, most)
	there := <-far
	for name, e := range map[string]end{"alice": {at, err}, "the LAN host": there} {
		if took := e.at.Sub(moment); !errors.Is(e.err, syscall.ECONNRESET) || took > endsWithin {
			t.Errorf("%s: %v after %v, want a reset within %v", name, e.err, took, endsWithin)
		} else {
			t.Logf("%s: reset after %v", name, took.Round(time.Millisecond))
		}
	}
	time.Sleep(time.Until(moment.Add(endsWithin + 500*time.Millisecond))) // what comes after a second is too much
	if late := s.udp.heard().Sub(moment); late > endsWithin {
		t.Errorf("datagrams came back until %v after it", late)
	} else {
		t.Logf("the last datagram came back after %v", late.Round(time.Millisecond))
	}
}

// streamsPolicy is accessPolicy, with datagrams for alice.
var streamsPolicy = strings.Replace(strings.Replace(accessPolicy, "ports: tcp/22", "ports: [tcp/22, udp/53]", 1), `, "nas:53/udp"`, "", 1)

// Alice is revoked during a TCP session and a UDP stream: both end within a
// second, at both ends, and the answer says which nodes see to it. When the
// gateway is away the answer says so, and the gateway lets nobody in on its
// return that was revoked meanwhile.
func TestRevoke(t *testing.T) {
	for _, tt := range []struct {
		name string
		o    lab.Options
	}{
		{"by the relay", lab.Options{Home: lab.Hard, Lab: lab.Hard}},
		{"directly", lab.Options{}},
		{"by TLS", lab.Options{Home: lab.NoUDP, Lab: lab.Hard}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, c := newCompany(t, tt.o)
			must[coord.PolicyChange](t)(c.admin.ApplyPolicy(ctx, streamsPolicy))
			s := c.session(ctx, t)
			if tt.o.Home == lab.Cone {
				path(ctx, t, c.Laptop, "lab-gw", "direct")
			}
			asked := time.Now()
			r, err := c.admin.Revoke(ctx, "alice")
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("revoked in %v: %+v", r.Took.Round(time.Millisecond), r.Nodes)
			s.ends(t, asked)
			cut := 0
			for _, n := range r.Nodes {
				if !n.Online || !n.Applied {
					t.Errorf("%s has not applied it: %+v", n.Node, n)
				}
				cut += n.FlowsCut
			}
			if r.Took > endsWithin || len(r.Nodes) == 0 || cut != 2 {
				t.Errorf("took %v, %d flows cut, nodes %+v", r.Took, cut, r.Nodes)
			}
			c.refusesAll(ctx, t)
			if err := c.alice.Stop(); err != nil {
				t.Fatal(err)
			}
			if d := lab.Differences(c.bare, everything(ctx, t, c.Laptop)); d != "" {
				t.Errorf("the laptop of whom was revoked is not as before:\n%s", d)
			}
			c.revokedWhileAway(ctx, t)
		})
	}
}

// revokedWhileAway revokes bob while the gateway is away.
func (c *company) revokedWhileAway(ctx context.Context, t *testing.T) {
	t.Helper()
	l := must[net.Listener](t)(c.Host.Listen("tcp4", lab.HostAddr+":80"))
	defer l.Close()
	dial := func(within time.Duration) error {
		ctx, cancel := context.WithTimeout(ctx, within)
		defer cancel()
		conn, err := c.Internet.DialContext(ctx, "tcp4", "192.168.1.201:80")
		if err == nil {
			conn.Close()
		}
		return err
	}
	if err := dial(5 * time.Second); err != nil {
		t.Fatalf("bob: %v", err)
	}
	if err := c.gateway.Stop(); err != nil {
		t.Fatal(err)
	}
	r := must[coord.Revoked](t)(c.admin.Revoke(ctx, "bob"))
	away := false
	for _, n := range r.Nodes {
		if n.Node == "lab-gw" {
			away = !n.Online && !n.Applied
		}
	}
	if !away {
		t.Errorf("the gateway is away, and the answer is %+v", r.Nodes)
	}
	c.gateway = serve(ctx, t, c.Gateway, "gateway")
	if err := dial(time.Second); err == nil {
		t.Error("the gateway let bob in on its return")
	}
}

// A grant ends by the gateway's own clock, with the coordinator stopped.
func TestGrantEndsByItself(t *testing.T) {
	ctx, c := newCompany(t, lab.Options{})
	must[coord.PolicyChange](t)(c.admin.ApplyPolicy(ctx, streamsPolicy))
	l := must[net.Listener](t)(c.Host.Listen("tcp4", lab.HostAddr+":80"))
	defer l.Close()
	c.session(ctx, t) // a path is looked for when there is traffic
	path(ctx, t, c.Laptop, "lab-gw", "direct")
	const span = 5 * time.Second
	g := must[coord.Grant](t)(c.admin.Grant(ctx, "alice", "192.168.1.201:80", span))
	var conn net.Conn
	err := lab.Until(ctx, func(ctx context.Context) (err error) { // until it has come to the gateway
		conn, err = c.Laptop.DialContext(ctx, "tcp4", "192.168.1.201:80")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	peer := must[net.Conn](t)(l.Accept())
	defer peer.Close()
	if err := c.relay.Stop(); err != nil {
		t.Fatal(err)
	}
	at, err := breaks(conn, 2*span)
	if late := at.Sub(g.Until); !errors.Is(err, syscall.ECONNRESET) || late < 0 || late > endsWithin {
		t.Errorf("the grant ended with %v, %v after its deadline", err, late)
	} else {
		t.Logf("reset %v after the deadline", late.Round(time.Millisecond))
	}
	if err := reaches(ctx, c.Laptop, "tcp4", "192.168.1.201:80"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after the grant: %v", err)
	}
}
