package overlay

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"overlayd/overlay/coord"
)

// planClosed leads what goes to networks of which this node may reach nothing into
// the tunnel, where its own filter refuses it at once. By the default route it
// would go unanswered. Where somebody would answer, nothing is led: no gateway takes
// the place of who is cut off.
func (p *Plan) planClosed(in planInput) {
	reason := closedReason
	if b := barred(in.Map); b != nil {
		reason = b.Message
	}
	for _, prefix := range in.Map.Closed {
		if !isPrivate(prefix) {
			continue // the internet answers
		}
		s := StatusRoute{Prefix: prefix, State: RouteRefused, Reason: reason}
		if why := in.ownPart(prefix); why != "" {
			s.State, s.Reason = RouteClash, why
		} else {
			p.Closed = append(p.Closed, prefix)
			p.Routing.Routes = append(p.Routing.Routes, prefix)
		}
		p.Routes = append(p.Routes, s)
	}
}

// privateNetworks are those that no default route leads to: RFC 1918 section 3, and
// RFC 6598 section 7. The overlay is IPv4, so nothing else is refused.
var privateNetworks = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"),
}

// isPrivate reports whether all of a network is private.
func isPrivate(p netip.Prefix) bool {
	return slices.ContainsFunc(privateNetworks, func(n netip.Prefix) bool { return n.Bits() <= p.Bits() && n.Contains(p.Addr()) })
}

// ownPart says why a network is also this machine's own, "" when nothing is known of
// that: it is on a part of it, or is served from there without us. A resolver or a
// proxy in another part of a company's network is behind the default route.
func (in planInput) ownPart(p netip.Prefix) string {
	if list := in.Host.Connected(p, in.Interface); len(list) > 0 {
		return clash{list[0]}.words()
	}
	needs := slices.Clone(in.Needs)
	for _, r := range othersRelays(in.Map) {
		for _, a := range in.RelayAddr[r.ID] {
			needs = append(needs, a.Addr())
		}
	}
	if i := slices.IndexFunc(needs, p.Contains); i >= 0 {
		return fmt.Sprintf("this machine needs %s, which is there", needs[i])
	}
	return ""
}

// needs lists who serves this machine outside of the network: its name servers, and
// the HTTP proxies by which it reaches the relays of a map.
func (n *Node) needs(m *coord.Map) []netip.Addr {
	list := nameServers()
	for _, r := range m.Relays {
		host := n.proxyFor(r.Endpoint)
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		if a, err := netip.ParseAddr(host); err == nil {
			list = append(list, a.Unmap())
		}
	}
	return list
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
