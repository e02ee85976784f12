package relay

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"
)

// obstacle is a relay as it is dialed, and what stands in the way.
type obstacle struct {
	name string
	o    DialOptions
	want Obstacle // "": it works
	says string
}

// town is a relay that works, and who may stand between it and a node.
type town struct {
	t       *testing.T
	good    string // the relay's endpoint
	believe *tls.Config
}

func answer(code int, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
	}
}

func (w town) proxied(h http.Handler) DialOptions {
	p := httptest.NewServer(h)
	w.t.Cleanup(p.Close)
	u, err := url.Parse(p.URL)
	if err != nil {
		w.t.Fatal(err)
	}
	u.User = url.UserPassword("anna", "hidden-word")
	return DialOptions{Endpoint: w.good, TLS: w.believe, Proxy: http.ProxyURL(u)}
}

func (w town) direct(h http.Handler) DialOptions {
	endpoint, believe := web(w.t, h)
	return DialOptions{Endpoint: endpoint, TLS: believe, Proxy: noProxy}
}

func (w town) raw(f func(net.Conn)) DialOptions {
	return DialOptions{Endpoint: listen(w.t, f), TLS: w.believe, Proxy: noProxy}
}

func (w town) rawProxy(f func(net.Conn)) DialOptions {
	u := &url.URL{Scheme: "http", Host: listen(w.t, f)}
	return DialOptions{Endpoint: w.good, TLS: w.believe, Proxy: http.ProxyURL(u)}
}

// soon has less patience, for what would take all of it.
func soon(o DialOptions) DialOptions {
	o.Timeout = time.Second
	return o
}

func (w town) proxies() []obstacle {
	return []obstacle{
		{"a proxy that works", w.proxied(connectProxy(w.t)), "", ""},
		{"a proxy that wants a login", w.proxied(answer(407)), ObstacleProxy, "407"},
		{"a proxy that forbids it", w.proxied(answer(403)), ObstacleProxy, "403 Forbidden"},
		{"a proxy with a page to visit", w.proxied(answer(302, "Location", "http://portal.example/login")), ObstaclePortal, "portal.example"},
		{"a proxy that talks rubbish", w.rawProxy(func(c net.Conn) { io.WriteString(c, "220 smtp ready\r\n\r\n") }), ObstacleProxy, ""},
		{"a proxy that finds nobody", w.proxied(answer(502)), ObstacleProxy, "502 Bad Gateway"},
		{"a proxy that hangs", soon(w.rawProxy(func(c net.Conn) { io.Copy(io.Discard, c) })), ObstacleProxy, "no answer within"},
		{"a proxy with endless headers", w.rawProxy(func(c net.Conn) { endless(c, "HTTP/1.1 200 OK\r\n") }), ObstacleProxy, ""},
		{"a proxy that lets through and hangs", soon(w.rawProxy(func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
			io.Copy(io.Discard, c)
		})), ObstacleUnreachable, "no answer within"},
		{"a proxy that hangs up", w.rawProxy(func(net.Conn) {}), ObstacleProxy, ""},
		{"a proxy that is not there", DialOptions{Endpoint: w.good, TLS: w.believe, Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: "127.0.0.1:1"})}, ObstacleProxy, ""},
		{"a proxy that lies", w.rawProxy(func(c net.Conn) {
			if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
			c.Read(make([]byte, 1000))
			io.WriteString(c, "no TLS at all, but something else")
			c.(*net.TCPConn).CloseWrite()
			io.Copy(io.Discard, c)
		}), ObstacleNotRelay, ""},
		{"a proxy setting that is malformed", DialOptions{Endpoint: w.good, TLS: w.believe, Proxy: func(*http.Request) (*url.URL, error) {
			return nil, errors.New("parse http://anna:hidden-word@: bad")
		}}, ObstacleProxy, "malformed"},
	}
}

func (w town) relays() []obstacle {
	pinned := &tls.Config{InsecureSkipVerify: true, VerifyConnection: func(tls.ConnectionState) error { return errors.New("another key") }}
	closed := listen(w.t, func(net.Conn) {})
	return []obstacle{
		{"nothing", DialOptions{Endpoint: w.good, TLS: w.believe, Proxy: noProxy}, "", ""},
		{"a portal's redirect", w.direct(answer(302, "Location", "https://portal.example/")), ObstaclePortal, "portal.example"},
		{"a portal's page", w.direct(answer(200)), ObstaclePortal, "200"},
		{"a portal in plain HTTP", w.raw(func(c net.Conn) { io.WriteString(c, "HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n") }), ObstaclePortal, ""},
		{"a portal with endless headers", w.direct(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
			if c, _, err := http.NewResponseController(rw).Hijack(); err == nil {
				endless(c, "HTTP/1.1 302 Found\r\n")
				c.Close()
			}
		})), ObstacleUnreachable, ""},
		{"it hangs", soon(w.raw(func(c net.Conn) { io.Copy(io.Discard, c) })), ObstacleUnreachable, "no answer within"},
		{"another server", w.direct(answer(404)), ObstacleNotRelay, "404"},
		{"no TLS", w.raw(func(c net.Conn) { io.WriteString(c, "SSH-2.0-OpenSSH_9.9\r\n") }), ObstacleNotRelay, ""},
		{"a certificate nobody knows", w.raw(func(c net.Conn) {
			tls.Server(c, &tls.Config{Certificates: []tls.Certificate{selfSigned(w.t)}}).Handshake()
		}), ObstacleIntercepted, "certificate"},
		{"another pin", DialOptions{Endpoint: w.good, TLS: pinned, Proxy: noProxy}, ObstacleIntercepted, "another key"},
		{"nobody listens", DialOptions{Endpoint: "127.0.0.1:1", TLS: w.believe, Proxy: noProxy}, ObstacleUnreachable, "refused"},
		{"it hangs up", DialOptions{Endpoint: closed, TLS: w.believe, Proxy: noProxy}, ObstacleUnreachable, ""},
		{"a wrong accept key", w.direct(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			c, _, err := http.NewResponseController(rw).Hijack()
			if err != nil {
				return
			}
			defer c.Close()
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: AAAA\r\n\r\n")
		})), ObstacleNotRelay, "101"},
		{"the second address", DialOptions{Endpoint: w.good, TLS: w.believe, Proxy: noProxy,
			Addrs: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort(w.good)}}, "", ""},
	}
}

// TestObstacles: whatever stands in the way is named.
func TestObstacles(t *testing.T) {
	s, _ := startServer(t, netip.MustParseAddrPort("127.0.0.1:0"))
	w := town{t: t}
	w.good, w.believe = web(t, s)
	for _, tt := range append(w.proxies(), w.relays()...) {
		t.Run(tt.name, func(t *testing.T) {
			st, err := Dial(t.Context(), tt.o)
			if st != nil {
				st.Finish()
				st.Wait()
			}
			if obstacleOf(err) != tt.want || (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%q, %v; want %q", obstacleOf(err), err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "hidden-word") {
				t.Errorf("it tells the proxy's password: %v", err)
			}
		})
	}
}

// endless writes headers until nobody takes them any more; it gives up after
// 64 MiB, at which the test has failed to be fast.
func endless(c net.Conn, first string) {
	io.WriteString(c, first)
	line := []byte("X-Filler: " + strings.Repeat("a", 4000) + "\r\n")
	for range 64 << 20 / len(line) {
		if _, err := c.Write(line); err != nil {
			return
		}
	}
}
