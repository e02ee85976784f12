package proxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// errFor are hosts that Dial refuses.
var errFor = map[string]Reason{
	"forbidden.lab": Forbidden, "nowhere": NoName, "closed.lab": Refused, "gone.lab": Unreachable, "silent.lab": TimedOut, "odd.lab": Failed,
}

type testError struct{ reason Reason }

func (e testError) Error() string { return "refused in words" }

// world is what a test's proxy reaches: an address for each host:port.
type world map[string]string

func (w world) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if reason, ok := errFor[host]; ok {
		return nil, testError{reason}
	}
	at, ok := w[network+" "+address]
	if !ok {
		return nil, testError{Forbidden}
	}
	return new(net.Dialer).DialContext(ctx, network, at)
}

func explain(err error) (Reason, string) {
	if e, ok := errors.AsType[testError](err); ok {
		return e.reason, e.Error()
	}
	return Failed, err.Error()
}

// startProxy serves on the loopback until the test ends.
func startProxy(t *testing.T, w world, login *Login) (*Server, string) {
	t.Helper()
	return startProxyFor(t, w, login, nil)
}

// startProxyFor also says who may use it.
func startProxyFor(t *testing.T, w world, login *Login, admit func(string, netip.AddrPort, netip.AddrPort) bool) (*Server, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := New(Options{Dial: w.dial, Explain: explain, Login: login, Admit: admit, Reach: func(context.Context) Reach {
		return Reach{Prefixes: []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24")}, Names: []string{"Lab-GW"}, Domains: []string{"lab."}}
	}})
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		for _, c := range s.Counters() {
			if (c.Name == "clients" || c.Name == "udp_associations") && c.Value != 0 {
				t.Errorf("%s: %d are left", c.Name, c.Value)
			}
		}
		if n := len(s.asking) + len(s.destinations); n != 0 || s.waiting.Load() != 0 {
			t.Errorf("%d places and %d bytes are left", n, s.waiting.Load())
		}
	})
	return s, ln.Addr().String()
}

// echo answers what it reads, and ends its half when the caller has.
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

func connect(t *testing.T, at string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

// counted waits until a counter has a value.
func counted(t *testing.T, s *Server, name string, least uint64) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; {
		for _, c := range s.Counters() {
			if c.Name == name && c.Value >= least {
				return
			}
		}
		if time.Now().After(end) {
			t.Fatalf("%s does not come to %d: %v", name, least, s.Counters())
		}
		<-time.After(time.Millisecond)
	}
}

// TestSOCKS: what is said to each request, byte by byte.
func TestSOCKS(t *testing.T) {
	at := echo(t)
	_, proxy := startProxy(t, world{"tcp nas.lab:80": at, "tcp 192.168.1.10:80": at, "tcp [fd00::1]:80": at}, nil)
	name := func(s string) string { return string(rune(len(s))) + s }
	const hello, welcome = "\x05\x01\x00", "\x05\x00"
	for _, test := range []struct {
		name, say, want string // want begins what is answered; ends without more when it fails
		open            bool   // bytes are echoed behind it
	}{
		{"an address", hello + "\x05\x01\x00\x01\xc0\xa8\x01\x0a\x00\x50", welcome + "\x05\x00\x00\x01\x7f\x00\x00\x01", true},
		{"an address of IPv6", hello + "\x05\x01\x00\x04\xfd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x50", welcome + "\x05\x00\x00\x01\x7f", true},
		{"a name", hello + "\x05\x01\x00\x03" + name("nas.lab") + "\x00\x50", welcome + "\x05\x00\x00\x01", true},
		{"many methods", "\x05\x03\x01\x02\x00" + "\x05\x01\x00\x03" + name("nas.lab") + "\x00\x50", welcome + "\x05\x00\x00\x01", true},
		{"forbidden", hello + "\x05\x01\x00\x03" + name("forbidden.lab") + "\x00\x50", welcome + "\x05\x02\x00\x01", false},
		{"not in the overlay", hello + "\x05\x01\x00\x01\x01\x02\x03\x04\x00\x50", welcome + "\x05\x02\x00\x01", false},
		{"unknown name", hello + "\x05\x01\x00\x03" + name("nowhere") + "\x00\x50", welcome + "\x05\x04\x00\x01", false},
		{"refused", hello + "\x05\x01\x00\x03" + name("closed.lab") + "\x00\x50", welcome + "\x05\x05\x00\x01", false},
		{"unreachable", hello + "\x05\x01\x00\x03" + name("gone.lab") + "\x00\x50", welcome + "\x05\x04\x00\x01", false},
		{"silent", hello + "\x05\x01\x00\x03" + name("silent.lab") + "\x00\x50", welcome + "\x05\x06\x00\x01", false},
		{"odd", hello + "\x05\x01\x00\x03" + name("odd.lab") + "\x00\x50", welcome + "\x05\x01\x00\x01", false},
		{"bind", hello + "\x05\x02\x00\x01\xc0\xa8\x01\x0a\x00\x50", welcome + "\x05\x07\x00\x01", false},
		{"no such command", hello + "\x05\x09\x00\x01\xc0\xa8\x01\x0a\x00\x50", welcome + "\x05\x07\x00\x01", false},
		{"no such kind of address", hello + "\x05\x01\x00\x07\xc0\xa8\x01\x0a\x00\x50", welcome + "\x05\x08\x00\x01", false},
		{"an empty name", hello + "\x05\x01\x00\x03\x00\x00\x50", welcome + "\x05\x01\x00\x01", false},
		{"a name with a zero", hello + "\x05\x01\x00\x03" + name("a\x00b") + "\x00\x50", welcome + "\x05\x01\x00\x01", false},
		{"a name with a slash", hello + "\x05\x01\x00\x03" + name("a/../b") + "\x00\x50", welcome + "\x05\x01\x00\x01", false},
		{"no method that fits", "\x05\x01\x01", "\x05\xff", false},
		{"no method at all", "\x05\x00", "\x05\xff", false},
		{"another version behind", hello + "\x04\x01\x00\x01\xc0\xa8\x01\x0a\x00\x50", welcome, false},
		{"SOCKS4", "\x04\x01\x00\x50\xc0\xa8\x01\x0a\x00", "", false},
		{"TLS", "\x16\x03\x01\x00\x10", "", false},
		{"noise", "\x00\xff\x00\xff", "", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := connect(t, proxy)
			if test.open {
				test.say += "ping" // who is in a hurry sends it along
			}
			io.WriteString(c, test.say)
			c.CloseWrite()
			got, err := io.ReadAll(c)
			if err != nil && !test.open && !strings.Contains(err.Error(), "reset") {
				t.Error(err)
			}
			if !strings.HasPrefix(string(got), test.want) || test.want == "" && len(got) > 0 {
				t.Fatalf("answered %q, want %q", got, test.want)
			}
			if open := bytes.HasSuffix(got, []byte("ping")); open != test.open {
				t.Errorf("the answer %q is followed by an echo: %t", got, open)
			}
		})
	}
}

// TestLogin: with a password nobody gets in without it, by neither protocol.
func TestLogin(t *testing.T) {
	at := echo(t)
	const secret = "correct horse battery"
	login, err := NewLogin("anna", secret)
	if err != nil {
		t.Fatal(err)
	}
	if login, err = login.Save().Load(); err != nil {
		t.Fatal(err)
	}
	if text := fmt.Sprintf("%v %+v %s", login, login, login); strings.Contains(text, "anna") {
		t.Errorf("a login prints %q", text)
	}
	s, proxy := startProxy(t, world{"tcp nas.lab:80": at}, login)
	word := func(s string) string { return string(rune(len(s))) + s }
	const ask = "\x05\x01\x00\x03\x07nas.lab\x00\x50"
	for say, want := range map[string]string{
		"\x05\x01\x02\x01" + word("anna") + word(secret) + ask:  "\x05\x02\x01\x00\x05\x00\x00\x01",
		"\x05\x01\x02\x01" + word("anna") + word("wrong") + ask: "\x05\x02\x01\x01",
		"\x05\x01\x02\x01" + word("berta") + word(secret) + ask: "\x05\x02\x01\x01",
		"\x05\x01\x02\x01" + word("anna") + word("") + ask:      "\x05\x02\x01\x01",
		"\x05\x01\x00" + ask: "\x05\xff",
		"\x05\x01\x02\x07" + word("anna") + word(secret) + ask:                                                                       "\x05\x02",
		"CONNECT nas.lab:80 HTTP/1.1\r\nHost: nas.lab:80\r\n\r\n":                                                                    "HTTP/1.1 407 ",
		"GET http://nas.lab/ HTTP/1.1\r\nHost: nas.lab\r\n\r\n":                                                                      "HTTP/1.1 407 ",
		"CONNECT nas.lab:80 HTTP/1.1\r\nHost: nas.lab:80\r\nProxy-Authorization: Basic YW5uYTpjb3JyZWN0IGhvcnNlIGJhdHRlcnk=\r\n\r\n": "HTTP/1.1 200 ",
		"CONNECT nas.lab:80 HTTP/1.1\r\nHost: nas.lab:80\r\nProxy-Authorization: Basic YW5uYTp3cm9uZw==\r\n\r\n":                     "HTTP/1.1 407 ",
	} {
		c := connect(t, proxy)
		io.WriteString(c, say)
		c.CloseWrite()
		got, _ := io.ReadAll(c)
		if !strings.HasPrefix(string(got), want) || len(want) <= 4 && len(got) > len(want) {
			t.Errorf("%q: answered %q, want %q", say, got, want)
		}
	}
	counted(t, s, "wrong_password", 5)
	for _, bad := range []string{"", "short", strings.Repeat("x", 256)} {
		if _, err := NewLogin("anna", bad); err == nil {
			t.Errorf("a password of %d bytes is taken", len(bad))
		}
	}
	if _, err := (Saved{Name: "anna", Salt: []byte{1}}).Load(); err == nil {
		t.Error("a damaged login is loaded")
	}
}

// TestHTTP: CONNECT and plain requests, and why they fail.
func TestHTTP(t *testing.T) {
	tunnel := echo(t)
	web, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s host=%s proxyauth=%q ua=%q fwd=%q", r.Method, r.URL.Path, r.Host,
			r.Header.Get("Proxy-Authorization"), r.UserAgent(), r.Header.Get("X-Forwarded-For"))
	})}
	served := make(chan struct{})
	go func() { defer close(served); server.Serve(web) }()
	defer func() { server.Close(); <-served }()
	_, proxy := startProxy(t, world{"tcp nas.lab:22": tunnel, "tcp nas.lab:80": web.Addr().String()}, nil)

	for _, test := range []struct{ name, say, status, body string }{
		{"connect", "CONNECT nas.lab:22 HTTP/1.1\r\nHost: nas.lab:22\r\n\r\nping", "200", "ping"},
		{"connect by HTTP/1.0", "CONNECT nas.lab:22 HTTP/1.0\r\n\r\nping", "200", "ping"},
		{"connect without a port", "CONNECT nas.lab HTTP/1.1\r\nHost: nas.lab\r\n\r\n", "400", "HOST:PORT"},
		{"connect, forbidden", "CONNECT forbidden.lab:22 HTTP/1.1\r\nHost: x\r\n\r\n", "403", "refused in words"},
		{"connect, elsewhere", "CONNECT 1.2.3.4:22 HTTP/1.1\r\nHost: x\r\n\r\n", "403", "refused in words"},
		{"connect, unknown", "CONNECT nowhere:22 HTTP/1.1\r\nHost: x\r\n\r\n", "502", "refused in words"},
		{"connect, silent", "CONNECT silent.lab:22 HTTP/1.1\r\nHost: x\r\n\r\n", "504", "refused in words"},
		{"plain", "GET http://nas.lab/a HTTP/1.1\r\nHost: evil\r\nProxy-Authorization: Basic eDp5\r\nConnection: close\r\n\r\n", "200",
			`GET /a host=nas.lab proxyauth="" ua="" fwd=""`},
		{"plain, forbidden", "GET http://forbidden.lab/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "403", "refused in words"},
		{"plain, closed", "GET http://closed.lab/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "502", "refused in words"},
		{"plain, of TLS", "GET https://nas.lab/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "400", "CONNECT for everything else"},
		{"ftp", "GET ftp://nas.lab/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "400", ""},
		{"for no proxy", "GET / HTTP/1.1\r\nHost: 127.0.0.1:1\r\nConnection: close\r\n\r\n", "404", "/proxy.pac"},
		{"malformed", "GET\r\n\r\n", "400", ""},
		{"HTTP/2 by prior knowledge", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "", ""},
		{"two lengths", "POST http://nas.lab/ HTTP/1.1\r\nHost: nas.lab\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "400", ""},
		{"a header too long", "GET http://nas.lab/ HTTP/1.1\r\nHost: nas.lab\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n", "431", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := connect(t, proxy)
			go func() { // the answer may come before all is sent
				io.WriteString(c, test.say)
				if !strings.Contains(test.say, "close") {
					c.CloseWrite()
				}
			}()
			got, _ := io.ReadAll(c)
			if want := "HTTP/1.1 " + test.status; test.status != "" && !strings.HasPrefix(string(got), want) || !strings.Contains(string(got), test.body) {
				t.Errorf("answered %.300q, want %s and %q", got, want, test.body)
			}
		})
	}
}

// TestPAC: who may read the file, and what is in it.
func TestPAC(t *testing.T) {
	_, proxy := startProxy(t, world{}, nil)
	_, port, _ := net.SplitHostPort(proxy)
	for _, test := range []struct {
		name, host, header string
		status             int
	}{
		{"by address", proxy, "", 200},
		{"as localhost", "localhost:" + port, "", 200},
		{"the browser itself", proxy, "Sec-Fetch-Site: none", 200},
		{"a rebound name", "evil.example:" + port, "", 421},
		{"a name that begins like an address", "127.0.0.1.evil.example:" + port, "", 421},
		{"a page's script", proxy, "Sec-Fetch-Site: cross-site", 403},
		{"a page of another port", proxy, "Sec-Fetch-Site: same-site", 403},
		{"a page's request", proxy, "Origin: https://evil.example", 403},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := connect(t, proxy)
			fmt.Fprintf(c, "GET /proxy.pac HTTP/1.1\r\nHost: %s\r\n%s\r\nConnection: close\r\n\r\n", test.host, test.header)
			res, err := http.ReadResponse(bufio.NewReader(c), nil)
			if test.header == "" { // the empty line ended the header
				c.CloseWrite()
			}
			if err != nil || res.StatusCode != test.status {
				t.Fatalf("got %v, %v, want %d", res, err, test.status)
			}
			body, _ := io.ReadAll(res.Body)
			for _, h := range []string{"Access-Control-Allow-Origin"} {
				if res.Header.Get(h) != "" {
					t.Errorf("%s: %s", h, res.Header.Get(h))
				}
			}
			if res.Header.Get("X-Content-Type-Options") != "nosniff" || res.Header.Get("Cross-Origin-Resource-Policy") != "same-origin" {
				t.Errorf("a page might use it: %v", res.Header)
			}
			if has := strings.Contains(string(body), "192.168.1.0"); has != (test.status == 200) {
				t.Errorf("the networks are told: %t\n%s", has, body)
			}
			for _, want := range []string{`var ovlProxy = "PROXY ` + proxy + `"`, `["192.168.1.0", "255.255.255.0"]`, `["lab-gw"]`, `["lab"]`} {
				if test.status == 200 && !strings.Contains(string(body), want) {
					t.Errorf("%s is not in\n%s", want, body)
				}
			}
		})
	}
}

// TestPACQuotes: a name cannot say more than a name.
func TestPACQuotes(t *testing.T) {
	text := pacFile(Reach{Names: []string{`x"];alert(1);//`, "</script>"}}, "127.0.0.1:1")
	if !strings.Contains(text, `"x\"];alert(1);//"`) || strings.Contains(text, "</script>") {
		t.Errorf("a name got out of its quotes:\n%s", text)
	}
}

// TestStandardClient: net/http's own client goes through it.
func TestStandardClient(t *testing.T) {
	web, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello") })}
	served := make(chan struct{})
	go func() { defer close(served); server.Serve(web) }()
	defer func() { server.Close(); <-served }()
	_, proxy := startProxy(t, world{"tcp nas.lab:80": web.Addr().String()}, nil)
	for _, scheme := range []string{"http", "socks5", "socks5h"} {
		tr := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: scheme, Host: proxy})}
		res, err := (&http.Client{Transport: tr}).Get("http://nas.lab/")
		if err != nil {
			t.Fatal(scheme, err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		tr.CloseIdleConnections()
		if err != nil || string(body) != "hello" {
			t.Errorf("%s: %q, %v", scheme, body, err)
		}
	}
}

// pipes is a listener of connections within the process, which obey a test's
// clock.
func pipes(t *testing.T, s *Server) (connect func() net.Conn) {
	t.Helper()
	ln := newHandoff()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln) }()
	t.Cleanup(func() { stop(); <-done })
	return func() net.Conn {
		near, far := net.Pipe()
		if !ln.give(ctx, far) {
			t.Fatal("nobody accepts")
		}
		t.Cleanup(func() { near.Close() })
		return near
	}
}

// TestSlowLoris: who does not say what it wants is closed in time, however it
// trickles; and it keeps nobody else out for longer.
func TestSlowLoris(t *testing.T) {
	for _, say := range []string{"", "\x05", "\x05\x01\x00\x05\x01\x00\x03\xff", "G", "GET http://nas.lab/ HTTP/1.1\r\nX: "} {
		synctest.Test(t, func(t *testing.T) {
			connect := pipes(t, New(Options{Dial: world{}.dial, Explain: explain}))
			c := connect()
			began := time.Now()
			var trickle sync.WaitGroup
			defer trickle.Wait()
			trickle.Go(func() {
				io.WriteString(c, say)
				for { // a byte each second
					<-time.After(time.Second)
					if _, err := c.Write([]byte("x")); err != nil || time.Since(began) > time.Minute {
						return
					}
				}
			})
			io.Copy(io.Discard, c)
			if took := time.Since(began); took > askWithin+2*time.Second {
				t.Errorf("%q: closed after %v, want %v", say, took, askWithin)
			}
			c.Close()
		})
	}
}

// TestFull: more clients than there may be are closed at once, and those that
// still ask take no more than their share.
func TestFull(t *testing.T) {
	for _, say := range []string{"", "\x05", "G"} {
		testFull(t, say)
	}
}

func testFull(t *testing.T, say string) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{Dial: world{}.dial, Explain: explain})
		connect := pipes(t, s)
		for range mostAsking {
			c := connect()
			io.WriteString(c, say)
			go io.Copy(io.Discard, c) // until it is closed
		}
		synctest.Wait()
		c := connect()
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("one more than may ask is served")
		}
		synctest.Wait()
		if n := s.counters.full.Load(); n != 1 {
			t.Errorf("%d were closed, want 1", n)
		}
		<-time.After(askWithin + time.Second)
		synctest.Wait()
		if len(s.asking) != 0 || len(s.clients) != 0 {
			t.Errorf("%d ask and %d are there after their time", len(s.asking), len(s.clients))
		}
	})
}
