package publish

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is for what happens soon, on the slowest machine.
const patience = 30 * time.Second

// publisher is a Server on loopback whose targets are on loopback too.
type publisher struct {
	t      *testing.T
	server *Server

	mu     sync.Mutex // guards what follows
	fail   error      // what dialing ends with
	guests []Guest
	tried  int             // logins that were refused
	gone   map[string]bool // users whose logins count no more
}

func newPublisher(t *testing.T) *publisher {
	t.Helper()
	p := &publisher{t: t, gone: map[string]bool{}}
	var err error
	p.server, err = New(Options{
		Log: slog.New(slog.DiscardHandler), Cache: t.TempDir(),
		Dial: func(ctx context.Context, g Guest, network, target string) (net.Conn, error) {
			p.mu.Lock()
			p.guests = append(p.guests, g)
			fail := p.fail
			p.mu.Unlock()
			if fail != nil {
				return nil, fail
			}
			return new(net.Dialer).DialContext(ctx, network, target)
		},
		May: func(Guest, string, string) error {
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.fail
		},
		Login: func(_ context.Context, _ netip.Addr, name, password, code string) (string, error) {
			if name == "alice" && password == "right" && code == "123456" {
				return "u1", nil
			}
			if password == "too often" {
				return "", fmt.Errorf("%w: wait a while", ErrWait)
			}
			return "", errors.New("the name, the password or the code is wrong")
		},
		Refused: func(string, Guest, string) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.tried++
		},
		Holds: func(id string, _ time.Time) (string, bool) {
			p.mu.Lock()
			defer p.mu.Unlock()
			return "alice", id == "u1" && !p.gone[id]
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.server.Run(ctx) }()
	for p.running() == nil { // until Run has begun
		time.Sleep(time.Millisecond)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return p
}

func (p *publisher) running() context.Context {
	p.server.mu.Lock()
	defer p.server.mu.Unlock()
	return p.server.ctx
}

// dialed are those for whom the target was dialed.
func (p *publisher) dialed() []Guest {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.guests)
}

func (p *publisher) refuse(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fail = err
}

// freePort is one that nobody has at the moment.
func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return netip.MustParseAddrPort(ln.Addr().String())
}

func (p *publisher) expose(e Exposure) netip.AddrPort {
	p.t.Helper()
	e.ID, e.Listen, e.Secret = "e1", freePort(p.t), []byte("secret")
	p.server.Set([]Exposure{e})
	if state, problem, _ := p.server.State("e1"); state != Listening {
		p.t.Fatalf("%s: %s", state, problem)
	}
	return e.Listen
}

// echo is a TCP server that says back what it hears.
func echo(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() { ln.Close(); running.Wait() })
	return ln.Addr().String()
}

func dial(t *testing.T, at netip.AddrPort) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { c.Close() })
	return c
}

// refusal connects, and returns how that ends: already when dialing, if the reset
// comes early.
func refusal(t *testing.T, at netip.AddrPort) error {
	t.Helper()
	c, err := net.Dial("tcp", at.String())
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	_, err = io.ReadAll(c)
	return err
}

func TestTCP(t *testing.T) {
	p := newPublisher(t)
	at := p.expose(Exposure{Target: echo(t), Protocol: TCP, User: "u9"})
	c := dial(t, at)
	io.WriteString(c, "hello")
	c.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(c); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	if g := p.dialed()[0]; g.User != "u9" || g.Exposure != "e1" || !g.Own || !g.Client.Addr().IsLoopback() {
		t.Errorf("the guest is %+v", g)
	}
	live := dial(t, at)
	io.WriteString(live, "x")
	if _, err := io.ReadFull(live, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if n := p.server.Set(nil); n < 1 {
		t.Errorf("%d connections ended", n)
	}
	if _, err := io.ReadAll(live); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a live connection ends with %v", err)
	}
	if c, err := net.Dial("tcp", at.String()); err == nil {
		c.Close()
		t.Error("the port is still open")
	}
}

// TestTargetAway: the client is told at once, and the listener stays.
func TestTargetAway(t *testing.T) {
	p := newPublisher(t)
	at := p.expose(Exposure{Target: echo(t), Protocol: TCP})
	p.refuse(errors.New("lab-gw is offline"))
	if err := refusal(t, at); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client is told %v", err)
	}
	p.refuse(nil)
	c := dial(t, at)
	io.WriteString(c, "x")
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestTakenPort(t *testing.T) {
	p := newPublisher(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := Exposure{ID: "e1", Target: "192.0.2.1:80", Protocol: TCP, Listen: netip.MustParseAddrPort(ln.Addr().String())}
	if err := p.server.Try(e); err == nil || !strings.Contains(err.Error(), "in use by another program") {
		t.Errorf("a taken port: %v", err)
	}
	p.server.Set([]Exposure{e})
	if state, problem, _ := p.server.State("e1"); state != Failed || !strings.Contains(problem, "in use") {
		t.Errorf("%s: %s", state, problem)
	}
	ln.Close()
	until := time.Now().Add(patience)
	for state := Failed; state != Listening; state, _, _ = p.server.State("e1") { // it is tried again
		if time.Now().After(until) {
			t.Fatal("the port is free, and not taken")
		}
		time.Sleep(10 * time.Millisecond)
	}
	p.server.o.Own = netip.MustParseAddrPort("0.0.0.0:443")
	e.Listen = netip.MustParseAddrPort("0.0.0.0:443")
	if err := p.server.Try(e); err == nil || !strings.Contains(err.Error(), "the relay's own") {
		t.Errorf("the relay's port: %v", err)
	}
	e.Listen = netip.MustParseAddrPort("192.0.2.1:8080")
	if err := p.server.Try(e); err == nil || !strings.Contains(err.Error(), "no address of this machine") {
		t.Errorf("another machine's address: %v", err)
	}
}

func TestUDP(t *testing.T) {
	p := newPublisher(t)
	far, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, maxDatagram)
		for {
			n, from, err := far.ReadFrom(buf)
			if err != nil {
				return
			}
			far.WriteTo(buf[:n], from)
		}
	}()
	defer func() { far.Close(); <-done }()
	at := p.expose(Exposure{Target: far.LocalAddr().String(), Protocol: UDP})
	for i := range 3 {
		c, err := net.Dial("udp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		want := strings.Repeat(fmt.Sprint(i), 1000*(i+1))
		if _, err := io.WriteString(c, want); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 5000)
		n, err := c.Read(buf)
		if err != nil || string(buf[:n]) != want {
			t.Errorf("client %d: %d bytes, %v", i, n, err)
		}
	}
	if _, _, n := p.server.State("e1"); n != 3 {
		t.Errorf("%d flows", n)
	}
	if n := p.server.Set(nil); n != 3 {
		t.Errorf("%d flows ended", n)
	}
}

// target is a web server that shows what it was asked.
func target(t *testing.T) (host string, asked func() *http.Request) {
	t.Helper()
	var mu sync.Mutex
	var last *http.Request
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		last = r
		mu.Unlock()
		switch r.URL.Path {
		case "/away":
			http.Redirect(w, r, "http://"+r.Context().Value(http.LocalAddrContextKey).(net.Addr).String()+"/there?x=1", http.StatusFound)
		case "/elsewhere":
			w.Header().Set("Location", "http://"+r.Context().Value(http.LocalAddrContextKey).(net.Addr).String()+"//evil.example/x")
			w.WriteHeader(http.StatusFound)
		case "/ws":
			if r.Header.Get("Upgrade") == "" {
				io.WriteString(w, "the page")
				return
			}
			c, rw, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: "+r.Header.Get("Upgrade")+"\r\nConnection: Upgrade\r\n\r\n")
			io.Copy(c, rw)
		default:
			io.WriteString(w, "the page")
		}
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://"), func() *http.Request {
		mu.Lock()
		defer mu.Unlock()
		return last
	}
}

func get(t *testing.T, c *http.Client, url string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

func browser(t *testing.T) *http.Client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Jar: jar, Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func TestHTTP(t *testing.T) {
	p := newPublisher(t)
	host, asked := target(t)
	at := p.expose(Exposure{Target: host, Protocol: HTTP, Host: "nas.example.org"})
	web, base := browser(t), "http://"+at.String()
	resp, body := get(t, web, base+"/x?y=1", "Host", "nas.example.org", "X-Forwarded-For", "6.6.6.6", "X-Forwarded-User", "root", "X-Real-IP", "6.6.6.6", "Forwarded", "for=6.6.6.6",
		"X_Forwarded_User", "root", "X-Forwarded_For", "6.6.6.6")
	if resp.StatusCode != 200 || body != "the page" {
		t.Fatalf("%s %q", resp.Status, body)
	}
	for name, want := range map[string]string{
		"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": "nas.example.org", "X-Forwarded-Proto": "http", "X-Real-Ip": "127.0.0.1",
		"X-Forwarded-User": "", "Forwarded": "",
	} {
		if got := asked().Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	for name := range asked().Header {
		if strings.Contains(name, "_") {
			t.Errorf("the target gets %s", name)
		}
	}
	if r := asked(); r.Host != "nas.example.org" || r.URL.RequestURI() != "/x?y=1" {
		t.Errorf("asked for %s %s", r.Host, r.URL)
	}
	if resp, _ := get(t, web, base, "Host", "other.example.org"); resp.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("another name: %s", resp.Status)
	}
	if resp, _ := get(t, web, base+"/away", "Host", "nas.example.org"); resp.Header.Get("Location") != "/there?x=1" {
		t.Errorf("a redirection to the target's address leads to %s", resp.Header.Get("Location"))
	}
	if resp, _ := get(t, web, base+"/elsewhere", "Host", "nas.example.org"); resp.Header.Get("Location") != "/evil.example/x" {
		t.Errorf("a redirection to the target's address leads to %s", resp.Header.Get("Location"))
	}
	for err, want := range map[error]int{
		fs.ErrPermission: 403, syscall.ECONNREFUSED: 502, errors.New("lab-gw is offline"): 503,
	} {
		p.refuse(err) // the connection of the requests before is still there
		if resp, body := get(t, web, base, "Host", "nas.example.org"); resp.StatusCode != want || !strings.Contains(body, "<h1>") {
			t.Errorf("%v: %s", err, resp.Status)
		}
	}
}

func TestWebSocket(t *testing.T) {
	p := newPublisher(t)
	host, _ := target(t)
	at := p.expose(Exposure{Target: host, Protocol: HTTP})
	c := dial(t, at)
	if resp, body := get(t, browser(t), "http://"+at.String()+"/ws", "Connection", "Upgrade, HTTP2-Settings", "Upgrade", "h2c", "HTTP2-Settings", ""); resp.StatusCode != 200 || body != "the page" {
		t.Errorf("another upgrade: %s, %q", resp.Status, body)
	}
	io.WriteString(c, "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n")
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%+v, %v", resp, err)
	}
	io.WriteString(c, "hello")
	b := make([]byte, 5)
	if _, err := io.ReadFull(r, b); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	if n := p.server.Set(nil); n == 0 {
		t.Errorf("%d connections ended", n)
	}
	if _, err := r.ReadByte(); err == nil {
		t.Error("it goes on")
	}
}

// selfSigned is a certificate for the tests.
func selfSigned(t *testing.T) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	pk, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pk})
}

func TestLoginPage(t *testing.T) {
	p := newPublisher(t)
	host, asked := target(t)
	e := Exposure{Target: host, Protocol: HTTP, Login: true, User: "publisher"}
	e.Certificate, e.Key = selfSigned(t)
	base := "https://" + p.expose(e).String()
	web := browser(t)
	resp, _ := get(t, web, base+"/files?a=b")
	if want := loginPath + "?to=" + url.QueryEscape("/files?a=b"); resp.StatusCode != 303 || resp.Header.Get("Location") != want {
		t.Fatalf("%s to %s", resp.Status, resp.Header.Get("Location"))
	}
	if resp, _ := get(t, web, base+"/api", "Accept", "application/json"); resp.StatusCode != 401 {
		t.Errorf("a program gets %s", resp.Status)
	}
	resp, body := get(t, web, base+resp.Header.Get("Location"))
	if !strings.Contains(body, `value="/files?a=b"`) || !strings.Contains(resp.Header.Get("Content-Security-Policy"), "frame-ancestors 'none'") {
		t.Errorf("the form:\n%s", body)
	}
	post := func(password, to, origin string) *http.Response {
		form := url.Values{"name": {"alice"}, "password": {password}, "code": {"123456"}, "to": {to}}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+loginPath, strings.NewReader(form.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Origin", origin)
		resp, err := web.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		return resp
	}
	if resp := post("wrong", "/files", base); resp.StatusCode != 403 || len(resp.Cookies()) != 0 {
		t.Errorf("a wrong password: %s", resp.Status)
	}
	if resp := post("too often", "/files", base); resp.StatusCode != 429 || len(resp.Cookies()) != 0 {
		t.Errorf("one too many: %s", resp.Status)
	}
	if p.mu.Lock(); p.tried != 1 {
		t.Errorf("%d refusals are recorded, want that of the wrong password", p.tried)
	}
	p.mu.Unlock()
	if resp := post("right", "/files", "https://evil.example"); resp.StatusCode != 403 || len(resp.Cookies()) != 0 {
		t.Errorf("another site's form: %s", resp.Status)
	}
	if resp := post("right", "//evil.example/", base); resp.Header.Get("Location") != "/" {
		t.Errorf("after the login it leads to %q", resp.Header.Get("Location"))
	}
	resp = post("right", "/files?a=b", base)
	if resp.StatusCode != 303 || resp.Header.Get("Location") != "/files?a=b" {
		t.Fatalf("%s to %s", resp.Status, resp.Header.Get("Location"))
	}
	if c := resp.Cookies()[0]; !c.Secure || !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || !strings.HasPrefix(c.Name, "__Host-") {
		t.Errorf("the cookie %+v", c)
	}
	if resp, body := get(t, web, base+"/files?a=b", "X-Forwarded-User", "root", "Cookie", cookiePrefix+"e2=of another port"); resp.StatusCode != 200 || body != "the page" {
		t.Fatalf("logged in: %s", resp.Status)
	}
	if r := asked(); r.Header.Get("X-Forwarded-User") != "alice" || r.Header.Get("Cookie") != "" || r.Header.Get("X-Forwarded-Proto") != "https" {
		t.Errorf("the target is told %v", r.Header)
	}
	p.mu.Lock()
	if g := p.guests[len(p.guests)-1]; g.User != "u1" || g.Own || time.Since(g.Since) > patience {
		t.Errorf("the guest is %+v", g)
	}
	p.gone["u1"] = true
	p.mu.Unlock()
	if resp, _ := get(t, web, base+"/files"); resp.StatusCode != 303 {
		t.Errorf("alice's login counts no more, and she gets %s", resp.Status)
	}
	get(t, web, base+logoutPath)
	p.mu.Lock()
	p.gone["u1"] = false
	p.mu.Unlock()
	if resp, _ := get(t, web, base+"/files"); resp.StatusCode != 303 {
		t.Errorf("after logging out: %s", resp.Status)
	}
}

func TestProxyHeader(t *testing.T) {
	ap := netip.MustParseAddrPort
	for want, c := range map[string][2]netip.AddrPort{
		proxySignature + "\x21\x11\x00\x0c" + "\xc6\x33\x64\x07" + "\xcb\x00\x71\x0a" + "\x30\x39\x1f\x90": {ap("198.51.100.7:12345"), ap("203.0.113.10:8080")},
		proxySignature + "\x20\x00\x00\x00": {ap("198.51.100.7:12345"), ap("[2001:db8::1]:8080")},
	} {
		if got := AppendProxyHeader([]byte("x"), c[0], c[1]); string(got) != "x"+want {
			t.Errorf("%s to %s: %q", c[0], c[1], got)
		}
	}
	six := AppendProxyHeader(nil, ap("[2001:db8::1]:1"), ap("[2001:db8::2]:2"))
	if len(six) != 16+36 || six[13] != 0x21 {
		t.Errorf("%q", six)
	}
}

func FuzzProxyHeader(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4}, []byte{5, 6, 7, 8}, uint16(1), uint16(2))
	f.Add(make([]byte, 16), []byte{5, 6, 7, 8}, uint16(1), uint16(2))
	f.Add([]byte{}, make([]byte, 16), uint16(0), uint16(65535))
	f.Fuzz(func(t *testing.T, from, to []byte, fp, tp uint16) {
		a, _ := netip.AddrFromSlice(from)
		b, _ := netip.AddrFromSlice(to)
		h := AppendProxyHeader(nil, netip.AddrPortFrom(a, fp), netip.AddrPortFrom(b, tp))
		if !bytes.HasPrefix(h, []byte(proxySignature)) || len(h) != 16+(int(h[14])<<8|int(h[15])) {
			t.Errorf("%q", h)
		}
	})
}
