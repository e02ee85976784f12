package publish

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
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
			if scheme == "https" && err == nil || scheme == "http" && (err != nil || resp.StatusCode != http.StatusMisdirectedRequest) {
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
