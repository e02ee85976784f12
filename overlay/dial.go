package overlay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"overlayd/overlay/coord"
)

const (
	// startWait is how long a connection waits for a node that has just been
	// started: to the first plan it takes a second or two.
	startWait = 5 * time.Second
	// dialTimeout bounds a connection's beginning. It leaves room for TCP's third
	// SYN, 3 s after the first, and for a new WireGuard session before it.
	dialTimeout = 10 * time.Second
)

// sockets are what connections into the overlay are made with: the kernel's, or
// those of a stack in this process. Their errors wrap what the kernel's would:
// syscall.ECONNREFUSED, EHOSTUNREACH, ENETUNREACH, ETIMEDOUT, EADDRINUSE.
type sockets interface {
	// Dial connects to an address that a peer carries, or to one of this node's
	// own; network is tcp or udp. from is one of the addresses of the interface;
	// the zero value leaves the choice to the stack.
	Dial(ctx context.Context, network string, from netip.Addr, to netip.AddrPort) (net.Conn, error)
	// Listen and ListenPacket open one of this node's own addresses.
	Listen(ctx context.Context, network string, at netip.AddrPort) (net.Listener, error)
	ListenPacket(ctx context.Context, network string, at netip.AddrPort) (net.PacketConn, error)
}

// DialContext connects to a machine of the network, or to a host behind a
// gateway. The address is host:port, its host an address, the name of a node, or
// a name that the LAN of a gateway knows; the network is tcp or udp, with or
// without a 4 or 6 behind it. What is neither in the overlay nor behind a gateway
// is refused: nothing leaves this machine by another way. A [DialError] says why
// there is no connection.
func (n *Node) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return n.dialFor(ctx, caller{}, network, address)
}

// dialFor is DialContext on behalf of somebody.
func (n *Node) dialFor(ctx context.Context, who caller, network, address string) (net.Conn, error) {
	proto, err := protocolOf(network)
	if err != nil {
		return nil, err
	}
	host, port, err := splitTarget(ctx, network, address)
	if err != nil {
		return nil, err
	}
	v, err := n.await(ctx)
	if err != nil {
		return nil, err
	}
	if p := barred(v.m); p != nil {
		return nil, &DialError{Reason: ReasonBarred, Target: address, barred: p}
	}
	addrs, err := n.lookup(ctx, v, who, host)
	if err != nil {
		return nil, err
	}
	addrs = slices.DeleteFunc(addrs, func(a netip.Addr) bool { return !family(network, a) })
	if len(addrs) == 0 {
		return nil, &DialError{Reason: ReasonNoName, Target: host, why: "it has no address for " + network}
	}
	var failed error
	for i, a := range addrs {
		c, err := n.dialAddr(ctx, v, who, proto, target{host, netip.AddrPortFrom(a, port)}, i == len(addrs)-1)
		if err == nil {
			return c, nil
		}
		if failed = err; ctx.Err() != nil {
			break
		}
	}
	return nil, failed
}

// target is an address, and how it was called.
type target struct {
	host string
	at   netip.AddrPort
}

func (t target) String() string {
	if !t.at.Addr().IsValid() {
		return net.JoinHostPort(t.host, strconv.Itoa(int(t.at.Port())))
	}
	if t.host == t.at.Addr().String() {
		return t.at.String()
	}
	return fmt.Sprintf("%s (%s)", net.JoinHostPort(t.host, strconv.Itoa(int(t.at.Port()))), t.at.Addr())
}

// dialAddr connects to one address, if it lies in the overlay or behind it, or
// outside and who connects may go there. last says that there is no other to try.
func (n *Node) dialAddr(ctx context.Context, v view, who caller, proto string, to target, last bool) (net.Conn, error) {
	if who.may != nil {
		if err := who.may(proto, to.at); err != nil {
			return nil, err
		}
	}
	if !carriedHere(v.m, to.at.Addr()) && v.plan.carrier(to.at.Addr()) == nil {
		if !who.outside {
			return nil, v.outside(proto, to)
		}
		if err := n.stays(v, proto, to); err != nil {
			return nil, err
		}
		return n.dialOutside(ctx, to, last)
	}
	began := time.Now()
	within, stop := context.WithTimeout(ctx, dialTimeout)
	defer stop()
	c, err := v.live.sockets.Dial(within, proto, who.from, to.at)
	if err != nil {
		if ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, ctx.Err()
		}
		return nil, n.explainDial(proto, to, began, err)
	}
	return c, nil
}

// Listen opens a port of this node's own overlay address for connections. The
// address is host:port; the host is empty or one of this node's own. Who may
// connect is for the policy to say. Nothing is accepted any more when the node
// stops.
func (n *Node) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	v, at, err := n.ownAddr(ctx, network, address)
	if err != nil {
		return nil, err
	}
	ln, err := v.live.sockets.Listen(ctx, "tcp", at)
	if err != nil {
		return nil, portFault(network, at.String(), err)
	}
	return ln, nil
}

// ListenPacket is Listen for datagrams.
func (n *Node) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	v, at, err := n.ownAddr(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c, err := v.live.sockets.ListenPacket(ctx, "udp", at)
	if err != nil {
		return nil, portFault(network, at.String(), err)
	}
	return c, nil
}

// Resolve returns the addresses of a machine of the network or of a host behind
// a gateway: see DialContext.
func (n *Node) Resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	v, err := n.await(ctx)
	if err != nil {
		return nil, err
	}
	return n.lookup(ctx, v, caller{}, host)
}

// ownAddr reads the address of something that listens.
func (n *Node) ownAddr(ctx context.Context, network, address string) (view, netip.AddrPort, error) {
	if _, err := protocolOf(network); err != nil {
		return view{}, netip.AddrPort{}, err
	}
	host, port, err := splitTarget(ctx, network, address)
	if err != nil {
		return view{}, netip.AddrPort{}, err
	}
	v, err := n.await(ctx)
	if err != nil {
		return v, netip.AddrPort{}, err
	}
	for _, a := range v.m.Self.Addrs {
		if family(network, a) && (host == "" || host == a.String()) {
			return v, netip.AddrPortFrom(a, port), nil
		}
	}
	return v, netip.AddrPort{}, fault(ExitUsage, "leave the host out, or give this machine's overlay address "+firstAddr(v.m.Self.Addrs),
		"listen on %s: that is no address of this node", address)
}

// await returns what the node knows once it has a tunnel, and why it never will have one
// when Run has ended.
func (n *Node) await(ctx context.Context) (view, error) {
	ctx, stop := context.WithTimeout(ctx, startWait)
	defer stop()
	for {
		v, moved := n.lookMoved()
		if v.m != nil && v.live != nil && v.plan != nil {
			return v, nil
		}
		if v.over != "" {
			return v, cmp.Or(v.cause, error(errStopped))
		}
		select {
		case <-ctx.Done():
			return v, errStarting
		case <-moved:
		}
	}
}

// lookup finds the addresses of a host for somebody: written as one, a node's by its
// name, what a gateway's LAN calls so, or where it may be one outside.
func (n *Node) lookup(ctx context.Context, v view, who caller, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		if a.Zone() != "" {
			return nil, fault(ExitUsage, "leave away what follows the %", "address %q has a zone", host)
		}
		return []netip.Addr{a.Unmap()}, nil
	}
	if addrs := nodeAddrs(v.m, host); len(addrs) > 0 {
		return addrs, nil
	}
	if who.outside {
		return n.lookupOutside(ctx, v, host)
	}
	return n.lookupLAN(ctx, v, who, host)
}

// nodeAddrs returns the addresses of the node with a name.
func nodeAddrs(m *coord.Map, name string) []netip.Addr {
	name = plainName(name)
	for _, node := range slices.Concat([]coord.Node{m.Self}, m.Peers, m.Hosted) {
		if plainName(node.Name) == name {
			return slices.Clone(node.Addrs)
		}
	}
	return nil
}

// splitTarget reads host:port; the port may be a service's name.
func splitTarget(ctx context.Context, network, address string) (host string, port uint16, err error) {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, fault(ExitUsage, "write it as HOST:PORT, e.g. 192.168.1.10:80", "%.200q is not a host with a port", address)
	}
	number, err := net.DefaultResolver.LookupPort(ctx, network, service)
	if err != nil || number < 0 || number > 65535 {
		return "", 0, fault(ExitUsage, "give a number between 1 and 65535", "%.40q is no port", service)
	}
	return host, uint16(number), nil
}

// protocolOf is the protocol of a network as package net calls it.
func protocolOf(network string) (string, error) {
	switch network {
	case "tcp", "tcp4", "tcp6":
		return "tcp", nil
	case "udp", "udp4", "udp6":
		return "udp", nil
	}
	return "", fault(ExitUsage, "use tcp or udp", "network %.40q does not pass the overlay", network)
}

// family reports whether an address is of the family that a network asks for.
func family(network string, a netip.Addr) bool {
	switch network[len(network)-1] {
	case '4':
		return a.Is4()
	case '6':
		return a.Is6()
	}
	return true
}

// portFault explains why nothing listens on an address.
func portFault(network, at string, err error) error {
	switch {
	case isAddrInUse(err):
		return fault(ExitConflict, fmt.Sprintf("choose another port, or find who has it with `ss -%slnp sport = :%s`", network[:1], portText(at)),
			"%s port %s is in use by another program", network, at)
	case isPermission(err):
		return fault(ExitPermission, "choose a port above 1023, or run overlayd as root", "listen on %s %s: permission denied", network, at)
	}
	return fmt.Errorf("listen on %s %s: %w", network, at, err)
}

func portText(at string) string {
	_, port, err := net.SplitHostPort(at)
	if err != nil {
		return at
	}
	return port
}
