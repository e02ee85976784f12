package publish

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// door is a port of this machine at which pages are served: those of one exposure, or
// of several that are told apart by the name that is asked for.
type door struct {
	s      *Server // these are set by newDoor, then read-only
	at     netip.AddrPort
	secure bool // it speaks TLS
	gate   *gate
	cancel context.CancelFunc

	mu    sync.Mutex          // guards the rest, and website.visitors and visitor.sites
	sites map[string]*website // by the name; "" is any, and alone then
}

func newDoor(s *Server, at netip.AddrPort, secure bool, ln net.Listener) *door {
	d := &door{s: s, at: at, secure: secure, sites: map[string]*website{}}
	d.gate = newGate(ln, s.o.Log, d.allows)
	return d
}

// open serves the pages until ctx ends or the last of them is removed.
func (d *door) open(ctx context.Context) {
	ctx, d.cancel = context.WithCancel(ctx)
	d.s.running.Go(func() { d.serve(ctx) })
}

// fits says why an exposure's page cannot be served here beside those that are.
func (d *door) fits(e *Exposure) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, w := range d.sites {
		switch {
		case name == "" || e.Host == "" || strings.EqualFold(name, e.Host):
			return fmt.Errorf("port %d is published as %s already", d.at.Port(), w.p.e.ID)
		case d.secure != e.tls():
			return fmt.Errorf("port %d has pages with TLS, or without, and not both", d.at.Port())
		}
	}
	return nil
}

// add serves one more page.
func (d *door) add(w *website) error {
	if err := d.fits(&w.p.e); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	w.d = d
	d.sites[strings.ToLower(w.p.e.Host)] = w
	return nil
}

// remove serves one no more. It ends the connections by which that was asked for, at
// the last page all, and returns how many those were, and whether it was the last.
func (d *door) remove(w *website) (ended int, last bool) {
	d.mu.Lock()
	delete(d.sites, strings.ToLower(w.p.e.Host))
	last = len(d.sites) == 0
	visitors := slices.Collect(maps.Keys(w.visitors))
	d.mu.Unlock()
	ended = len(visitors)
	var rest []net.Conn
	if last {
		rest = d.gate.close()
		ended = len(rest)
		d.cancel()
	}
	for _, v := range visitors {
		reset(v)
	}
	for _, c := range rest { // also those that have not asked yet
		reset(c)
	}
	return ended, last
}

// count returns how many connections a page has: all, where it is the only one.
func (d *door) count(w *website) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.sites) == 1 {
		return d.gate.count()
	}
	return len(w.visitors)
}

// allows reports whether a client may reach any of the pages.
func (d *door) allows(a netip.Addr) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.sites {
		if w.p.e.allows(a) {
			return true
		}
	}
	return false
}

// Accept implements net.Listener: its connections know their door.
func (d *door) Accept() (net.Conn, error) {
	c, err := d.gate.accept()
	if err != nil {
		return nil, err
	}
	return &visitor{Conn: c, d: d, sites: map[*website]bool{}, far: map[errand]*http.Transport{}, open: map[*farConn]bool{}}, nil
}

// Addr implements net.Listener.
func (d *door) Addr() net.Addr { return d.gate.ln.Addr() }

// Close implements net.Listener.
func (d *door) Close() error { return d.gate.ln.Close() }

// serve serves the pages until the listener is closed.
func (d *door) serve(ctx context.Context) {
	srv := &http.Server{
		Handler: d, ReadHeaderTimeout: headerWait, IdleTimeout: idleWait, MaxHeaderBytes: maxHeader,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if t, ok := c.(*tls.Conn); ok {
				c = t.NetConn()
			}
			return context.WithValue(ctx, visitorKey{}, c)
		},
		ErrorLog: slog.NewLogLogger(d.s.o.Log.Handler(), slog.LevelDebug),
	}
	defer srv.Close()
	var err error
	if d.secure {
		srv.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: webProtocols, GetConfigForClient: d.greet}
		err = srv.ServeTLS(d, "", "")
	} else {
		err = srv.Serve(d)
	}
	if !errors.Is(err, net.ErrClosed) { // else it was by remove
		d.s.o.Log.Error("a published port stopped", "addr", d.at, "err", err)
	}
}

// webProtocols are what browsers may speak behind TLS.
var webProtocols = []string{"h2", "http/1.1"}

// noName is the TLS of who asks for a name that is not here. It has no certificate, and
// ends with the alert for just that, which browsers show as such.
var noName = &tls.Config{MinVersion: tls.VersionTLS12}

// greet picks the certificate for the name that a client says. Where there is one page
// only, it has that one's whatever it says, and is told with the page that it is wrong.
func (d *door) greet(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	v, _ := hello.Conn.(*visitor)
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.site(hostOf(hello.ServerName))
	if w == nil && len(d.sites) == 1 {
		for _, w = range d.sites {
		}
	}
	if w == nil || v == nil {
		return noName, nil
	}
	if !isChallenge(hello) {
		d.visit(v, w)
	}
	return w.tls, nil
}

// site returns the page of a name, nil when there is none; mu is held.
func (d *door) site(name string) *website {
	if w := d.sites[name]; w != nil {
		return w
	}
	return d.sites[""]
}

// visit takes note that a connection is one of a page's; mu is held.
func (d *door) visit(v *visitor, w *website) {
	if v.left {
		return
	}
	v.sites[w] = true
	w.visitors[v] = true
}

// leave forgets a connection that has ended.
func (d *door) leave(v *visitor) {
	d.gate.leave(v.Conn)
	d.mu.Lock()
	defer d.mu.Unlock()
	v.left = true
	for w := range v.sites {
		delete(w.visitors, v)
	}
}

// ServeHTTP implements http.Handler.
func (d *door) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	name, v := hostOf(r.Host), visitorOf(r)
	if !d.secure && strings.HasPrefix(r.URL.Path, "/.well-known/acme-challenge/") {
		if h := d.s.certs.challenged(name); h != nil {
			h.ServeHTTP(rw, r)
			return
		}
	}
	d.mu.Lock()
	w := d.site(name)
	if w != nil && v != nil {
		d.visit(v, w)
	}
	d.mu.Unlock()
	switch {
	case w == nil || v == nil:
		writePage(rw, http.StatusMisdirectedRequest, page{Title: "Not here", Text: "There is nothing of that name at this address."})
	case !w.p.e.allows(addrOf(v.RemoteAddr()).Addr()): // but another page's
		reset(v)
		panic(http.ErrAbortHandler)
	default:
		w.ServeHTTP(rw, r)
	}
}
