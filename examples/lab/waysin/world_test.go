//go:build linux

package waysin_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"overlayd/examples/lab"
	"overlayd/examples/lab/labtest"
	"overlayd/overlay"
	"overlayd/overlay/coord"
)

// slack is what a busy test machine may add to a second that is promised.
const slack = 2 * time.Second

// policy lets alice have what the tests use, and not port 81.
const policy = `
hosts: {nas: 192.168.1.201}
rules:
  - {name: work, src: user:alice, dst: nas, ports: [tcp/22, tcp/80, tcp/7, tcp/9, udp/53]}
`

// world is a lab in which alice is on the laptop, and the LAN host serves pages,
// ssh, echo and the LAN's names.
type world struct {
	*lab.Lab
	mode                  string // tun; userspace, of the laptop; both: of the gateway, too
	admin                 *coord.Admin
	relay, gateway, alice *lab.Process
	home                  string // alice's home directory
	key                   string // the file with her SSH key
}

// modes are how a laptop can be in the network.
func modes(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command(labtest.Overlayd(t), "help", "up").CombinedOutput()
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(out, []byte("--userspace")) {
		return []string{"tun", "userspace", "both"}
	}
	return []string{"tun"}
}

// newWorld builds the lab and has everybody join.
func newWorld(t *testing.T, mode string) (context.Context, *world) {
	t.Helper()
	labtest.NeedRoot(t)
	ctx, l := labtest.NewFor(t, 15*time.Minute, lab.Options{Overlayd: labtest.Overlayd(t)})
	w := &world{Lab: l, mode: mode, home: filepath.Join(l.Dir, "home")}
	w.relay = must[*lab.Process](t)(l.VPS.Serve(ctx, lab.RelayArgs...))
	socket := overlay.Dial(l.VPS.Socket())
	t.Cleanup(socket.Close)
	w.admin = socket.Admin()
	must[coord.User](t)(w.admin.AddUser(ctx, "alice", nil, nil))
	must[coord.PolicyChange](t)(w.admin.ApplyPolicy(ctx, policy))
	w.services(ctx, t)
	w.startGateway(ctx, t, must[string](t)(l.VPS.Overlayd(ctx, lab.GatewayInvite...)))
	link := must[coord.Link](t)(w.admin.Invite(ctx, coord.Invite{Name: "alice-1", User: "alice"}))
	w.alice = must[*lab.Process](t)(l.Laptop.Serve(ctx, w.upArgs(link.Encode())...))
	for _, dir := range []string{w.home, filepath.Join(w.home, ".ssh")} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return ctx, w
}

func (w *world) upArgs(link ...string) []string {
	args := append([]string{"up"}, link...)
	if w.mode != "tun" {
		args = append(args, "--userspace")
	}
	return args
}

// startGateway starts the gateway with the LAN's resolver; its file system's
// mounts are its own.
func (w *world) startGateway(ctx context.Context, t *testing.T, link ...string) {
	t.Helper()
	resolv := filepath.Join(w.Dir, "resolv.conf")
	if err := os.WriteFile(resolv, []byte("search lab\nnameserver "+lab.HostAddr+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"-c", `mount --bind "$1" /etc/resolv.conf && shift && exec "$0" gateway "$@"`, w.Options.Overlayd, resolv}, link...)
	if w.mode == "both" {
		args = append(args, "--userspace")
	}
	w.gateway = must[*lab.Process](t)(w.Gateway.Start("sh", args...))
	if err := w.Gateway.Ready(ctx, w.gateway); err != nil {
		t.Fatal(err)
	}
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

// page is what the LAN host's web server says.
const page = "a page of the LAN"

// services are the LAN host's.
func (w *world) services(ctx context.Context, t *testing.T) {
	t.Helper()
	serveHTTP(t, w.Host, lab.HostAddr+":80", func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, page) })
	for _, port := range []string{"7", "81"} {
		labtest.Serve(t, w.Host, lab.HostAddr+":"+port, labtest.Echo)
	}
	labtest.ServePackets(t, w.Host, lab.HostAddr+":53", lanName)
	w.key = labtest.SSHKey(ctx, t, w.Lab, "alice")
	labtest.SSHD(ctx, t, w.Lab, w.Host, lab.HostAddr, w.key+".pub")
}

// serveHTTP is a web server on a machine until the test ends.
func serveHTTP(t *testing.T, m *lab.Machine, addr string, h http.HandlerFunc) {
	t.Helper()
	l := must[net.Listener](t)(m.Listen("tcp4", addr))
	server := &http.Server{Handler: h}
	served := make(chan struct{})
	go func() { defer close(served); server.Serve(l) }()
	t.Cleanup(func() {
		server.Close()
		<-served
	})
}

// lanNames are what the LAN's own resolver knows; evil leads out of the LAN.
var lanNames = map[string][4]byte{"nas.lab.": {192, 168, 1, 201}, "evil.lab.": {203, 0, 113, 10}}

// lanName is an answer of the LAN's resolver.
func lanName(query []byte, _ net.Addr) []byte {
	var m dnsmessage.Message
	if m.Unpack(query) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	m.Response, m.Additionals, m.RCode = true, nil, dnsmessage.RCodeNameError
	if a, ok := lanNames[strings.ToLower(q.Name.String())]; ok {
		m.RCode = dnsmessage.RCodeSuccess
		if q.Type == dnsmessage.TypeA {
			m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class}, Body: &dnsmessage.AResource{A: a}}}
		}
	}
	answer, err := m.Pack()
	if err != nil {
		return nil
	}
	return answer
}

// run runs a program on the laptop, where root's home directory is alice's. It
// returns its output, and its exit code with an error.
func (w *world) run(ctx context.Context, stdin, name string, args ...string) (stdout, stderr string, code int) {
	args = append([]string{"-c", `mount --bind "$0" /root && shift 0 && exec "$@"`, w.home, name}, args...)
	cmd := w.Laptop.Command(ctx, "sh", args...)
	cmd.Env = append(cmd.Env, "HOME=/root")
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return "", err.Error(), -1
	}
	return out.String(), errs.String(), lab.ExitCode(err)
}

// ok is run for what must work.
func (w *world) ok(ctx context.Context, t *testing.T, stdin, name string, args ...string) string {
	t.Helper()
	out, errs, code := w.run(ctx, stdin, name, args...)
	if code != 0 {
		t.Fatalf("%s %s: exit code %d\n%s%s", name, strings.Join(args, " "), code, out, errs)
	}
	return out
}

// overlayd runs one of its verbs on the laptop.
func (w *world) overlayd(ctx context.Context, t *testing.T, args ...string) string {
	t.Helper()
	return w.ok(ctx, t, "", w.Options.Overlayd, args...)
}

// echoed says a word over a connection and waits for it to come back.
func echoed(c net.Conn, within time.Duration) error {
	c.SetDeadline(time.Now().Add(within))
	defer c.SetDeadline(time.Time{})
	if _, err := io.WriteString(c, "hello"); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 5))
	return err
}

// dial connects to a port of the laptop itself.
func (w *world) dial(ctx context.Context, network, address string) (net.Conn, error) {
	return w.Laptop.DialContext(ctx, network, address)
}

// socks connects to a port of the LAN host by the laptop's SOCKS proxy.
func (w *world) socks(ctx context.Context, host string, port uint16) (net.Conn, error) {
	c, err := w.dial(ctx, "tcp", "127.0.0.1:1080")
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(10 * time.Second))
	ask := append([]byte("\x05\x01\x00\x05\x01\x00\x03"), byte(len(host)))
	ask = append(append(ask, host...), byte(port>>8), byte(port))
	answer := make([]byte, 2+10)
	if _, err = c.Write(ask); err == nil {
		_, err = io.ReadFull(c, answer)
	}
	if err == nil && answer[3] != 0 {
		err = fmt.Errorf("the proxy replies %d", answer[3])
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	c.SetDeadline(time.Time{})
	return c, nil
}
