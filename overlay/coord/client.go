package coord

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"overlayd/overlay/coord/api"
	"overlayd/overlay/key"
)

// Client is a node's end of the Node service.
type Client struct {
	o    ClientOptions
	aud  string
	dial dialFunc

	heard atomic.Int64  // Unix nanoseconds; see Heard
	kicks chan struct{} // holds one token: see Kick; never closed

	mu    sync.Mutex // guards what follows
	token string
	until time.Time // when the token ends
}

type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// ClientOptions say how to reach a coordinator, and who asks.
type ClientOptions struct {
	Endpoint string       // host:port; required
	Pin      key.Pin      // of its TLS key; zero: ordinary certificate checks
	Machine  key.Machine  // required
	Dialer   *net.Dialer  // nil: a plain one
	Log      *slog.Logger // nil: slog.Default
	// Proxy returns the HTTP proxy for a request; nil: there is none.
	Proxy func(*http.Request) (*url.URL, error)
	Now   func() time.Time // the wall clock; nil: time.Now
}

// dialTimeout bounds one attempt to connect.
const dialTimeout = 5 * time.Second

// NewClient returns a client; it connects when it is used.
func NewClient(o ClientOptions) (*Client, error) {
	if o.Machine.Public().IsZero() {
		return nil, errors.New("a client needs a machine key")
	}
	if _, err := ClientTLS(o.Endpoint, o.Pin); err != nil {
		return nil, err
	}
	if o.Dialer == nil {
		o.Dialer = &net.Dialer{Timeout: dialTimeout}
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Client{o: o, aud: audience(o.Pin, o.Endpoint), dial: o.Dialer.DialContext, kicks: make(chan struct{}, 1)}, nil
}

// Heard returns when Follow last got something from the coordinator, a
// heartbeat at least; zero: not yet.
func (c *Client) Heard() time.Time {
	if ns := c.heard.Load(); ns != 0 {
		return time.Unix(0, ns)
	}
	return time.Time{}
}

// Kick says that the network may be another than before. Follow, if it runs,
// waits no longer to try again, gives up an attempt to connect, and asks a
// connection that there is to prove itself within checkTime.
func (c *Client) Kick() {
	select {
	case c.kicks <- struct{}{}:
	default: // it was said already
	}
}

// EnrollRequest asks for a membership.
type EnrollRequest struct {
	Invite    string
	Secret    key.Secret
	Name      string // wished; made a DNS label, and unique
	Role      Role   // empty: the invite's
	WireGuard key.Public
	Advertise []netip.Prefix
	Relay     *RelayOffer // of a relay; nil: none, or the coordinator's own
	Renew     bool        // of a member: the invite is for its key to hold longer
}

// Enrolled is a membership.
type Enrolled struct {
	NodeID  string
	Name    string
	Network NetworkID
	Overlay netip.Prefix
	Label   uint32
	Addrs   []netip.Addr
	Role    Role
}

// Enroll makes this machine a member. A member that calls it again stays what
// it is, and its invite keeps its use.
func (c *Client) Enroll(ctx context.Context, r EnrollRequest) (Enrolled, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTime) // the kernel alone would try to connect for two minutes
	defer cancel()
	line := c.connect()
	defer line.close()
	req := connect.NewRequest(&api.EnrollRequest{
		Invite: r.Invite, Secret: r.Secret.Expose(), Name: r.Name, Role: string(r.Role),
		Wireguard: r.WireGuard.Bytes(), Advertise: prefixesToWire(r.Advertise),
		Relay: offerToWire(r.Relay), Renew: r.Renew,
	})
	if err := c.authorize(req.Header()); err != nil {
		return Enrolled{}, err
	}
	resp, err := line.node.Enroll(ctx, req)
	if err != nil {
		return Enrolled{}, c.failure(err)
	}
	return enrolledFromWire(resp.Msg)
}

func enrolledFromWire(w *api.EnrollResponse) (e Enrolled, err error) {
	e = Enrolled{NodeID: w.NodeId, Name: w.Name, Label: w.Label, Role: Role(w.Role)}
	if len(w.Network) != len(e.Network) {
		return e, fmt.Errorf("read enrolment: the network id has %d bytes", len(w.Network))
	}
	e.Network = NetworkID(w.Network)
	if e.Overlay, err = netip.ParsePrefix(w.Overlay); err != nil {
		return e, fmt.Errorf("read enrolment: %w", err)
	}
	if e.Addrs, err = parseAddrs(w.Addrs); err != nil {
		return e, fmt.Errorf("read enrolment: %w", err)
	}
	return e, nil
}

// authorize puts a token into a call's header. One token serves many calls.
func (c *Client) authorize(h http.Header) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.o.Now()
	// Also when the clock was set back: a token from the future is refused.
	if left := c.until.Sub(now); left < tokenLife/2 || left > tokenLife {
		token, err := signToken(c.o.Machine, c.aud, now)
		if err != nil {
			return fmt.Errorf("sign token: %w", err)
		}
		c.token, c.until = token, now.Add(tokenLife)
	}
	h.Set("Authorization", bearerHeader(c.token))
	return nil
}

// failure makes a call's error into a problem that names the coordinator.
func (c *Client) failure(err error) error {
	if ctxErr := contextError(err); ctxErr != nil {
		return ctxErr
	}
	if p, ok := errors.AsType[*Problem](err); ok { // the pin
		return p
	}
	if p, ok := sentProblem(err); ok {
		return p
	}
	p, ok := AsProblem(err)
	if !ok {
		return fmt.Errorf("call %s: %w", c.o.Endpoint, err)
	}
	next := *p
	next.Message = fmt.Sprintf("the coordinator %s: %s", c.o.Endpoint, p.Message)
	if next.Kind == KindUnreachable {
		next.Message = fmt.Sprintf("the coordinator %s cannot be reached: %s", c.o.Endpoint, p.Message)
		next.Hint = "check that overlayd relay runs there, and that its TCP port is open"
	}
	return &next
}

// contextError returns the error when the caller gave up.
func contextError(err error) error {
	if connect.CodeOf(err) == connect.CodeCanceled && errors.Is(err, context.Canceled) {
		return context.Canceled
	}
	return nil
}

// line is one connection to the coordinator, for one use: when the use fails,
// nothing of it is left to fail the next one.
type line struct {
	node      api.NodeClient
	transport *http.Transport

	mu     sync.Mutex // guards what follows
	conns  []net.Conn
	closed bool
}

// maxAnswer holds the map of 100,000 nodes.
const maxAnswer = 64 << 20

func (c *Client) connect() *line {
	tlsConfig, err := ClientTLS(c.o.Endpoint, c.o.Pin)
	if err != nil {
		panic("internal error: NewClient took a malformed address")
	}
	l := &line{}
	l.transport = &http.Transport{
		TLSClientConfig:     tlsConfig,
		Proxy:               c.o.Proxy,
		TLSHandshakeTimeout: dialTimeout,
		ForceAttemptHTTP2:   true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := c.dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return l.keep(conn)
		},
	}
	l.node = api.NewNodeClient(&http.Client{Transport: l.transport}, "https://"+c.o.Endpoint, connect.WithReadMaxBytes(maxAnswer),
		connect.WithAcceptCompression("gzip", nil, nil))
	return l
}

// keep remembers a connection for close.
func (l *line) keep(conn net.Conn) (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		conn.Close()
		return nil, net.ErrClosed
	}
	l.conns = append(l.conns, conn)
	return conn, nil
}

// close ends all calls.
func (l *line) close() {
	l.transport.CloseIdleConnections()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for _, conn := range l.conns {
		conn.Close()
	}
}
