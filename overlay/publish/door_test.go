package publish

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// named is a page that says its name, and what it knows of its connections.
type named struct {
	*httptest.Server
	ended chan struct{}
}

func newNamed(t *testing.T, name string) named {
	n := named{ended: make(chan struct{}, 16)}
	n.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, name) }))
	n.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateClosed {
			n.ended <- struct{}{}
		}
	}
	n.Start()
	t.Cleanup(n.Close)
	return n
}

func (n named) addr() string { return n.Listener.Addr().String() }

// TestFarEnds: a connection to the target that waits for a request ends with the
// client's, whether that leaves or is ended.
func TestFarEnds(t *testing.T) {
	for name, end := range map[string]func(*publisher, *http.Client){
		"the client leaves":       func(_ *publisher, c *http.Client) { c.CloseIdleConnections() },
		"it is published no more": func(p *publisher, _ *http.Client) { p.server.Set(nil) },
	} {
		t.Run(name, func(t *testing.T) {
			p, n := newPublisher(t), newNamed(t, "x")
			at, c := p.expose(Exposure{Target: n.addr(), Protocol: HTTP}), browser(t)
			if _, body := get(t, c, "http://"+at.String()); body != "x" {
				t.Fatal(body)
			}
			end(p, c)
			ctx, cancel := context.WithTimeout(t.Context(), farIdle/3)
			defer cancel()
			select {
			case <-n.ended:
			case <-ctx.Done():
				t.Error("the connection to the target is still there")
			}
		})
	}
}

// resolving is a browser for which every name is one address.
func resolving(t *testing.T, at netip.AddrPort) *http.Client {
	tr := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", at.String())
		},
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true,
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience}
}

// TestNames: several names at one port lead each to its own target, with its own
// certificate and its own clients, and are removed one by one.
func TestNames(t *testing.T) {
	for _, scheme := range []string{"http", "https"} {
		t.Run(scheme, func(t *testing.T) {
			p, at := newPublisher(t), freePort(t)
			var list []Exposure
			var pages []named
			for _, name := range []string{"a", "b", "c"} {
				n := newNamed(t, name)
				e := Exposure{ID: name, Target: n.addr(), Protocol: HTTP, Listen: at, Host: name + ".example.org", Secret: []byte("secret")}
				if scheme == "https" {
					e.Certificate, e.Key = selfSigned(t)
				}
				list, pages = append(list, e), append(pages, n)
			}
			list[2].Allow = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
			p.server.Set(list)
			c := resolving(t, at)
			url := func(name string) string { return scheme + "://" + name + ".example.org" }
			for _, name := range []string{"a", "b"} {
				resp, body := get(t, c, url(name))
				if body != name {
					t.Errorf("%s leads to %q", name, body)
				}
				if scheme == "https" && !slices.Equal(resp.TLS.PeerCertificates[0].Raw, leaf(t, list[slices.Index([]string{"a", "b"}, name)])) {
					t.Errorf("%s has another's certificate", name)
				}
			}
			if _, err := c.Get(url("c")); err == nil {
				t.Error("who may not connect to c does")
			}
			resp, err := c.Get(url("d"))
			if err == nil {
				resp.Body.Close()
			}
			if scheme == "https" && (err == nil || !strings.Contains(err.Error(), "unrecognized name")) || scheme == "http" && (err != nil || resp.StatusCode != http.StatusMisdirectedRequest) {
				t.Errorf("a name that is not there: %v, %v", resp, err)
			}
			for _, e := range list[:2] {
				if state, problem, n := p.server.State(e.ID); state != Listening || n != 1 {
					t.Errorf("%s: %s %s, %d connections", e.ID, state, problem, n)
				}
			}
			if n := p.server.Set(list[1:]); n != 1 {
				t.Errorf("%d connections ended with a", n)
			}
			<-pages[0].ended
			if len(pages[1].ended) != 0 {
				t.Error("b's connection ended, too")
			}
			if _, body := get(t, c, url("b")); body != "b" {
				t.Errorf("b leads to %q", body)
			}
			if resp, err := c.Get(url("a")); err == nil {
				resp.Body.Close()
				if resp.StatusCode != http.StatusMisdirectedRequest || scheme == "https" && resp.ProtoMajor != 2 {
					t.Errorf("a is still there: %s %s", resp.Proto, resp.Status)
				}
			}
			p.server.Set(nil)
			if err := refusal(t, at); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("the port is still open: %v", err)
			}
		})
	}
}

func leaf(t *testing.T, e Exposure) []byte {
	t.Helper()
	pair, err := tls.X509KeyPair(e.Certificate, e.Key)
	if err != nil {
		t.Fatal(err)
	}
	return pair.Certificate[0]
}

// TestFits: what cannot be beside what there is.
func TestFits(t *testing.T) {
	p := newPublisher(t)
	at := p.expose(Exposure{Target: echo(t), Protocol: HTTP, Host: "a.example.org"})
	cert, key := selfSigned(t)
	for want, e := range map[string]Exposure{
		"":                   {Protocol: HTTP, Host: "b.example.org"},
		"published as e1":    {Protocol: HTTP, Host: "A.example.org"},
		"is published as e1": {Protocol: HTTP},
		"and not both":       {Protocol: HTTP, Host: "b.example.org", Certificate: cert, Key: key},
		"in use":             {Protocol: TCP},
	} {
		e.Listen = at
		if err := p.server.Try(e); err == nil != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", e, err)
		}
	}
}

// TestNameOfRequest: what counts is the name that a request is for, whatever name the
// connection was made by and whatever was asked for by it before.
func TestNameOfRequest(t *testing.T) {
	p, at := newPublisher(t), freePort(t)
	cert, key := selfSigned(t)
	var list []Exposure
	for _, name := range []string{"open", "login", "closed"} {
		list = append(list, Exposure{
			ID: name, Target: newNamed(t, name).addr(), Protocol: HTTP, Listen: at, Host: name + ".example.org",
			Login: name == "login", Secret: []byte("secret"), Certificate: cert, Key: key,
		})
	}
	list[2].Allow = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
	p.server.Set(list)
	for _, protocol := range webProtocols {
		var dials int
		tr := &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				dials++
				return new(net.Dialer).DialContext(ctx, "tcp", at.String())
			},
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}},
			ForceAttemptHTTP2: protocol == "h2",
		}
		t.Cleanup(tr.CloseIdleConnections)
		c := &http.Client{Transport: tr, Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		ask := func(host string) (*http.Response, string, error) {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://open.example.org/", nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Host = host
			resp, err := c.Do(r)
			if err != nil {
				return nil, "", err
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			return resp, string(b), err
		}
		for _, name := range []string{"open", "login", "open"} {
			resp, body, err := ask(name + ".example.org")
			if err != nil || (body == "open") != (name == "open") || (resp.StatusCode == http.StatusSeeOther) != (name == "login") || body == "login" {
				t.Errorf("%s: %s is answered with %v, %q, %v", protocol, name, resp, body, err)
			}
		}
		if dials != 1 {
			t.Errorf("%s: it took %d connections", protocol, dials)
		}
		if resp, body, err := ask("closed.example.org"); err == nil {
			t.Errorf("%s: who may not connect gets %v, %q", protocol, resp, body)
		}
	}
	if guests := p.dialed(); slices.ContainsFunc(guests, func(g Guest) bool { return g.Exposure != "open" }) {
		t.Errorf("targets were dialed for %+v", guests)
	}
}

// TestRemovalIsNoError: a port that is published no more has not failed.
func TestRemovalIsNoError(t *testing.T) {
	var log bytes.Buffer // read when all is over
	s, err := New(Options{Log: slog.New(slog.NewTextHandler(&log, nil)), Dial: func(context.Context, Guest, string, string) (net.Conn, error) {
		return nil, errors.New("nobody is there")
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	for p := (&publisher{server: s}); p.running() == nil; {
		time.Sleep(time.Millisecond)
	}
	at := freePort(t)
	for range 500 { // one in forty met the moment, when it was an error
		s.Set([]Exposure{{ID: "e1", Target: "127.0.0.1:1", Protocol: HTTP, Listen: at}})
		s.Set(nil)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if lines := log.String(); strings.Contains(lines, "level=ERROR") {
		t.Error(lines)
	}
}
