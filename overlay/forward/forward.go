package forward

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"overlayd/overlay/splice"
)

// mostConnections bounds the TCP connections of one forward at once.
const mostConnections = 1024

// Rule is what one forward does.
type Rule struct {
	Network string         `json:"network"` // tcp or udp
	Listen  netip.AddrPort `json:"listen"`
	Target  string         `json:"target"` // host:port
}

// Key tells rules apart: two cannot have the same port.
func (r Rule) Key() string { return r.Network + " " + r.Listen.String() }

// Options say how a forward connects.
type Options struct {
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Admit reports whether who sends from client to our port server may use the
	// forward; nil: everybody may.
	Admit func(network string, client, server netip.AddrPort) bool
	Log   *slog.Logger // nil: none
}

// Forward is one rule at work.
type Forward struct {
	rule   Rule
	o      Options
	ln     *net.TCPListener // of TCP
	socket *net.UDPConn     // of UDP

	running sync.WaitGroup
	places  chan struct{} // one for each TCP connection

	accepted, full, strangers, failures atomic.Uint64

	mu      sync.Mutex // guards what follows
	clients map[netip.AddrPort]*udpClient
	failed  error // why the last connection was not made; nil: it was
}

// Listen opens the port of a rule.
func Listen(r Rule, o Options) (*Forward, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	f := &Forward{rule: r, o: o, places: make(chan struct{}, mostConnections), clients: map[netip.AddrPort]*udpClient{}}
	var err error
	switch r.Network {
	case "tcp":
		f.ln, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(r.Listen))
	case "udp":
		f.socket, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(r.Listen))
	default:
		err = fmt.Errorf("network %q", r.Network)
	}
	if err != nil {
		return nil, fmt.Errorf("forward from %s: %w", r.Listen, err)
	}
	return f, nil
}

// Close closes the port of a forward that is not served.
func (f *Forward) Close() error {
	if f.ln != nil {
		return f.ln.Close()
	}
	return f.socket.Close()
}

// Status is how a forward is.
type Status struct {
	Rule
	Open     int    // connections, or clients of UDP
	Accepted uint64 // since the start
	Full     uint64 // that did not fit
	Strange  uint64 // that Admit refused
	Failures uint64 // to connect to the target
	Failed   error  // the last time; nil: it worked
}

// Status returns how it is.
func (f *Forward) Status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return Status{Rule: f.rule, Open: len(f.places) + len(f.clients), Accepted: f.accepted.Load(), Full: f.full.Load(), Strange: f.strangers.Load(),
		Failures: f.failures.Load(), Failed: f.failed}
}

// Serve forwards until ctx ends. Then every connection is torn, and it returns
// when all are over.
func (f *Forward) Serve(ctx context.Context) error {
	defer f.running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if f.socket != nil {
		return f.serveUDP(ctx)
	}
	return splice.Accept(ctx, f.ln, f.o.Log, func(c net.Conn) { f.take(ctx, c.(*net.TCPConn)) })
}

// take gives a connection a place, or resets it.
func (f *Forward) take(ctx context.Context, c *net.TCPConn) {
	select {
	case f.places <- struct{}{}:
	default:
		f.full.Add(1)
		reset(c)
		return
	}
	f.running.Go(func() {
		defer func() { <-f.places }()
		if !f.admits(c.RemoteAddr().(*net.TCPAddr).AddrPort()) {
			reset(c)
			return
		}
		f.accepted.Add(1)
		f.carry(ctx, c)
	})
}

// admits reports whether a client may use the forward.
func (f *Forward) admits(client netip.AddrPort) bool {
	if f.o.Admit == nil || f.o.Admit(f.rule.Network, client, f.rule.Listen) {
		return true
	}
	f.strangers.Add(1)
	return false
}

// carry connects one client to the target.
func (f *Forward) carry(ctx context.Context, c *net.TCPConn) {
	stop := context.AfterFunc(ctx, func() { reset(c) })
	defer stop()
	remote, err := f.dial(ctx)
	if err != nil {
		reset(c)
		return
	}
	splice.Join(ctx, c, remote)
}

// dial connects to the target, and remembers why not.
func (f *Forward) dial(ctx context.Context) (net.Conn, error) {
	c, err := f.o.Dial(ctx, f.rule.Network, f.rule.Target)
	if ctx.Err() != nil && err != nil {
		return nil, err
	}
	f.note(err)
	return c, err
}

// note remembers how the last connection went.
func (f *Forward) note(err error) {
	f.mu.Lock()
	f.failed = err
	f.mu.Unlock()
	if err != nil {
		f.failures.Add(1)
		f.o.Log.Debug("no connection", "forward", f.rule.Key(), "target", f.rule.Target, "err", err)
	}
}

// reset ends a connection so that its client sees that it failed.
func reset(c *net.TCPConn) {
	c.SetLinger(0) // fails on a connection that is over
	c.Close()
}
