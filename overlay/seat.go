package overlay

import (
	"context"
	"net"
	"net/netip"
	"slices"

	"overlayd/overlay/coord"
)

// A seat is a user's own address on the coordinator's machine: what somebody
// does by this machine leaves from there, so that the nodes that receive judge
// and record that person, and a revocation ends it. The kernel lets no other user of
// this machine send from there (routing.State.Seats).

// caller is on whose behalf a connection is made. The zero value is this node.
type caller struct {
	from netip.Addr // of the connection; zero: this node's own
	// may refuses what no other node's filter sees; nil: nothing.
	may func(proto string, to netip.AddrPort) error
	// outside lets it connect outside of the network, too: see dialLocal.
	outside bool
	// lans are the networks whose names may be asked for; nil: all.
	lans []netip.Prefix
}

// seat returns the address from which a user, named by name or id, begins
// connections on this machine, once it is on the interface.
func (h *Hub) seat(ctx context.Context, user string) (netip.Addr, error) {
	if h.coord == nil {
		return netip.Addr{}, fault(ExitConflict, "run it on the network's first relay", "this relay belongs to another machine's network, and nobody has a place on it")
	}
	a, err := h.coord.Seat(ctx, user)
	if err != nil {
		return netip.Addr{}, err
	}
	ctx, stop := context.WithTimeout(ctx, startWait)
	defer stop()
	for {
		v, moved := h.node.lookMoved()
		if v.live != nil && v.plan != nil && slices.Contains(v.plan.Routing.Addrs, netip.PrefixFrom(a, a.BitLen())) {
			return a, nil
		}
		select {
		case <-ctx.Done():
			return netip.Addr{}, fault(ExitFailure, "look at `overlayd status`", "the address %s of %s is not on the interface yet", a, user)
		case <-moved:
		}
	}
}

// dialAs is the node's DialContext on behalf of a user: from the user's seat, and to
// nothing that the policy does not let the user reach, this machine included.
func (h *Hub) dialAs(ctx context.Context, user, network, address string) (net.Conn, error) {
	from, err := h.seat(ctx, user)
	if err != nil {
		return nil, err
	}
	return h.node.dialFor(ctx, caller{from: from, may: func(proto string, to netip.AddrPort) error {
		return h.mayReach(user, proto, to)
	}}, network, address)
}

// resolveAs finds a host of a LAN on behalf of a user, from the user's seat: of
// others than the user may reach, gateways tell nothing.
func (h *Hub) resolveAs(ctx context.Context, user, host string) ([]netip.Addr, error) {
	from, err := h.seat(ctx, user)
	if err != nil {
		return nil, err
	}
	lans, err := h.coord.LANs(user)
	if err != nil {
		return nil, err
	}
	return h.node.lookupLAN(ctx, h.node.look(), caller{from: from, lans: lans}, host)
}

// mayReach refuses what the policy does not let a user reach on this machine, or
// of what it carries: packets from here to there meet no filter. What another node
// receives, that one judges.
func (h *Hub) mayReach(user, proto string, to netip.AddrPort) error {
	m := h.node.look().m
	if m == nil || !carriedHere(m, to.Addr()) {
		return nil
	}
	ok, err := h.coord.Reaches(user, proto, to)
	if err != nil {
		return err
	}
	if !ok {
		return &DialError{Reason: ReasonPolicy, Target: to.String(), Via: m.Self.Name, proto: proto}
	}
	return nil
}

// carriedHere reports whether an address is this machine's own, or of a member that it
// carries.
func carriedHere(m *coord.Map, a netip.Addr) bool {
	return slices.Contains(m.Self.Addrs, a) || slices.ContainsFunc(m.Hosted, func(n coord.Node) bool {
		return n.Host == m.Self.ID && slices.Contains(n.Addrs, a)
	})
}
