package overlay

import (
	"net/netip"
	"slices"

	"overlayd/overlay/coord"
)

// planClosed leads what goes to networks of which this node may reach nothing into
// the tunnel, where its own filter refuses it at once. By the default route it
// would go unanswered. A network that this machine is on itself stays its own.
func (p *Plan) planClosed(in planInput) {
	reason := closedReason
	if b := barred(in.Map); b != nil {
		reason = b.Message
	}
	for _, prefix := range in.Map.Closed {
		s := StatusRoute{Prefix: prefix, State: RouteRefused, Reason: reason}
		if c, ok := in.clash(prefix); ok {
			s.State, s.Reason = RouteClash, c.words()
		} else {
			p.Closed = append(p.Closed, prefix)
			p.Routing.Routes = append(p.Routing.Routes, prefix)
		}
		p.Routes = append(p.Routes, s)
	}
}

// closedReason is why a network is closed to a machine that takes part.
const closedReason = "the policy lets this machine reach nothing there"

// closedAt returns the closed network that an address lies in.
func (p *Plan) closedAt(a netip.Addr) (netip.Prefix, bool) {
	i := slices.IndexFunc(p.Closed, func(c netip.Prefix) bool { return c.Contains(a) })
	if i < 0 {
		return netip.Prefix{}, false
	}
	return p.Closed[i], true
}

// recall returns the map of a member that takes part no more with what the one
// before it led to, as closed: it is refused, and not sought elsewhere, for as
// long as the daemon runs. Any other map is returned as it is.
func recall(m, before *coord.Map) *coord.Map {
	if before == nil || m.Self.Role != coord.RoleMember || barred(m) == nil {
		return m
	}
	next := *m
	next.Closed = slices.Concat(m.Closed, before.Closed)
	for _, o := range offersOf(before.Peers) {
		next.Closed = append(next.Closed, o.prefix)
	}
	slices.SortFunc(next.Closed, netip.Prefix.Compare)
	next.Closed = slices.Compact(next.Closed)
	return &next
}
