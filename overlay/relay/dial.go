package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"time"
)

// DialOptions say how to reach a relay by TLS.
type DialOptions struct {
	Endpoint string           // host:port
	Addrs    []netip.AddrPort // of Endpoint, when they are known: they are tried in turn
	TLS      *tls.Config      // what to believe; nil: the usual certificate authorities
	Dialer   *net.Dialer      // makes the TCP connection; nil: a plain one
	// Proxy returns the HTTP proxy for a request; nil: http.ProxyFromEnvironment.
	Proxy   func(*http.Request) (*url.URL, error)
	Timeout time.Duration // of all steps together; 0: ten seconds
}

// dialTimeout bounds all steps of Dial together, when the caller does not.
const dialTimeout = 10 * time.Second

// Obstacle is what stands between a node and its relay: one word for a status.
type Obstacle string

// The obstacles.
const (
	ObstacleUnreachable Obstacle = "tls_unreachable" // no TCP connection, or it broke
	ObstacleProxy       Obstacle = "proxy_refused"   // the HTTP proxy does not let us through, or is none
	ObstaclePortal      Obstacle = "captive_portal"  // somebody answers in the relay's place, and wants to be visited
	ObstacleIntercepted Obstacle = "tls_intercepted" // somebody else's certificate
	ObstacleNotRelay    Obstacle = "not_a_relay"     // an HTTPS server that does not know of relays
	ObstacleFull        Obstacle = "relay_full"      // the relay has no room for another connection
)

// DialError says why Dial failed.
type DialError struct {
	Obstacle Obstacle
	Proxy    string // host:port of the HTTP proxy on the way; "": none
	Err      error
}

func (e *DialError) Error() string {
	if e.Proxy != "" {
		return fmt.Sprintf("by the proxy %s: %v", e.Proxy, e.Err)
	}
	return e.Err.Error()
}

func (e *DialError) Unwrap() error { return e.Err }

// Dial connects to a relay by TLS and asks for a WebSocket, through the HTTP
// proxy that is to be used, if any. The error is a *DialError, or that of ctx.
func Dial(ctx context.Context, o DialOptions) (*Stream, error) {
	if o.Timeout == 0 {
		o.Timeout = dialTimeout
	}
	within, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	d := newDial(o)
	st, err := d.dial(within)
	if err == nil {
		return st, nil
	}
	d.end()
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case within.Err() != nil:
		err = fmt.Errorf("no answer within %v", o.Timeout)
	}
	return nil, &DialError{Obstacle: d.obstacle(err), Proxy: d.proxy, Err: err}
}

// dial is one try.
type dial struct {
	o DialOptions

	// The transport calls back from goroutines of its own, one after the other,
	// before RoundTrip returns.
	mu     sync.Mutex // guards all below
	raw    net.Conn   // the TCP connection; nil: none yet
	proxy  string     // host:port; "": none
	passed bool       // the proxy let us through
	over   bool       // a connection that is made now comes too late
}

func newDial(o DialOptions) *dial {
	if o.Dialer == nil {
		o.Dialer = &net.Dialer{}
	}
	if o.Proxy == nil {
		o.Proxy = http.ProxyFromEnvironment
	}
	return &dial{o: o}
}

func (d *dial) dial(ctx context.Context) (*Stream, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+d.o.Endpoint+StreamPath, nil)
	if err != nil {
		return nil, fmt.Errorf("the relay's address %q is malformed", d.o.Endpoint)
	}
	key := newKey()
	askUpgrade(req.Header, key)
	req.Header.Set("User-Agent", "overlayd")
	resp, err := d.transport().RoundTrip(req) // no redirect is followed
	if err != nil {
		return nil, err
	}
	conn, ok := resp.Body.(io.ReadWriteCloser)
	if !ok || !grantsUpgrade(resp, key) {
		resp.Body.Close()
		return nil, refusal(resp)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return newStream(upgraded{conn, d.raw}, d.raw, conn, true), nil
}

// upgraded is the connection that a transport hands over. Deadlines of what is
// below TLS hold for TLS.
type upgraded struct {
	io.ReadWriteCloser
	raw net.Conn
}

func (u upgraded) SetDeadline(t time.Time) error      { return u.raw.SetDeadline(t) }
func (u upgraded) SetReadDeadline(t time.Time) error  { return u.raw.SetReadDeadline(t) }
func (u upgraded) SetWriteDeadline(t time.Time) error { return u.raw.SetWriteDeadline(t) }

// transport returns one for one request.
func (d *dial) transport() *http.Transport {
	return &http.Transport{
		DialContext:            d.connect,
		Proxy:                  d.choose,
		OnProxyConnectResponse: d.proxyAnswered,
		TLSClientConfig:        d.tls(),
		DisableKeepAlives:      true, // nobody will ask for the connection again
		DisableCompression:     true,
		MaxResponseHeaderBytes: 16 << 10,
	}
}

// tls is the caller's configuration for HTTP/1.1, with errors that are known
// again.
func (d *dial) tls() *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS13}
	if d.o.TLS != nil {
		c = d.o.TLS.Clone()
	}
	c.NextProtos = []string{"http/1.1"}
	if verify := c.VerifyConnection; verify != nil {
		c.VerifyConnection = func(cs tls.ConnectionState) error {
			if err := verify(cs); err != nil {
				return &obstacleError{ObstacleIntercepted, err}
			}
			return nil
		}
	}
	return c
}

// choose returns the proxy to use. A proxy's password is in its URL, so errors
// about that are not passed on.
func (d *dial) choose(r *http.Request) (*url.URL, error) {
	u, err := d.o.Proxy(r)
	if err != nil {
		return nil, &obstacleError{ObstacleProxy, errors.New("the address of the HTTP proxy in the environment is malformed")}
	}
	if u != nil {
		d.mu.Lock()
		d.proxy = u.Host
		d.mu.Unlock()
	}
	return u, nil
}

// connect makes the TCP connection: to the proxy, or to the relay's addresses
// in turn, each with its share of the time.
func (d *dial) connect(ctx context.Context, network, addr string) (net.Conn, error) {
	addrs := []string{addr}
	if d.proxyHost() == "" && len(d.o.Addrs) > 0 {
		addrs = addrs[:0]
		for _, a := range d.o.Addrs {
			addrs = append(addrs, a.String())
		}
	}
	var errs []error
	for i, a := range addrs {
		conn, err := d.connectTo(ctx, network, a, len(addrs)-i)
		if err == nil {
			return conn, d.keep(conn)
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// keep remembers the TCP connection.
func (d *dial) keep(conn net.Conn) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.raw = conn
	if d.over {
		conn.Close()
		return net.ErrClosed
	}
	return nil
}

// end closes what a failed dial has opened: the transport would go on with its
// handshake for as long as it takes.
func (d *dial) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.over = true
	if d.raw != nil {
		d.raw.Close()
	}
}

func (d *dial) connectTo(ctx context.Context, network, addr string, left int) (net.Conn, error) {
	if end, ok := ctx.Deadline(); ok && left > 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(end)/time.Duration(left))
		defer cancel()
	}
	return d.o.Dialer.DialContext(ctx, network, addr)
}

func (d *dial) proxyHost() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.proxy
}

// proxyAnswered looks at a proxy's answer to CONNECT.
func (d *dial) proxyAnswered(_ context.Context, _ *url.URL, _ *http.Request, r *http.Response) error {
	switch {
	case r.StatusCode == http.StatusOK:
		d.mu.Lock()
		d.passed = true
		d.mu.Unlock()
		return nil
	case r.StatusCode == http.StatusProxyAuthRequired:
		return &obstacleError{ObstacleProxy, errors.New("it wants a login (407)")}
	case isPortal(r):
		return &obstacleError{ObstaclePortal, portalError(r)}
	}
	return &obstacleError{ObstacleProxy, fmt.Errorf("it refuses to connect: %s", status(r))}
}

// refusal says what an answer that is no upgrade means.
func refusal(r *http.Response) error {
	switch {
	case isPortal(r):
		return &obstacleError{ObstaclePortal, portalError(r)}
	case r.StatusCode == http.StatusServiceUnavailable:
		return &obstacleError{ObstacleFull, errors.New("the relay has no room for another connection")}
	}
	return &obstacleError{ObstacleNotRelay, fmt.Errorf("what answers there is no relay: %s", status(r))}
}

// isPortal reports whether an answer is that of a captive portal: it sends us
// elsewhere, says so by its code (RFC 6585), or shows a page.
func isPortal(r *http.Response) bool {
	return r.StatusCode/100 == 3 || r.StatusCode == http.StatusNetworkAuthenticationRequired || r.StatusCode == http.StatusOK
}

// portalError names the portal's host, which a person can visit.
func portalError(r *http.Response) error {
	if at, err := r.Location(); err == nil && at.Host != "" {
		return fmt.Errorf("the network wants its page visited first: %s, to %q", status(r), at.Host)
	}
	return fmt.Errorf("the network wants its page visited first: %s", status(r))
}

// status is an answer's code and its meaning; what a stranger wrote behind the
// code stays out of our logs.
func status(r *http.Response) string {
	if text := http.StatusText(r.StatusCode); text != "" {
		return fmt.Sprintf("%d %s", r.StatusCode, text)
	}
	return fmt.Sprint(r.StatusCode)
}

// obstacleError marks an error whose obstacle is known where it arises.
type obstacleError struct {
	obstacle Obstacle
	err      error
}

func (e *obstacleError) Error() string { return e.err.Error() }
func (e *obstacleError) Unwrap() error { return e.err }

// obstacle says what an error of dial means.
func (d *dial) obstacle(err error) Obstacle {
	d.mu.Lock()
	defer d.mu.Unlock()
	if known, ok := errors.AsType[*obstacleError](err); ok {
		return known.obstacle
	}
	if d.proxy != "" && !d.passed {
		return ObstacleProxy
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return ObstacleIntercepted
	}
	record, garbage := errors.AsType[tls.RecordHeaderError](err)
	if string(record.RecordHeader[:]) == "HTTP/" { // plain HTTP in the place of TLS
		return ObstaclePortal
	}
	_, alert := errors.AsType[tls.AlertError](err)
	if garbage || alert {
		return ObstacleNotRelay
	}
	return ObstacleUnreachable
}
