//go:build linux

package waysin_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"overlayd/examples/lab"
	"overlayd/examples/lab/labtest"
	"overlayd/overlay"
)

// TestLaptop tries every way in from the laptop, with the programs that people
// use, and looks for all of it in the gateway's record.
func TestLaptop(t *testing.T) {
	for _, mode := range modes(t) {
		t.Run(mode, func(t *testing.T) {
			ctx, w := newWorld(t, mode)
			w.overlayd(ctx, t, "proxy")
			w.overlayd(ctx, t, "forward", "127.0.0.1:8080", "nas.lab:80")
			w.overlayd(ctx, t, "forward", "127.0.0.1:5300", "192.168.1.201:53", "--udp")
			t.Run("nc", func(t *testing.T) { w.tryNC(ctx, t) })
			t.Run("proxy", func(t *testing.T) { w.tryProxy(ctx, t) })
			t.Run("udp", func(t *testing.T) { w.tryUDP(ctx, t) })
			t.Run("ssh", func(t *testing.T) { w.trySSH(ctx, t) })
			t.Run("forward", func(t *testing.T) { w.tryForward(ctx, t) })
			t.Run("record", func(t *testing.T) { w.tryRecord(ctx, t) })
		})
	}
}

const request = "GET / HTTP/1.0\r\nHost: nas.lab\r\n\r\n"

// tryNC: names, answers, and how it ends.
func (w *world) tryNC(ctx context.Context, t *testing.T) {
	for _, host := range []string{"nas.lab", "NAS.lab.", "nas", lab.HostAddr} {
		if got := w.ok(ctx, t, request, w.Options.Overlayd, "nc", host, "80"); !strings.HasSuffix(got, page) {
			t.Errorf("%s says %q", host, got)
		}
	}
	big := make([]byte, 4<<20)
	rand.Read(big)
	if got := w.ok(ctx, t, string(big), w.Options.Overlayd, "nc", "nas.lab", "7"); got != string(big) {
		t.Errorf("%d bytes came back of %d", len(got), len(big))
	}
	if got := w.ok(ctx, t, dnsQuery(t, "nas.lab."), w.Options.Overlayd, "nc", "-u", "-w", "1s", lab.HostAddr, "53"); !isAnswer(t, []byte(got)) {
		t.Errorf("the resolver says %q", got)
	}
	for _, c := range []struct {
		host, port string
		code       int
		says       string
	}{
		{"nas.lab", "81", overlay.ExitDenied, "refused by the policy that lab-gw enforces"},
		{"nas.lab", "9", overlay.ExitUnreachable, "refused by the host"},
		{"192.168.1.77", "80", overlay.ExitDenied, "policy"},
		{"nowhere.lab", "80", overlay.ExitFailure, "knows that name"},
		{"evil.lab", "80", overlay.ExitFailure, "knows that name"},
		{"198.51.100.9", "80", overlay.ExitUnreachable, "no node carries"},
		{"nas.lab", "http:", overlay.ExitUsage, "port"},
	} {
		began := time.Now()
		_, errs, code := w.run(ctx, "", w.Options.Overlayd, "nc", c.host, c.port)
		if code != c.code || !strings.Contains(errs, c.says) {
			t.Errorf("nc %s %s: exit code %d, want %d\n%s", c.host, c.port, code, c.code, errs)
		}
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("nc %s %s took %v to fail", c.host, c.port, took)
		}
	}
}

// tryProxy: curl by each protocol, what is refused, and the PAC file.
func (w *world) tryProxy(ctx context.Context, t *testing.T) {
	curl := []string{"curl", "-sS", "--max-time", "10", "--noproxy", ""}
	for _, by := range [][]string{
		{"--proxy", "socks5h://127.0.0.1:1080"}, {"--proxy", "http://127.0.0.1:1080"}, {"--proxy", "http://127.0.0.1:1080", "--proxytunnel"},
	} {
		for _, url := range []string{"http://nas.lab/", "http://192.168.1.201/"} {
			args := slices.Concat(curl[1:], by, []string{url})
			if got := w.ok(ctx, t, "", curl[0], args...); got != page {
				t.Errorf("curl %s: %q", strings.Join(args, " "), got)
			}
		}
	}
	for url, want := range map[string]string{"http://nas.lab:81/": "403", "http://new.lab/": "502", "http://172.18.0.77/": "403", "http://127.0.0.1/": "403"} {
		args := slices.Concat(curl[1:], []string{"--proxy", "http://127.0.0.1:1080", "-o", "/dev/null", "-w", "%{http_code}", url})
		if got := w.ok(ctx, t, "", curl[0], args...); got != want {
			t.Errorf("%s: status %s, want %s", url, got, want)
		}
	}
	w.tryOutside(ctx, t)
	out := w.ok(ctx, t, "", "sh", "-c", `eval "$("$0" proxy env)" && curl -sS --max-time 10 http://nas.lab/ && eval "$("$0" proxy env --unset)" && echo "[$http_proxy$ALL_PROXY]"`, w.Options.Overlayd)
	if out != page+"[]\n" {
		t.Errorf("by the environment: %q", out)
	}
	pac := w.ok(ctx, t, "", curl[0], slices.Concat(curl[1:], []string{"http://127.0.0.1:1080/proxy.pac"})...)
	for _, want := range []string{`"192.168.1.0", "255.255.255.0"`, `"172.18.0.0", "255.255.255.0"`, `"lab-gw"`, `ovlDomains = ["lab"]`, "PROXY 127.0.0.1:1080"} {
		if !strings.Contains(pac, want) {
			t.Errorf("the PAC file does not have %s:\n%s", want, pac)
		}
	}
}

// tryOutside: with the proxy in the environment the world is as it was, and a name
// that the LAN's resolver leads out of the LAN leads nowhere.
func (w *world) tryOutside(ctx context.Context, t *testing.T) {
	t.Helper()
	const words = "a page of the world"
	var asked atomic.Int64
	serveHTTP(t, w.VPS, lab.VPSAddr+":8000", func(rw http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		fmt.Fprint(rw, words)
	})
	script := `eval "$("$0" proxy env)" && for u in "$@"; do curl -sS --max-time 10 "$u"; done`
	for _, c := range []struct{ url, want string }{{"http://" + lab.VPSAddr + ":8000/", words}, {"http://evil.lab:8000/", "names of lab are the LAN's"}} {
		if got := w.ok(ctx, t, "", "sh", "-c", script, w.Options.Overlayd, c.url); !strings.Contains(got, c.want) {
			t.Errorf("%s by the environment: %q, want %q", c.url, got, c.want)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("the world is asked %d times, want once", n)
	}
}

// dnsQuery asks for a name's address.
func dnsQuery(t *testing.T, name string) string {
	t.Helper()
	m := dnsmessage.Message{Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	m.ID = 77
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func isAnswer(t *testing.T, b []byte) bool {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(b); err != nil {
		t.Errorf("%x is no answer: %v", b, err)
		return false
	}
	return m.ID == 77 && len(m.Answers) == 1
}

// tryUDP: a query by SOCKS5's UDP ASSOCIATE, and one that policy refuses.
func (w *world) tryUDP(ctx context.Context, t *testing.T) {
	control, err := w.dial(ctx, "tcp", "127.0.0.1:1080")
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	control.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(control, "\x05\x01\x00\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00")
	answer := make([]byte, 2+10)
	if _, err := io.ReadFull(control, answer); err != nil || answer[3] != 0 {
		t.Fatalf("% x: %v", answer, err)
	}
	c, err := w.dial(ctx, "udp", fmt.Sprintf("127.0.0.1:%d", int(answer[10])<<8|int(answer[11])))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, head := range []string{"\x00\x00\x00\x03\x07nas.lab\x00\x35", "\x00\x00\x00\x01\xc0\xa8\x01\xc9\x00\x35"} {
		c.SetDeadline(time.Now().Add(5 * time.Second))
		io.WriteString(c, head+dnsQuery(t, "nas.lab."))
		buf := make([]byte, 1500)
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(buf[:n], []byte("\x00\x00\x00\x01\xc0\xa8\x01\xc9\x00\x35")) || !isAnswer(t, buf[10:n]) {
			t.Errorf("answered % x", buf[:n])
		}
	}
	before := w.counter(ctx, t, "udp_drop_refused")
	io.WriteString(c, "\x00\x00\x00\x01\xc0\xa8\x01\xc9\x00\x36x") // port 54
	io.WriteString(c, "\x00\x00\x00\x01\x01\x01\x01\x01\x00\x35x") // nobody's
	err = lab.Until(ctx, func(ctx context.Context) error {
		if n := w.counter(ctx, t, "udp_drop_refused"); n < before+2 {
			return fmt.Errorf("%d refused, want %d", n, before+2)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// counter is one number of the proxy's.
func (w *world) counter(ctx context.Context, t *testing.T, name string) uint64 {
	t.Helper()
	var ways overlay.Ways
	if err := json.Unmarshal([]byte(w.overlayd(ctx, t, "proxy", "status", "--json")), &ways); err != nil {
		t.Fatal(err)
	}
	for _, c := range ways.Proxy.Counters {
		if c.Name == name {
			return c.Value
		}
	}
	t.Fatalf("there is no counter %s", name)
	return 0
}

// trySSH: the installed configuration serves ssh, scp and rsync.
func (w *world) trySSH(ctx context.Context, t *testing.T) {
	w.overlayd(ctx, t, "ssh", "config", "--install")
	extra := fmt.Sprintf("\nHost *\n  IdentityFile %s\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n  BatchMode yes\n", w.key)
	f, err := os.OpenFile(filepath.Join(w.home, ".ssh/config"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.WriteString(f, extra)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"root@nas.lab", "root@" + lab.HostAddr} {
		if got := w.ok(ctx, t, "", "ssh", host, "echo $SSH_CONNECTION"); !strings.Contains(got, lab.HostAddr+" 22") {
			t.Errorf("ssh %s: %q", host, got)
		}
	}
	if got := w.ok(ctx, t, "", w.Options.Overlayd, "ssh", "root@nas.lab", "echo", "hello"); got != "hello\n" {
		t.Errorf("overlayd ssh: %q", got)
	}
	size := 16 << 20
	if labtest.Long() {
		size = 1 << 30
	}
	data := filepath.Join(w.Dir, "data")
	sum := randomFile(t, data, size)
	for _, copied := range [][]string{{"scp", "-q", data, "root@nas.lab:" + data + ".scp"}, {"rsync", data, "root@nas.lab:" + data + ".rsync"}} {
		began := time.Now()
		w.ok(ctx, t, "", copied[0], copied[1:]...)
		took := time.Since(began)
		if got := sumOf(t, data+"."+copied[0]); got != sum {
			t.Errorf("%s changed the file", copied[0])
		}
		t.Logf("%s: %d MB in %v, %.0f Mbit/s", copied[0], size>>20, took.Round(time.Millisecond), float64(size)*8/1e6/took.Seconds())
	}
}

func randomFile(t *testing.T, name string, size int) (sum [sha256.Size]byte) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(f, h), rand.Reader, int64(size)); err != nil {
		t.Fatal(err)
	}
	h.Sum(sum[:0])
	return sum
}

func sumOf(t *testing.T, name string) (sum [sha256.Size]byte) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Error(err)
		return sum
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Error(err)
	}
	h.Sum(sum[:0])
	return sum
}

// tryForward: both protocols, a port that is taken, and a restart.
func (w *world) tryForward(ctx context.Context, t *testing.T) {
	try := func() {
		t.Helper()
		err := lab.Until(ctx, func(ctx context.Context) error {
			out, errs, code := w.run(ctx, "", "curl", "-sS", "--max-time", "5", "--noproxy", "*", "http://127.0.0.1:8080/")
			if code != 0 || out != page {
				return fmt.Errorf("%q %s", out, errs)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		c, err := w.dial(ctx, "udp", "127.0.0.1:5300")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		io.WriteString(c, dnsQuery(t, "nas.lab."))
		buf := make([]byte, 1500)
		if n, err := c.Read(buf); err != nil || !isAnswer(t, buf[:n]) {
			t.Errorf("% x, %v", buf[:n], err)
		}
	}
	try()
	other, err := w.Laptop.Listen("tcp", "127.0.0.1:8090")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for listen, want := range map[string]string{"127.0.0.1:1080": "own proxy listens on 127.0.0.1:1080", "127.0.0.1:8090": "in use by another program"} {
		if _, errs, code := w.run(ctx, "", w.Options.Overlayd, "forward", listen, "nas.lab:80"); code != overlay.ExitConflict || !strings.Contains(errs, want) {
			t.Errorf("%s is taken: exit code %d\n%s", listen, code, errs)
		}
	}
	if _, errs, code := w.run(ctx, "", w.Options.Overlayd, "forward", "0.0.0.0:8081", "nas.lab:80"); code != overlay.ExitUsage || !strings.Contains(errs, "--allow-remote") {
		t.Errorf("a port for everybody: exit code %d\n%s", code, errs)
	}
	if err := w.alice.Stop(); err != nil {
		t.Fatal(err)
	}
	if c, err := w.dial(ctx, "tcp", "127.0.0.1:8080"); err == nil {
		c.Close()
		t.Error("the port is open without the daemon")
	}
	w.alice = must[*lab.Process](t)(w.Laptop.Serve(ctx, w.upArgs()...))
	try()
	if got := w.overlayd(ctx, t, "forward", "list"); !strings.Contains(got, "127.0.0.1:8080  nas.lab:80") || !strings.Contains(got, "udp") {
		t.Errorf("the list is\n%s", got)
	}
	if got := w.overlayd(ctx, t, "proxy", "status"); !strings.Contains(got, "socks5h://127.0.0.1:1080") {
		t.Errorf("the proxy is\n%s", got)
	}
}

// tryRecord: the gateway knows whose all of it was.
func (w *world) tryRecord(ctx context.Context, t *testing.T) {
	for target, protocol := range map[string]string{
		"192.168.1.201:22": "tcp", "192.168.1.201:80": "tcp", "192.168.1.201:7": "tcp", "192.168.1.201:53": "udp", lab.GatewayOverlay + ":5053": "udp",
	} {
		err := lab.Until(ctx, func(ctx context.Context) error {
			out, err := w.Gateway.Overlayd(ctx, "audit", "--json", "--user", "alice")
			if err != nil {
				return err
			}
			for line := range strings.Lines(out) {
				var l overlay.FlowLine
				if json.Unmarshal([]byte(line), &l) == nil && l.Target == target && strings.EqualFold(l.Protocol, protocol) && l.Event != overlay.EventFlowDenied {
					return nil
				}
			}
			return fmt.Errorf("no %s of alice's to %s in\n%.2000s", protocol, target, out)
		})
		if err != nil {
			t.Error(err)
		}
	}
}
