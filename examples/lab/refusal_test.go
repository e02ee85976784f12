//go:build linux

package lab_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"overlayd/examples/lab"
	"overlayd/examples/lab/labtest"
)

// The exit codes that the command line documents.
const (
	exitFailure    = 1
	exitUsage      = 2
	exitNotJoined  = 4
	exitDenied     = 6
	exitConflict   = 8
	exitPermission = 9
)

// refusal is a command that has to fail: with a code, with words that say what
// is wrong, with a hint, and with nothing changed on the machine.
type refusal struct {
	name   string
	on     *lab.Machine
	args   []string
	env    []string
	wrap   []string // the command that runs overlayd, whose command line follows
	binary string   // empty: the lab's

	code  int
	words string // of the message
	hint  string // words of the hint
	keeps string // a file that has to stay as it is
}

func (r refusal) check(ctx context.Context, t *testing.T, l *lab.Lab) {
	t.Helper()
	before := everything(ctx, t, r.on)
	var kept []byte
	var err error
	if r.keeps != "" {
		if kept, err = os.ReadFile(r.keeps); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	line := slices.Concat(r.wrap, []string{cmp.Or(r.binary, l.Options.Overlayd)}, r.args)
	cmd := r.on.Command(ctx, line[0], line[1:]...)
	cmd.Env = append(cmd.Env, r.env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	if code := lab.ExitCode(err); code != r.code {
		t.Errorf("exit code %d, want %d (%v)", code, r.code, err)
	}
	if stdout.Len() > 0 {
		t.Errorf("stdout: %s", &stdout)
	}
	lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
	var message, hint string
	if n := len(lines); n >= 2 {
		message, hint = lines[n-2], lines[n-1]
	}
	if !strings.HasPrefix(message, "overlayd: ") || !strings.Contains(message, r.words) {
		t.Errorf("the message has no %q", r.words)
	}
	if !strings.HasPrefix(hint, "hint: ") || !strings.Contains(hint, r.hint) {
		t.Errorf("the hint has no %q", r.hint)
	}
	if t.Failed() || testing.Verbose() {
		t.Logf("%s", stderr.Bytes())
	}
	if d := lab.Differences(before, everything(ctx, t, r.on)); d != "" {
		t.Errorf("the machine has changed:\n%s", d)
	}
	if r.keeps != "" {
		if now, err := os.ReadFile(r.keeps); err != nil || !bytes.Equal(now, kept) {
			t.Errorf("%s is not what it was (%v)", r.keeps, err)
		}
	}
}

// mangle changes one letter of a link's secret.
func mangle(link string) string {
	b := []byte(link)
	i := len(b) - 12
	b[i] = map[bool]byte{true: 'b', false: 'a'}[b[i] == 'a']
	return string(b)
}

// What nobody should ask for, on machines of a network that runs.
func TestRefused(t *testing.T) {
	ctx, l, _ := labtest.Joined(t, lab.Options{})
	invite := func(args ...string) string {
		t.Helper()
		link, err := l.VPS.Overlayd(ctx, append([]string{"invite"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return link
	}
	const life = time.Second
	expired, expires := invite("--ttl", life.String()), time.Now().Add(life)
	good, gateway, used := invite("--uses", "10"), invite("--uses", "10", "--gateway", "10.7.0.0/16"), invite()
	visitor := elsewhere(l, "up", used)
	p, err := l.Host.Start(l.Options.Overlayd, visitor...)
	if err != nil {
		t.Fatal(err)
	}
	if err := lab.Until(ctx, func(ctx context.Context) error {
		_, err := l.Host.Overlayd(ctx, append([]string{"status", "--check", "live"}, visitor[2:]...)...)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	config, other := filepath.Join(l.Dir, "config.yaml"), filepath.Join(l.Dir, "other")
	if err := errors.Join(
		os.WriteFile(config, []byte("interface: ovl5\nstate_dir: /nowhere\n"), 0o600),
		os.Mkdir(other, 0o700), os.Chown(other, nobody, nobody),
	); err != nil {
		t.Fatal(err)
	}
	busy, err := l.VPS.ListenPacket("udp4", "0.0.0.0:4433")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	asNobody := readable(t, l.Options.Overlayd)
	time.Sleep(time.Until(expires)) // its life is what is tested

	links := refusedLinks{good: good, gateway: gateway, expired: expired, used: used}
	for _, r := range refusals(l, links, config, other, asNobody) {
		t.Run(r.name, func(t *testing.T) { r.check(ctx, t, l) })
	}
}

// refusedLinks are invites: two that are good, and two that were.
type refusedLinks struct{ good, gateway, expired, used string }

// refusals lists what is refused. other is a state directory and asNobody a copy
// of the program that belong to nobody.
func refusals(l *lab.Lab, links refusedLinks, config, other, asNobody string) []refusal {
	return []refusal{
		{name: "a mangled link", on: l.Host, args: elsewhere(l, "up", mangle(links.good)),
			code: exitUsage, words: "the invite link is mangled", hint: "copy the whole link again"},
		{name: "half a link", on: l.Host, args: elsewhere(l, "up", links.good[:len(links.good)/2]),
			code: exitUsage, words: "the invite link is mangled", hint: "copy the whole link again"},
		{name: "an expired link", on: l.Host, args: elsewhere(l, "up", links.expired),
			code: exitDenied, words: "expired at ", hint: "ask for a new link"},
		{name: "a used up link", on: l.Host, args: elsewhere(l, "up", links.used),
			code: exitDenied, words: "is used up", hint: "ask for a new link"},
		{name: "a wished address that is taken", on: l.VPS, args: []string{"invite", "--address", lab.LaptopOverlay},
			code: exitConflict, words: "172.18.0.11 is taken by the node laptop", hint: "choose another address"},
		{name: "a wished address outside", on: l.VPS, args: []string{"invite", "--address", "172.19.0.1"},
			code: exitConflict, words: "172.19.0.1 is outside the overlay 172.18.0.0/24", hint: "choose one between 172.18.0.1 and 172.18.0.254"},
		{name: "the network address", on: l.VPS, args: []string{"invite", "--address", "172.18.0.0"},
			code: exitConflict, words: "is the network address", hint: "choose one between"},
		{name: "the broadcast address", on: l.VPS, args: []string{"invite", "--address", "172.18.0.255"},
			code: exitConflict, words: "is the broadcast address", hint: "choose one between"},
		{name: "a wished name that is taken", on: l.VPS, args: []string{"invite", "--name", "laptop"},
			code: exitConflict, words: "the name laptop is taken", hint: "choose another name"},
		{name: "advertise the overlay", on: l.Host, args: elsewhere(l, "gateway", links.gateway, "--advertise", "172.18.0.0/25"),
			code: exitConflict, words: "172.18.0.0/25 overlaps the overlay", hint: "advertise only what is behind the gateway"},
		{name: "advertise everything", on: l.Host, args: elsewhere(l, "gateway", links.gateway, "--advertise", "0.0.0.0/0"),
			code: exitUsage, words: "0.0.0.0/0 is everything there is", hint: "name the networks"},
		{name: "advertise host bits", on: l.Host, args: elsewhere(l, "gateway", links.gateway, "--advertise", "192.168.1.5/24"),
			code: exitUsage, words: "192.168.1.5/24 has host bits set", hint: "did you mean 192.168.1.0/24?"},
		{name: "an overlay that is a real network", on: l.VPS, args: elsewhere(l, "relay", "--public", lab.VPSAddr+":8443", "--overlay", "203.0.113.0/25"),
			code: exitConflict, words: "203.0.113.0/25 overlaps 203.0.113.0/24, which this machine has on eth0", hint: "choose another prefix with --overlay"},
		{name: "a TCP port in use", on: l.VPS, args: elsewhere(l, "relay", "--public", lab.VPSAddr, "--overlay", "10.9.0.0/24"),
			code: exitConflict, words: "tcp port 443 is in use", hint: "--listen"},
		{name: "a UDP port in use", on: l.VPS, args: elsewhere(l, "relay", "--public", lab.VPSAddr+":4433", "--overlay", "10.9.0.0/24"),
			code: exitConflict, words: "udp port 4433 is in use", hint: "--listen"},
		{name: "no root", on: l.Host, args: elsewhere(l, "up", links.good), binary: asNobody,
			wrap: []string{"setpriv", "--reuid", strconv.Itoa(nobody), "--clear-groups"},
			code: exitPermission, words: "it needs root", hint: "--userspace"},
		{name: "no /dev/net/tun", on: l.Host, args: elsewhere(l, "up", links.good),
			wrap: []string{"sh", "-c", `mount -t tmpfs none /dev/net && exec "$0" "$@"`},
			code: exitFailure, words: "/dev/net/tun is missing", hint: "modprobe tun"},
		{name: "no iptables", on: l.Host, args: elsewhere(l, "gateway", links.gateway), env: []string{"PATH=/nowhere"},
			code: exitFailure, words: "a gateway needs iptables", hint: "apt install iptables"},
		{name: "another's state directory", on: l.Host, args: []string{"up", links.good, "--state-dir", other},
			code: exitPermission, words: "belongs to uid 65534", hint: "chown it to uid 0"},
		{name: "a second daemon", on: l.Laptop, args: []string{"up"},
			code: exitConflict, words: "another overlayd runs on state directory", hint: "overlayd down"},
		{name: "cleanup under a daemon", on: l.Laptop, args: []string{"cleanup"},
			code: exitConflict, words: "another overlayd runs on state directory", hint: "overlayd down"},
		{name: "not joined", on: l.Host, args: elsewhere(l, "up"),
			code: exitNotJoined, words: "has not joined a network", hint: "overlayd invite"},
		{name: "a config file with an unknown key", on: l.Host, args: []string{"up", "--config", config},
			code: exitUsage, words: "config.yaml:2: unknown setting", hint: "did you mean state-dir?"},
	}
}

// elsewhere adds places to a command that no other command of the lab uses.
func elsewhere(l *lab.Lab, args ...string) []string {
	at := filepath.Join(l.Dir, fmt.Sprint("elsewhere", places.Add(1)))
	return append(args, "--state-dir", at, "--socket", at+".sock", "--interface", "ovl9")
}

var places atomic.Int32

// nobody is the user ID of one without rights.
const nobody = 65534

// A prefix that is on no interface of the gateway can be advertised, with a
// warning: there may be a router behind it.
func TestFarPrefixIsAWarning(t *testing.T) {
	ctx, l, j := labtest.Joined(t, lab.Options{})
	if err := j.Gateway.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Gateway.Serve(ctx, "gateway", "--advertise", lab.LAN, "--advertise", "10.99.0.0/16"); err != nil {
		t.Fatal(err)
	}
	// What status says to do about it is what is done.
	var fix string
	waitFor(ctx, t, l.Gateway, func(s status) error {
		for _, h := range s.Health {
			if h.ID == "route_pending" {
				_, fix, _ = strings.Cut(h.Fix, "overlayd ")
				return nil
			}
		}
		return fmt.Errorf("nothing waits for approval: %+v", s.Health)
	})
	if _, err := l.VPS.Overlayd(ctx, strings.Fields(fix)...); err != nil {
		t.Fatal(err)
	}
	waitFor(ctx, t, l.Gateway, func(s status) error {
		for _, h := range s.Health {
			if h.ID == "lan_not_connected" && strings.Contains(h.Title, "10.99.0.0/16") && h.Fix != "" {
				return nil
			}
		}
		return fmt.Errorf("no warning: %+v", s.Health)
	})
	pinging(t, l.Laptop, lab.HostAddr).back(ctx, t, time.Now()) // and the near one is reached as before
}

// State that cannot be trusted is refused, named, kept, and the way out is said.
func TestDamagedState(t *testing.T) {
	ctx, l, j := labtest.Joined(t, lab.Options{})
	j.Laptop.Kill() // and so its journal is there
	j.Gateway.Kill()
	j.Relay.Kill()
	damages := []struct {
		name string
		do   func([]byte) []byte
	}{
		{"truncated", func(b []byte) []byte { return b[:len(b)/4] }}, // a database has room at its end
		{"empty", func([]byte) []byte { return nil }},
		{"overwritten", func(b []byte) []byte {
			return append(bytes.Repeat([]byte("garbage "), len(b)/8), b[len(b)/8*8:]...)
		}},
	}
	for _, c := range []struct {
		on   *lab.Machine
		verb []string
		file string
		hint string
	}{
		{l.Laptop, []string{"up"}, "node.json", "backup"},
		{l.Laptop, []string{"up"}, "map.pb", "move it away"},
		{l.Gateway, []string{"gateway"}, "journal.json", ""},
		{l.Gateway, []string{"cleanup"}, "journal.json", ""},
		{l.VPS, lab.RelayArgs, "hub.json", "backup"},
		{l.VPS, lab.RelayArgs, "coord.db", "put back a copy of it"},
	} {
		for _, damage := range damages {
			t.Run(fmt.Sprint(c.verb[0], " ", c.file, " ", damage.name), func(t *testing.T) {
				args := elsewhere(l, c.verb...)
				dir := args[len(c.verb)+1]
				if err := os.CopyFS(dir, os.DirFS(c.on.StateDir())); err != nil {
					t.Fatal(err)
				}
				file := filepath.Join(dir, c.file)
				b, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, damage.do(b), 0o600); err != nil {
					t.Fatal(err)
				}
				refusal{on: c.on, args: args, code: exitFailure, words: file, hint: c.hint, keeps: file}.check(ctx, t, l)
			})
		}
	}
	t.Run("another version", func(t *testing.T) {
		args := elsewhere(l, "up")
		if err := os.CopyFS(args[2], os.DirFS(l.Laptop.StateDir())); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(args[2], "node.json")
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		b = bytes.Replace(b, []byte(`"schema": 1`), []byte(`"schema": 2`), 1)
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		refusal{on: l.Laptop, args: args, code: exitConflict, words: "has schema 2, this overlayd reads 1",
			hint: "run the version of overlayd that wrote it", keeps: file}.check(ctx, t, l)
	})
}

// readable returns a copy of the binary that any user may run.
func readable(t *testing.T, binary string) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	to := filepath.Join(dir, "overlayd")
	if out, err := exec.Command("install", "-m", "755", binary, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return to
}

// The secret of a link goes only to the server whose key the link names: one
// that answers in its place gets not a byte of the request.
func TestTheWrongServerLearnsNothing(t *testing.T) {
	ctx, l, j := labtest.Joined(t, lab.Options{})
	link, err := l.VPS.Overlayd(ctx, "invite")
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Relay.Stop(); err != nil {
		t.Fatal(err)
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.ParseIP(lab.VPSAddr)}, NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := l.VPS.Listen("tcp4", lab.VPSAddr+":443")
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{NextProtos: []string{"h2", "http/1.1"}, Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: private}}}
	var told atomic.Int64 // bytes of requests
	var serving sync.WaitGroup
	serving.Go(func() {
		for { // the members call as well
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
				n, _ := io.Copy(io.Discard, tls.Server(conn, config)) // that the client refuses is an error here
				told.Add(n)
			})
		}
	})
	refusal{
		on: l.Host, args: elsewhere(l, "up", link), code: exitDenied, words: "has the key", hint: "somebody is in between",
	}.check(ctx, t, l)
	ln.Close()
	serving.Wait()
	if n := told.Load(); n > 0 {
		t.Errorf("the wrong server was told %d bytes", n)
	}
}
