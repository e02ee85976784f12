package publish

import (
	"context"
	"crypto/tls"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"
)

const (
	headerWait = 10 * time.Second // for a request's header: a slow phone needs two
	idleWait   = 2 * time.Minute  // between two requests
	maxHeader  = 64 << 10
)

// website is what an exposure serves by HTTP.
type website struct {
	p     *port
	proxy *httputil.ReverseProxy
	tls   *tls.Config // nil: none
	d     *door       // set by door.add, then read-only

	visitors map[*visitor]bool // whose connections have asked for it; guarded by door.mu
}

func (p *port) website() (*website, error) {
	w := &website{p: p, visitors: map[*visitor]bool{}}
	if p.e.tls() {
		c, err := p.tlsConfig()
		if err != nil {
			return nil, err
		}
		w.tls = c
	}
	w.proxy = &httputil.ReverseProxy{
		Rewrite: w.rewrite, Transport: w, ModifyResponse: w.localize, ErrorHandler: w.failed,
		ErrorLog: slog.NewLogLogger(p.s.o.Log.Handler(), slog.LevelDebug),
	}
	return w, nil
}

// guest is on whose behalf a request goes to the target.
func (w *website) guest(r *http.Request) Guest {
	g := Guest{User: w.p.e.User, Exposure: w.p.e.ID, Own: true, Web: true}
	if v := whoOf(r); v.id != "" {
		g.User, g.Since, g.Own = v.id, v.since, false
	}
	if at, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		g.Client = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	}
	return g
}

// ServeHTTP implements http.Handler.
func (w *website) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	if w.p.e.Login {
		var ok bool
		if r, ok = w.admit(rw, r); !ok {
			return
		}
	}
	w.proxy.ServeHTTP(rw, r)
}

// hostOf is the name in a Host header.
func hostOf(s string) string {
	if host, _, err := net.SplitHostPort(s); err == nil {
		s = host
	}
	return strings.ToLower(strings.TrimSuffix(strings.Trim(s, "[]"), "."))
}

// rewrite makes the request for the target.
func (w *website) rewrite(pr *httputil.ProxyRequest) {
	pr.SetURL(&url.URL{Scheme: "http", Host: w.p.e.Target})
	pr.Out.Host = pr.In.Host
	h := pr.Out.Header
	for name := range h {
		if isOurs(name) {
			delete(h, name)
		}
	}
	pr.SetXForwarded()
	h.Set("X-Real-Ip", w.guest(pr.In).Client.Addr().String())
	if v := whoOf(pr.In); v.id != "" {
		h.Set("X-Forwarded-User", v.name)
	}
	hideCookies(pr.Out)
	if up := h.Get("Upgrade"); up != "" && !strings.EqualFold(up, "websocket") {
		h.Del("Upgrade")
		h.Del("Connection")
	}
}

// isOurs reports whether a header is one that only this machine may say, or that
// many a target takes for one: CGI and its heirs read _ as -.
func isOurs(name string) bool {
	name = strings.ToLower(strings.ReplaceAll(name, "_", "-"))
	return name == "x-real-ip" || name == "forwarded" || strings.HasPrefix(name, "x-forwarded-")
}

// localize makes a redirection to the target's own address one to here.
func (w *website) localize(resp *http.Response) error {
	at, err := url.Parse(resp.Header.Get("Location"))
	if err != nil || at.Host == "" {
		return nil
	}
	host := at.Host
	if at.Port() == "" {
		host = net.JoinHostPort(at.Hostname(), "80")
	}
	if at.Scheme == "http" && strings.EqualFold(host, w.p.e.Target) {
		// A path that begins with // would be another host.
		here := "/" + strings.TrimLeft(at.EscapedPath(), "/")
		if at.ForceQuery || at.RawQuery != "" {
			here += "?" + at.RawQuery
		}
		if f := at.EscapedFragment(); f != "" {
			here += "#" + f
		}
		resp.Header.Set("Location", here)
	}
	return nil
}

// RoundTrip implements http.RoundTripper: over connections that are this
// client's and this user's.
func (w *website) RoundTrip(r *http.Request) (*http.Response, error) {
	v := visitorOf(r)
	if v == nil {
		return nil, errors.New("the client's connection is not known")
	}
	g, e := w.guest(r), errand{w, whoOf(r)}
	if w.p.s.o.May(g, "tcp", w.p.e.Target) != nil {
		v.forget(e) // a new connection says why
	}
	return v.transport(e, g).RoundTrip(r)
}

// failed says why there is no answer of the target.
func (w *website) failed(rw http.ResponseWriter, r *http.Request, err error) {
	w.p.s.o.Log.Debug("a published request failed", "exposure", w.p.e.ID, "addr", r.RemoteAddr, "err", err)
	switch {
	case errors.Is(err, context.Canceled):
		panic(http.ErrAbortHandler) // there is nobody to tell
	case errors.Is(err, fs.ErrPermission):
		writePage(rw, http.StatusForbidden, page{Title: "Not allowed", Text: "The policy of this network does not let you reach this page."})
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
		writePage(rw, http.StatusBadGateway, page{Title: "Nothing answers there", Text: "The machine behind this address is there, but nothing answers on its port."})
	default:
		rw.Header().Set("Retry-After", "5")
		writePage(rw, http.StatusServiceUnavailable, page{Title: "Not reachable now", Text: "The machine behind this address cannot be reached at the moment. Try again in a little while.", Reload: true})
	}
}
