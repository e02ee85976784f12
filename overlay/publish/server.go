package publish

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// Exposure is a port to be open.
type Exposure struct {
	ID        string
	Target    string         // host:port
	Listen    netip.AddrPort // an unspecified address is every one
	Protocol  string         // tcp, udp, http
	Allow     []netip.Prefix // of clients; none: all
	Host      string         // the only name that is answered; empty: any
	Login     bool
	Proxy     bool   // the target gets the PROXY protocol's header, version 2
	User      string // the id of whose connections these are; empty: nobody's in particular
	Suspended bool   // not to be open now
	Until     time.Time

	Certificate, Key []byte // in PEM; none: no TLS, or by ACME
	ACME             *ACME  // nil: no certificate by it
	Secret           []byte // that logins are remembered with
}

// ACME says which certificate authority is asked for Exposure.Host.
type ACME struct {
	Directory string // its URL; empty: Let's Encrypt's
	CA        []byte // certificates in PEM; none: the system's
}

// Guest is on whose behalf a connection to a target is made.
type Guest struct {
	User     string    // an id; empty: this machine's own
	Since    time.Time // when User logged in; zero: nobody did
	Client   netip.AddrPort
	Exposure string // its id
	Own      bool   // User is the exposure's, and nobody who logged in
	Web      bool   // it is for requests, of which a later one may find it dead
}

// ErrWait says that somebody has to wait before a login is looked at.
var ErrWait = errors.New("too many wrong logins")

// ErrAddress says that a port is to be of an address that is another machine's.
var ErrAddress = errors.New("no address of this machine")

// The protocols.
const (
	TCP  = "tcp"
	UDP  = "udp"
	HTTP = "http"
)

// The states of a port.
const (
	Listening = "listening"
	Failed    = "failed"
	Suspended = "suspended"
)

// Options say what a Server works with.
type Options struct {
	// Dial connects to a target. An error that is fs.ErrPermission says that
	// policy refuses it.
	Dial func(ctx context.Context, g Guest, network, target string) (net.Conn, error) // required
	// May says why a target could not be reached now, as Dial would; nil: ask Dial.
	// It is asked before a request goes over a connection that there is already:
	// a gateway that is gone resets none.
	May func(g Guest, network, target string) error
	// Login returns whose name, password and code these are. Its errors are for
	// the person; one that is ErrWait was not about these.
	Login func(ctx context.Context, from netip.Addr, name, password, code string) (id string, err error)
	// Holds returns the name of a user whose login at a time still counts.
	Holds func(id string, at time.Time) (name string, ok bool)
	// Refused is told of each login that failed; may be nil.
	Refused func(name string, g Guest, why string)
	Cache   string           // directory for certificates by ACME
	Own     netip.AddrPort   // where this machine serves something else by TCP and UDP, and TLS
	Log     *slog.Logger     // nil: slog.Default
	Now     func() time.Time // nil: time.Now
}

// Server keeps ports open.
type Server struct {
	o     Options // set by New, then read-only
	certs *certificates

	running sync.WaitGroup // what ports have started

	mu    sync.Mutex      // guards what follows
	ctx   context.Context // of Run; nil: it has not begun, or is over
	wish  []Exposure
	ports map[string]*port
	doors map[netip.AddrPort]*door // of the ports with pages
}

// New checks the options. Nothing is opened before Run.
func New(o Options) (*Server, error) {
	if o.Dial == nil {
		return nil, errors.New("published ports need a way to dial")
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.May == nil {
		o.May = func(Guest, string, string) error { return nil }
	}
	if o.Refused == nil {
		o.Refused = func(string, Guest, string) {}
	}
	return &Server{o: o, certs: newCertificates(o.Cache, o.Log), ports: map[string]*port{}, doors: map[netip.AddrPort]*door{}}, nil
}

// lookEvery is how often ports that failed are tried again, and those closed
// whose time is over.
const lookEvery = time.Second

// Run keeps ports open until ctx ends, and returns when all is closed.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	s.mu.Lock()
	s.ctx = ctx
	s.settle()
	s.mu.Unlock()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
			s.mu.Lock()
			s.settle()
			s.mu.Unlock()
		}
	}
	s.mu.Lock()
	s.ctx = nil
	for id, p := range s.ports {
		p.close()
		delete(s.ports, id)
	}
	s.mu.Unlock()
	cancel()
	s.certs.close()
	s.running.Wait()
	return nil
}

// Set says which ports are to be open, and returns how many connections were
// ended by that. It does not wait for anybody.
func (s *Server) Set(list []Exposure) (ended int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wish = list
	return s.settle()
}

// settle makes the ports match the wish; mu is held.
func (s *Server) settle() (ended int) {
	if s.ctx == nil {
		return 0
	}
	now, want := s.o.Now(), map[string]Exposure{}
	for _, e := range s.wish {
		if e.Until.IsZero() || now.Before(e.Until) {
			want[e.ID] = e
		}
	}
	for id, p := range s.ports { // what goes makes room first
		if e, ok := want[id]; !ok || e.Suspended {
			ended += p.close()
			delete(s.ports, id)
			s.o.Log.Info("published port closed", "exposure", id, "addr", p.e.Listen)
		}
	}
	for id, e := range want {
		p := s.ports[id]
		if e.Suspended || p != nil && p.failed == nil {
			continue
		}
		next := newPort(s, e)
		if next.failed = next.open(s.ctx); next.failed != nil && (p == nil || p.failed.Error() != next.failed.Error()) {
			s.o.Log.Error("a published port cannot be opened", "exposure", id, "addr", e.Listen, "err", next.failed)
		}
		s.ports[id] = next
		if next.failed == nil {
			s.o.Log.Info("published port open", "exposure", id, "addr", e.Listen, "target", e.Target)
		}
	}
	published := map[string]bool{}
	for _, p := range s.ports {
		published[p.e.Host] = published[p.e.Host] || p.e.ACME != nil
	}
	s.certs.keep(published)
	return ended
}

// Try says why a port could not be opened now.
func (s *Server) Try(e Exposure) error {
	if e.ACME != nil && e.Listen.Port() != 443 && s.o.Own.Port() != 443 && !s.has(80) {
		return errors.New("a certificate authority asks this machine on port 443 or 80, and neither is open: publish on :443, or something by http on :80")
	}
	if d := s.doorAt(e); d != nil {
		return d.fits(&e)
	}
	t, err := newPort(s, e).take(context.Background())
	if err != nil {
		return err
	}
	t.close()
	return nil
}

// doorAt returns the door that an exposure would have a part of; nil: none.
func (s *Server) doorAt(e Exposure) *door {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.Protocol != HTTP {
		return nil
	}
	return s.doors[e.Listen]
}

// has reports whether HTTP without TLS is published on a port.
func (s *Server) has(number uint16) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.ports {
		if p.e.Listen.Port() == number && p.e.Protocol == HTTP && !p.e.tls() && p.failed == nil {
			return true
		}
	}
	return false
}

// State says how an exposure does.
func (s *Server) State(id string) (state, problem string, connections int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.ports[id]
	switch {
	case p == nil:
		return Suspended, "", 0
	case p.failed != nil:
		return Failed, p.failed.Error(), 0
	}
	if p.e.ACME != nil {
		problem = s.certs.problem(p.e.Host)
	}
	return Listening, problem, p.count()
}

// tls reports whether the port speaks TLS.
func (e *Exposure) tls() bool { return len(e.Certificate) > 0 || e.ACME != nil }

// network is what the port listens to.
func (e *Exposure) network() string {
	if e.Protocol == UDP {
		return "udp"
	}
	return "tcp"
}

// allows reports whether a client may connect.
func (e *Exposure) allows(a netip.Addr) bool {
	for _, p := range e.Allow {
		if p.Contains(a) {
			return true
		}
	}
	return len(e.Allow) == 0
}

// listenError is why a port cannot be had, in words for a person.
func listenError(e *Exposure, own netip.AddrPort, err error) error {
	n := e.Listen.Port()
	switch {
	case errors.Is(err, syscall.EADDRINUSE) && n == own.Port():
		return fmt.Errorf("%s port %d is the relay's own", e.network(), n)
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s port %d is in use by another program; ss -lnp sport = :%d shows it", e.network(), n, n)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%s is %w", e.Listen.Addr(), ErrAddress)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s port %d may not be opened by this program: run overlayd as root, or choose a port above 1023", e.network(), n)
	}
	return err
}

// listenAddr is the address as package net takes it: no address is every one, of
// both families.
func listenAddr(a netip.AddrPort) string {
	if a.Addr().IsUnspecified() {
		return ":" + strconv.Itoa(int(a.Port()))
	}
	return a.String()
}
