package overlay

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	xproxy "golang.org/x/net/proxy"
)

// outer is the way to hosts outside of the network that every program of this
// machine has. A loopback proxy uses it for what is certainly not inside, so that
// a shell whose programs all go by the proxy still has the rest of the world.
type outer struct {
	lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	dial   func(ctx context.Context, address string) (net.Conn, error)
}

// hostOuter is this machine's own.
func hostOuter() outer {
	return outer{
		lookup: func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		},
		dial: func(ctx context.Context, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		},
	}
}

// nextAfter is how long an address of a host outside may take when there is
// another to try: IPv6 that leads nowhere.
const nextAfter = 2 * time.Second

// resolverPatience is how long this machine's resolver is waited for: one question
// that was lost, asked again.
const resolverPatience = 6 * time.Second

// dialLocal connects for a program of this machine: into the overlay as
// DialContext, and by TCP to what is outside of it as the machine itself.
func (n *Node) dialLocal(ctx context.Context, network, address string) (net.Conn, error) {
	return n.dialFor(ctx, caller{outside: true}, network, address)
}

// lookupOutside finds a host that no machine of the network is called like: by the
// gateways, and when they do not know it, by this machine's own resolver. A name
// that a gateway might know is asked outside only when each that is online says
// that it does not.
func (n *Node) lookupOutside(ctx context.Context, v view, host string) ([]netip.Addr, error) {
	name := plainName(host)
	addrs, err := n.lookupLAN(ctx, v.online(), caller{}, host)
	if d, ok := errors.AsType[*DialError](err); !ok || d.Reason != ReasonNoName || len(d.silent) > 0 {
		return addrs, err
	}
	n.lanDomains(ctx, v.online())
	switch d := n.inside.domain(name); {
	case d != "":
		return nil, &DialError{Reason: ReasonNoName, Target: host, why: fmt.Sprintf("names of %s are the LAN's, and its gateway does not know it", d)}
	case !strings.Contains(name, "."):
		return nil, err // a machine's, and no name of the world
	case n.names.knew(name):
		return nil, &DialError{Reason: ReasonNoName, Target: host, why: "the gateway that knew it does not answer for its LAN"}
	}
	within, stop := context.WithTimeout(ctx, resolverPatience)
	defer stop()
	addrs, lerr := n.outer.lookup(within, name)
	if (lerr != nil || len(addrs) == 0) && n.proxyFor(net.JoinHostPort(name, "443")) != "" {
		return []netip.Addr{{}}, nil // the proxy on the way out will know
	}
	if d, ok := errors.AsType[*net.DNSError](lerr); ok && !d.IsNotFound {
		return nil, &DialError{Reason: ReasonNoName, Target: host, why: "nothing of the network is called so, and the resolver of this machine does not answer", err: lerr}
	}
	if lerr != nil || len(addrs) == 0 {
		return nil, &DialError{Reason: ReasonNoName, Target: host, why: "neither the network nor the resolver of this machine knows that name", err: lerr}
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return addrs, nil
}

// online is the view without the gateways that are away.
func (v view) online() view {
	m := *v.m
	m.Peers = nil
	for _, p := range v.m.Peers {
		if p.Online {
			m.Peers = append(m.Peers, p)
		}
	}
	v.m = &m
	return v
}

// stays says why a connection that no node carries is not made outside; nil: it is.
func (n *Node) stays(v view, proto string, to target) error {
	if !to.at.Addr().IsValid() {
		return nil // a name that only the proxy on the way out knows
	}
	if e := v.outside(proto, to); e.Via != "" || e.Reason == ReasonPolicy || proto != "tcp" { // a gateway offers it, or it is for datagrams
		e.local = true
		return e
	}
	e := &DialError{Reason: ReasonOutside, Target: to.String(), local: true}
	if p := n.inside.prefix(to.at.Addr()); p.IsValid() {
		e.why = fmt.Sprintf("%s is of this network, or was, and no node carries that address now", p)
		return e
	}
	if !isHost(to.at.Addr()) {
		e.why = "that is this machine, or no single host"
		return e
	}
	return nil
}

// dialOutside connects to a host outside, by the HTTP proxy of this network if
// overlayd uses one.
func (n *Node) dialOutside(ctx context.Context, to target, last bool) (net.Conn, error) {
	limit := dialTimeout
	if !last {
		limit = nextAfter
	}
	within, stop := context.WithTimeout(ctx, limit)
	defer stop()
	c, err := n.dialOuter(within, to)
	if err == nil {
		return c, nil
	}
	if ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil, ctx.Err()
	}
	reason := reasonFor(err, false)
	if reason == ReasonOutside { // no route to there from here
		reason = ReasonUnreachable
	}
	return nil, &DialError{Reason: reason, Target: to.String(), beyond: true, err: err}
}

func (n *Node) dialOuter(ctx context.Context, to target) (net.Conn, error) {
	at := url.URL{Scheme: "https", Host: net.JoinHostPort(to.host, strconv.Itoa(int(to.at.Port())))}
	if to.at.Port() == 80 {
		at.Scheme = "http"
	}
	switch u, err := n.proxy(&http.Request{URL: &at}); {
	case err != nil:
		return nil, errors.New("the address of the HTTP proxy in the environment is malformed")
	case u != nil:
		return n.dialBy(ctx, u, at.Host)
	case !to.at.Addr().IsValid():
		return nil, errors.New("this machine's resolver does not know that name")
	}
	return n.outer.dial(ctx, to.at.String())
}

// dialBy connects by the proxy that leads out of this machine's network. Errors do
// not quote its URL, in which there may be a password.
func (n *Node) dialBy(ctx context.Context, u *url.URL, address string) (net.Conn, error) {
	if strings.HasPrefix(u.Scheme, "socks5") {
		var login *xproxy.Auth
		if u.User != nil {
			password, _ := u.User.Password()
			login = &xproxy.Auth{User: u.User.Username(), Password: password}
		}
		d, err := xproxy.SOCKS5("tcp", u.Host, login, outerForward{n.outer})
		if err != nil {
			return nil, err
		}
		return d.(xproxy.ContextDialer).DialContext(ctx, "tcp", address)
	}
	if u.Scheme != "http" {
		return nil, fmt.Errorf("the proxy %s is reached by %s, by which nothing but overlayd's own connections can go", u.Host, u.Scheme)
	}
	host := u.Host
	if u.Port() == "" {
		host = net.JoinHostPort(u.Hostname(), "80")
	}
	c, err := n.outer.dial(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("connect to the proxy %s: %w", host, err)
	}
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	err = askProxy(c, u, address)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("by the proxy %s: %w", host, err)
	}
	return c, nil
}

// outerForward makes the connection to a SOCKS proxy.
type outerForward struct{ outer }

func (o outerForward) Dial(_, address string) (net.Conn, error) {
	return o.dial(context.Background(), address)
}

func (o outerForward) DialContext(ctx context.Context, _, address string) (net.Conn, error) {
	return o.dial(ctx, address)
}

// mostAnswer bounds the header of a proxy's answer.
const mostAnswer = 16 << 10

// askProxy asks an HTTP proxy for a connection. Of what comes then it reads nothing
// but the answer: the host may speak at once.
func askProxy(c net.Conn, u *url.URL, address string) error {
	r := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: address}, Host: address, Header: http.Header{}}
	if u.User != nil {
		password, _ := u.User.Password()
		r.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+password)))
	}
	if err := r.Write(c); err != nil {
		return err
	}
	var head []byte
	for one := make([]byte, 1); !bytes.HasSuffix(head, []byte("\r\n\r\n")); head = append(head, one[0]) {
		if _, err := io.ReadFull(c, one); err != nil {
			return err
		}
		if len(head) == mostAnswer {
			return errors.New("its answer is too long")
		}
	}
	res, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(head)), r)
	if err != nil {
		return errors.New("its answer is malformed")
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("it answers %d %s", res.StatusCode, http.StatusText(res.StatusCode))
	}
	return nil
}
