package proxy

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"overlayd/overlay/splice"
)

const (
	// mostClients bounds the connections at once: a browser opens some dozens.
	mostClients = 1024
	// mostAsking bounds those that have not yet said what they want, so that who
	// never says it does not keep the others out.
	mostAsking = 256
	// askWithin is how long a client has for that.
	askWithin = 10 * time.Second
	// mostHeader bounds an HTTP request's header: four times what browsers send.
	mostHeader = 32 << 10
	// wrongPasswordAfter slows down who guesses.
	wrongPasswordAfter = time.Second
)

// Options say what a Server does.
type Options struct {
	// Dial connects to host:port, by name or address; network is tcp or udp.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Explain puts an error of Dial into a reason and a sentence for the client.
	Explain func(error) (Reason, string)
	// Reach says what the PAC file sends here.
	Reach func(context.Context) Reach
	// Login is the name and password that clients need; nil: none.
	Login *Login
	// Admit reports whether who sends from client to our port server may use the
	// proxy; network is tcp or udp. Nil: everybody may.
	Admit func(network string, client, server netip.AddrPort) bool
	Log   *slog.Logger // nil: none
}

// Reason is why Dial made no connection, as the protocols tell them apart.
type Reason int

// The reasons.
const (
	Failed      Reason = iota // anything else
	Forbidden                 // not allowed, or not reached this way at all
	NoName                    // nobody knows the name
	Refused                   // the host has nothing there
	Unreachable               // nobody reaches the host
	TimedOut                  // nobody answers
)

// Server is one proxy. It is used once.
type Server struct {
	o        Options
	http     *http.Server
	requests *handoff // connections that speak HTTP
	forward  http.Handler
	idle     *http.Transport // to the hosts of plain requests

	asking  chan struct{} // a place for each client that has yet to say what it wants
	clients chan struct{} // and for each there is
	assocs  chan struct{} // and for each UDP association

	destinations chan struct{} // and for each host and port that one talks to
	waiting      atomic.Int64  // bytes of datagrams that wait for a socket
	running      sync.WaitGroup
	counters     counters
}

// counters are what a Server counts.
type counters struct {
	socks, connect, plain, pac, assocs         atomic.Uint64
	full, slow, garbage, denied, failed, wrong atomic.Uint64
	strangers                                  atomic.Uint64
	udpBad, udpForeign, udpRefused, udpFull    atomic.Uint64
}

// New makes a server.
func New(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		o:        o,
		requests: newHandoff(),
		asking:   make(chan struct{}, mostAsking),
		clients:  make(chan struct{}, mostClients),
		assocs:   make(chan struct{}, mostAssociations),

		destinations: make(chan struct{}, allDestinations),
	}
	s.forward = s.plainProxy()
	s.http = &http.Server{
		ConnState:         s.watchConn,
		ReadHeaderTimeout: askWithin,
		IdleTimeout:       time.Minute, // as long as browsers keep a connection for the next request
		MaxHeaderBytes:    mostHeader,
		ErrorLog:          slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
	}
	return s
}

// Serve answers the clients of ln until ctx ends. Then every connection is torn,
// and it returns when all are over.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer s.running.Wait()
	defer s.idle.CloseIdleConnections()
	defer s.http.Close()
	defer cancel()
	s.http.BaseContext = func(net.Listener) context.Context { return ctx }
	s.http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.serveHTTP(ctx, w, r) })
	s.requests.addr = ln.Addr()
	s.running.Go(func() {
		if err := s.http.Serve(s.requests); !errors.Is(err, http.ErrServerClosed) {
			s.o.Log.Debug("http proxy stopped", "err", err)
		}
	})
	return splice.Accept(ctx, ln, s.o.Log, func(c net.Conn) { s.accept(ctx, c) })
}

// watchConn keeps Serve waiting for the connections of the HTTP server. New ones
// come from a goroutine that it waits for, too. One that is active has sent the
// header of a request.
func (s *Server) watchConn(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.running.Add(1)
	case http.StateActive:
		if c, ok := c.(*client); ok {
			c.asked()
		}
	case http.StateClosed, http.StateHijacked:
		s.running.Done()
	}
}

// accept gives a client its places, or closes the connection.
func (s *Server) accept(ctx context.Context, c net.Conn) {
	if !take(s.clients) {
		s.counters.full.Add(1)
		c.Close()
		return
	}
	if !take(s.asking) {
		s.counters.full.Add(1)
		<-s.clients
		c.Close()
		return
	}
	client := &client{Conn: c, server: s}
	s.running.Go(func() { s.greet(ctx, client) })
}

func take(places chan struct{}) bool {
	select {
	case places <- struct{}{}:
		return true
	default:
		return false
	}
}

// greet finds out what a client speaks.
func (s *Server) greet(ctx context.Context, c *client) {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if !s.admits("tcp", addrPort(c.RemoteAddr()), addrPort(c.LocalAddr())) {
		c.Close()
		return
	}
	c.SetDeadline(time.Now().Add(askWithin))
	in := bufio.NewReader(c.Conn)
	c.in = in
	first, err := in.Peek(1)
	switch {
	case err != nil:
		s.counters.slow.Add(1)
	case first[0] == socksVersion:
		s.counters.socks.Add(1)
		s.serveSOCKS(ctx, c)
	case 'A' <= first[0] && first[0] <= 'Z':
		c.SetDeadline(time.Time{}) // from here on the HTTP server's times hold
		if s.requests.give(ctx, c) {
			return // it closes it
		}
	default:
		s.counters.garbage.Add(1)
	}
	c.Close()
}

// admits reports whether a client may use the proxy.
func (s *Server) admits(network string, client, server netip.AddrPort) bool {
	if s.o.Admit == nil || s.o.Admit(network, client, server) {
		return true
	}
	s.counters.strangers.Add(1)
	return false
}

// addrPort is the address of a socket of package net.
func addrPort(a net.Addr) netip.AddrPort {
	if a, ok := a.(interface{ AddrPort() netip.AddrPort }); ok {
		return a.AddrPort()
	}
	return netip.AddrPort{}
}

// client is a connection that gives its places back when it is closed, once.
type client struct {
	net.Conn
	server *Server
	in     *bufio.Reader // what was read ahead; nil: nothing

	saidOnce, closeOnce sync.Once
}

// Read gives what was read ahead first.
func (c *client) Read(b []byte) (int, error) {
	if c.in != nil && c.in.Buffered() > 0 {
		return c.in.Read(b)
	}
	return c.Conn.Read(b)
}

// asked takes note that the client has said what it wants.
func (c *client) asked() { c.saidOnce.Do(func() { <-c.server.asking }) }

// Close implements net.Conn.
func (c *client) Close() (err error) {
	c.closeOnce.Do(func() {
		err = c.Conn.Close()
		c.asked()
		<-c.server.clients
	})
	return err
}

// handoff is a listener that is given its connections.
type handoff struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
	addr  net.Addr
}

func newHandoff() *handoff { return &handoff{conns: make(chan net.Conn), done: make(chan struct{})} }

// give hands a connection over, and reports whether somebody took it.
func (h *handoff) give(ctx context.Context, c net.Conn) bool {
	select {
	case h.conns <- c:
		return true
	case <-h.done:
	case <-ctx.Done():
	}
	return false
}

// Accept implements net.Listener.
func (h *handoff) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *handoff) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

// Addr implements net.Listener.
func (h *handoff) Addr() net.Addr { return h.addr }

// Counter is one number of Counters.
type Counter struct {
	Name  string
	Value uint64
}

// Counters returns what was counted since the start, always in the same order.
func (s *Server) Counters() []Counter {
	c := &s.counters
	return []Counter{
		{"clients", uint64(len(s.clients))}, {"udp_associations", uint64(len(s.assocs))},
		{"socks", c.socks.Load()}, {"http_connect", c.connect.Load()}, {"http_plain", c.plain.Load()}, {"pac", c.pac.Load()},
		{"associations", c.assocs.Load()},
		{"drop_full", c.full.Load()}, {"drop_slow", c.slow.Load()}, {"drop_garbage", c.garbage.Load()},
		{"drop_stranger", c.strangers.Load()},
		{"dial_forbidden", c.denied.Load()}, {"dial_failed", c.failed.Load()}, {"wrong_password", c.wrong.Load()},
		{"udp_drop_malformed", c.udpBad.Load()}, {"udp_drop_foreign", c.udpForeign.Load()},
		{"udp_drop_refused", c.udpRefused.Load()}, {"udp_drop_full", c.udpFull.Load()},
	}
}

// dial connects, and says why not.
func (s *Server) dial(ctx context.Context, network, address string) (net.Conn, Reason, string) {
	c, err := s.o.Dial(ctx, network, address)
	if err == nil {
		return c, 0, ""
	}
	reason, text := s.o.Explain(err)
	if reason == Forbidden {
		s.counters.denied.Add(1)
	} else {
		s.counters.failed.Add(1)
	}
	s.o.Log.Debug("no connection", "network", network, "addr", address, "err", err)
	return nil, reason, text
}
