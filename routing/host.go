package routing

import (
	"net/netip"
	"slices"
)

// Host is what a machine's network looks like, as far as decisions need it.
type Host struct {
	Links   []Link
	Routes  []Route   // specific unicast routes of the main table
	Default []Gateway // default routes of the main table, the preferred one first

	Forwarding bool // IPv4 packets that are not for this machine are passed on
}

// Link is a network interface.
type Link struct {
	Name    string
	Index   int
	MTU     int
	Up      bool
	Virtual bool // made by software: a tunnel, a bridge, one end of a veth, ...
	Tunnel  bool // carries packets inside others: leads into another network than the links it uses
	Addrs   []netip.Prefix
}

// Route is a prefix that the main table sends out of a link.
type Route struct {
	Prefix netip.Prefix
	Link   string
}

// Gateway is a default route.
type Gateway struct {
	Link   string
	Via    netip.Addr // invalid: the link itself
	MTU    int        // of the route; 0: the link's
	Metric int
	V6     bool
}

// Limits of the tunnel's MTU, in bytes.
const (
	overhead = 80   // of an outer IPv6 packet: 40 IPv6, 8 UDP, 32 WireGuard
	maxMTU   = 1420 // what fits Ethernet's 1500
	minMTU   = 1280 // what IPv6 asks for
)

// TunnelMTU returns the MTU of a tunnel whose packets travel in packets of the
// given size.
func TunnelMTU(underlay int) int { return max(minMTU, min(maxMTU, underlay-overhead)) }

// UnderlayMTU returns the MTU of the way to the internet: the preferred default
// route's, or Ethernet's where there is none.
func (h Host) UnderlayMTU() int {
	for _, g := range h.Default {
		if g.MTU > 0 {
			return g.MTU
		}
		if l, ok := h.Link(g.Link); ok && l.MTU > 0 {
			return l.MTU
		}
	}
	return 1500
}

// Link returns the link of a name.
func (h Host) Link(name string) (Link, bool) {
	for _, l := range h.Links {
		if l.Name == name {
			return l, true
		}
	}
	return Link{}, false
}

// Connected returns the networks of this machine that overlap p, other than
// those of the link own (""; none): networks of links that are up, and specific
// routes of the main table. Where they overlap, they win over State.Routes.
func (h Host) Connected(p netip.Prefix, own string) []Route {
	var found []Route
	add := func(n netip.Prefix, link string) {
		r := Route{Prefix: n.Masked(), Link: link}
		if link != own && n.Overlaps(p) && !slices.Contains(found, r) {
			found = append(found, r)
		}
	}
	for _, l := range h.Links {
		for _, a := range l.Addrs {
			if l.Up && !a.Addr().IsLoopback() {
				add(a, l.Name)
			}
		}
	}
	for _, r := range h.Routes {
		add(r.Prefix, r.Link)
	}
	return found
}

// Toward returns the link that packets to p leave by, other than own, and
// whether p lies on a network of that link's own.
func (h Host) Toward(p netip.Prefix, own string) (link string, connected bool) {
	best := -1
	for _, r := range h.Connected(p, own) {
		if r.Prefix.Bits() > best && r.Prefix.Contains(p.Addr()) {
			best, link = r.Prefix.Bits(), r.Link
		}
	}
	if best < 0 {
		for _, g := range h.Default {
			if g.Link != own {
				return g.Link, false
			}
		}
		return "", false
	}
	l, _ := h.Link(link)
	for _, a := range l.Addrs {
		connected = connected || a.Overlaps(p)
	}
	return link, connected
}
