//go:build linux

package lab_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"overlayd/examples/lab"
	"overlayd/examples/lab/labtest"
)

// homeRouter is where the laptop sees its router; no route leads around it.
const homeRouter = "10.0.77.1"

// proxy is an HTTP proxy on a machine, which may change its mind.
type proxy struct {
	m        *lab.Machine
	refuse   atomic.Int32 // the code it answers with; 0: it connects
	requests atomic.Int32

	mu    sync.Mutex // guards conns
	conns []net.Conn
}

// serveOn runs a handler on a machine until the test ends.
func serveOn(t *testing.T, m *lab.Machine, addr string, h http.Handler, cert *tls.Config) {
	t.Helper()
	ln, err := m.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	if cert != nil {
		ln = tls.NewListener(ln, cert)
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	done := make(chan error)
	go func() { done <- s.Serve(ln) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.requests.Add(1)
	if code := int(p.refuse.Load()); code != 0 {
		w.WriteHeader(code)
		return
	}
	out, err := p.m.DialContext(r.Context(), "tcp", r.Host)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer out.Close()
	in, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer in.Close()
	p.mu.Lock()
	p.conns = append(p.conns, in, out)
	p.mu.Unlock()
	io.WriteString(in, "HTTP/1.1 200 OK\r\n\r\n")
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(out, in)
		out.Close()
	}()
	io.Copy(in, out)
	in.Close()
	<-done
}

// cut ends what goes through the proxy.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

// netcheck is what `overlayd netcheck --json` says.
type netcheck struct {
	UDP   string `json:"udp"`
	TLS   string `json:"tls"`
	Proxy *struct {
		Host string `json:"host"`
	} `json:"proxy"`
	Relays []struct {
		TLS struct {
			Reason string `json:"reason"`
		} `json:"tls"`
	} `json:"relays"`
	Findings []struct {
		ID  string `json:"id"`
		Fix string `json:"fix"`
	} `json:"findings"`
}

// netcheckOn runs netcheck, which ends with a code.
func netcheckOn(ctx context.Context, t *testing.T, m *lab.Machine, code int) (c netcheck) {
	t.Helper()
	out, err := m.Overlayd(ctx, "netcheck", "--json")
	if got := lab.ExitCode(err); got != code {
		t.Fatalf("netcheck ends with %d, want %d: %v\n%s", got, code, err, out)
	}
	if err := json.Unmarshal([]byte(out), &c); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return c
}

// waitObstacle waits until status says what stands before the relay and names a
// fix that has a word in it.
func waitObstacle(ctx context.Context, t *testing.T, m *lab.Machine, reason, fix string) {
	t.Helper()
	err := lab.Until(ctx, func(ctx context.Context) error {
		out, err := m.Overlayd(ctx, "status", "--json")
		if err != nil {
			return err
		}
		var s transport
		if err := json.Unmarshal([]byte(out), &s); err != nil {
			return err
		}
		if len(s.Relays) != 1 || s.Relays[0].Reason != reason || s.State != "degraded" {
			return fmt.Errorf("%s, relays %+v, want %s", s.State, s.Relays, reason)
		}
		for _, h := range s.Health {
			if h.ID == "relay_unreachable" && strings.Contains(h.Fix, fix) {
				return nil
			}
		}
		return fmt.Errorf("no health item says %q: %+v", fix, s.Health)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// again stops the laptop's daemon and starts it with other arguments.
func again(ctx context.Context, t *testing.T, m *lab.Machine, overlayd string, args ...string) *lab.Process {
	t.Helper()
	if _, err := m.Overlayd(ctx, "down"); err != nil {
		t.Fatal(err)
	}
	p, err := m.Start(overlayd, append([]string{"up"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// calm counts what happens in a while, and fails if it is more than most.
func calm(ctx context.Context, t *testing.T, what string, d time.Duration, most int32, count func() int32) {
	t.Helper()
	before := count()
	select {
	case <-time.After(d): // what happens in that time is what is counted
	case <-ctx.Done():
		t.Fatal(ctx.Err())
	}
	if n := count() - before; n > most {
		t.Errorf("%s: %d in %v, want %d at most", what, n, d, most)
	}
}

// A network that lets nothing out but by its proxy, then one whose proxy
// refuses, one that wants its page visited, and one that reads TLS: everything
// goes by the proxy, and of the others status and netcheck say what they are,
// without asking them all the time.
func TestObstacles(t *testing.T) {
	labtest.Waits(t)
	ctx, l, _ := labtest.Joined(t, lab.Options{})
	p := &proxy{m: l.HomeNAT}
	serveOn(t, l.HomeNAT, homeRouter+":3128", p, nil)
	if err := l.HomeNAT.BlockUDP(ctx); err != nil {
		t.Fatal(err)
	}
	noTCP := []string{"FORWARD", "-i", "eth1", "-p", "tcp", "-j", "DROP"}
	labtest.Run(ctx, t, l.HomeNAT, "iptables", append([]string{"-w", "-I"}, noTCP...)...)

	process := again(ctx, t, l.Laptop, l.Options.Overlayd, "--proxy", "http://"+homeRouter+":3128")
	if err := l.Laptop.Ready(ctx, process); err != nil {
		t.Fatal(err)
	}
	waitTransport(ctx, t, l.Laptop, "tls", udpBlocked)
	waitFor(ctx, t, l.Laptop, control("connected"))
	tcp, _ := echoServers(t, l.Host)
	talk(ctx, t, l.Laptop, tcp, make([]byte, 1<<20))
	if c := netcheckOn(ctx, t, l.Laptop, 0); c.UDP != "no_answer" || c.TLS != "works" || c.Proxy == nil || c.Proxy.Host != homeRouter+":3128" {
		t.Errorf("by the proxy: %+v", c)
	}

	p.refuse.Store(http.StatusProxyAuthRequired)
	p.cut()
	waitObstacle(ctx, t, l.Laptop, "proxy_refused", "--proxy")
	c := netcheckOn(ctx, t, l.Laptop, 7)
	if len(c.Relays) != 1 || c.Relays[0].TLS.Reason != "proxy_refused" || len(c.Findings) == 0 || !strings.Contains(c.Findings[0].Fix, "--proxy") {
		t.Errorf("a proxy that wants a login: %+v", c)
	}
	calm(ctx, t, "requests to a proxy that refuses", 3*time.Second, 10, p.requests.Load)

	labtest.Run(ctx, t, l.HomeNAT, "iptables", append([]string{"-w", "-D"}, noTCP...)...)
	var visits atomic.Int32
	serveOn(t, l.HomeNAT, homeRouter+":8080", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://portal.example/login", http.StatusFound)
	}), nil)
	other := httptest.NewUnstartedServer(nil) // for its certificate
	other.StartTLS()
	defer other.Close()
	serveOn(t, l.HomeNAT, homeRouter+":8443", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { visits.Add(1) }),
		&tls.Config{Certificates: other.TLS.Certificates})
	for _, o := range []struct{ port, reason, fix string }{
		{"8080", "captive_portal", "browser"},
		{"8443", "tls_intercepted", "reads TLS"},
	} {
		redirect := []string{"PREROUTING", "-i", "eth1", "-p", "tcp", "--dport", "443", "-j", "REDIRECT", "--to-ports", o.port}
		labtest.Run(ctx, t, l.HomeNAT, "iptables", append([]string{"-w", "-t", "nat", "-I"}, redirect...)...)
		again(ctx, t, l.Laptop, l.Options.Overlayd)
		waitObstacle(ctx, t, l.Laptop, o.reason, o.fix)
		if c := netcheckOn(ctx, t, l.Laptop, 7); len(c.Relays) != 1 || c.Relays[0].TLS.Reason != o.reason {
			t.Errorf("%s: %+v", o.reason, c)
		}
		calm(ctx, t, "connections to the wrong server", 2*time.Second, 10, func() int32 { return redirected(ctx, t, l.HomeNAT) })
		labtest.Run(ctx, t, l.HomeNAT, "iptables", append([]string{"-w", "-t", "nat", "-D"}, redirect...)...)
	}
	if visits.Load() != 0 {
		t.Error("something was said to who reads TLS")
	}
}

// redirected is how many connections the router has turned round.
func redirected(ctx context.Context, t *testing.T, m *lab.Machine) (n int32) {
	t.Helper()
	out, err := m.Command(ctx, "iptables", "-w", "-t", "nat", "-nvxL", "PREROUTING").Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		t.Fatalf("%v: %s", err, exit.Stderr)
	}
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "REDIRECT" {
			if _, err := fmt.Sscan(f[0], &n); err != nil {
				t.Fatal(err)
			}
		}
	}
	return n
}
