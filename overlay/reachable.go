package overlay

import (
	"net/netip"
	"slices"
	"strings"

	"overlayd/overlay/coord"
	"overlayd/overlay/portmap"
	"overlayd/overlay/relay"
	"overlayd/overlay/underlay"
	"overlayd/routing"
)

// insiders begin the names of links whose addresses mean nothing outside this
// machine, or lead into another overlay.
var insiders = []string{
	"docker", "br-", "veth", "virbr", "vnet", "podman", "cni", "flannel", "cali", "lxc", "lxd", "kube",
	"wg", "tailscale", "zt", "nebula", "utun", "tun", "tap", "ovl",
}

// planLocal says where peers may reach this machine directly. What the relay
// sees, package underlay adds by itself.
func (p *Plan) planLocal(in planInput) {
	m := in.Map
	p.Local = underlay.Local{
		Label:     relay.Label(m.Self.Label),
		MTU:       p.Routing.MTU,
		Endpoints: in.Endpoints,
		Refuse:    []netip.Prefix{m.Overlay},
		Behind:    advertisedBy(m),
	}
	var v6 []netip.Addr // behind the others: there may be many of one link
	for _, l := range in.Host.Links {
		if l.Name == in.Interface || !outward(in.Host, l) {
			continue
		}
		for _, a := range l.Addrs {
			ip := a.Addr()
			if !ip.IsGlobalUnicast() || m.Overlay.Contains(ip) {
				continue
			}
			if ip.Is4() {
				p.Local.Addrs = append(p.Local.Addrs, ip)
			} else {
				v6 = append(v6, ip)
			}
			if !a.IsSingleIP() {
				p.Local.LANs = append(p.Local.LANs, a.Masked())
			}
		}
	}
	p.Local.Addrs = append(p.Local.Addrs, v6...)
}

// outward reports whether others can reach the addresses of a link. One made by
// software counts when the default route leaves by it, as in a virtual machine,
// or on a host whose network card is part of a bridge.
func outward(h routing.Host, l routing.Link) bool {
	if !l.Up || l.Tunnel || slices.ContainsFunc(insiders, func(name string) bool { return strings.HasPrefix(l.Name, name) }) {
		return false
	}
	return !l.Virtual || slices.ContainsFunc(h.Default, func(g routing.Gateway) bool { return g.Link == l.Name })
}

// planRouter says whom to ask for a port mapping: the gateway of the preferred
// IPv4 default route, when that leaves by a link to the outside.
func (p *Plan) planRouter(in planInput) {
	if in.NoPortmap || ownRelay(in.Map) != "" {
		return
	}
	for _, g := range in.Host.Default {
		if g.V6 {
			continue
		}
		l, ok := in.Host.Link(g.Link)
		if !ok || !g.Via.Is4() || l.Name == in.Interface || !outward(in.Host, l) {
			return // the way out is a tunnel, or has no router
		}
		for _, a := range l.Addrs {
			if a.Contains(g.Via) {
				p.Router = portmap.Target{Gateway: g.Via, Local: a.Addr(), Link: l.Name}
				return
			}
		}
		return
	}
}

// advertisedBy lists the approved prefixes of all nodes. An address inside one
// can be somebody else's for whoever uses the route; for who is on that network
// too, it is an address like any other.
func advertisedBy(m *coord.Map) []netip.Prefix {
	var all []netip.Prefix
	for _, n := range append([]coord.Node{m.Self}, m.Peers...) {
		for _, r := range n.Routes {
			if r.Approved {
				all = append(all, r.Prefix)
			}
		}
	}
	return all
}
