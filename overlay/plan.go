package overlay

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"overlayd/nat"
	"overlayd/overlay/coord"
	"overlayd/overlay/key"
	"overlayd/overlay/netstack"
	"overlayd/overlay/portmap"
	"overlayd/overlay/relay"
	"overlayd/overlay/tunnel"
	"overlayd/overlay/underlay"
	"overlayd/routing"
)

// planInput is everything that a plan follows from.
type planInput struct {
	Map       *coord.Map
	Host      routing.Host
	Interface string
	RelayAddr map[string][]netip.AddrPort // by relay ID: what its endpoint resolves to
	Needs     []netip.Addr                // who serves this machine outside of the network
	Firewall  bool                        // there is an iptables
	Endpoints []netip.AddrPort            // that the operator forwards to this machine
	NoPortmap bool                        // the router is not to be asked for a port
	Userspace bool                        // there is no interface
	HostPorts bool                        // this machine's ports are to be reached at the node's address
}

// Plan is what should be true on this machine. It is data: [plan] makes it,
// apply makes it true, String prints it.
type Plan struct {
	Routing routing.State
	NAT     *nat.Ruleset    // nil on machines that are no gateways
	Stack   *netstack.State // nil but in user space; then of Routing only MTU, Routes and Forward mean anything
	Peers   []PlanPeer
	Relays  []underlay.Relay
	Local   underlay.Local
	Router  portmap.Target // without our port, which the sockets know; the zero value: nobody is asked
	Closed  []netip.Prefix // those of Routing.Routes where everything is refused
	Routes  []StatusRoute  // every prefix with the reason for what becomes of it
	Health  []HealthItem   // what the plan could not do as asked
}

// PlanPeer is one WireGuard peer.
type PlanPeer struct {
	ID         string
	Name       string
	Key        key.Public
	Label      relay.Label
	AtRelay    bool             // it is a relay's own node
	At         []underlay.Place // the relays at which it said to be; nil: unknown
	AllowedIPs []netip.Prefix
	Device     bool // a stock WireGuard that this machine carries for
}

// plan computes what should be true on a machine from its map. It is pure.
func plan(in planInput) *Plan {
	m := in.Map
	p := &Plan{Routing: routing.State{
		Link:  in.Interface,
		MTU:   routing.TunnelMTU(in.Host.UnderlayMTU()),
		Addrs: withLength(m.Self.Addrs, m.Overlay.Bits()),
	}}
	if m.Self.Role != coord.RoleGateway && !in.Userspace {
		p.Routing.GSO = trainSize(p.Routing.MTU)
	}
	p.planOverlayClash(in)
	carried := p.planRoutes(in)
	p.planClosed(in)
	p.planHosted(m, carried)
	p.planPeers(m, carried)
	p.planLANs(in)
	p.planRelays(in)
	p.planLocal(in)
	p.planRouter(in)
	p.planStack(in)
	return p
}

// trainSize is the largest packet that our own TCP may hand to the interface:
// its pieces, encrypted, then fill one UDP message and not one and a bit. Where
// packets of others are forwarded into the tunnel the kernel would cut those
// that are larger all the way down, so gateways do not use it.
func trainSize(mtu int) int {
	const (
		message = 65507   // bytes in the largest UDP message over IPv4
		sealed  = 16 + 16 // WireGuard's header and tag on each piece
		headers = 20 + 20 // IPv4 and TCP in each piece
		reserve = 400     // what the kernel keeps of it for headers (MAX_TCP_HEADER), rounded up
	)
	return message/(mtu+sealed)*(mtu-headers) + reserve
}

// planOverlayClash warns of a real network that shadows part of the overlay. A stack of
// our own has the whole overlay, whatever the machine is on.
func (p *Plan) planOverlayClash(in planInput) {
	if in.Userspace {
		return
	}
	for _, c := range in.Host.Connected(in.Map.Overlay, in.Interface) {
		p.Health = append(p.Health, HealthItem{
			ID:       "overlay_clash",
			Severity: SeverityError,
			Title: fmt.Sprintf("this machine's own network %s on %s overlaps the overlay %s; the real network wins",
				c.Prefix, c.Link, in.Map.Overlay),
			Fix: "leave that network, or give the overlay another prefix with `overlayd relay --overlay`",
		})
	}
}

// planRoutes picks the gateway that carries each prefix, and returns the
// prefixes by the gateway's label.
func (p *Plan) planRoutes(in planInput) (carried map[uint32][]netip.Prefix) {
	carried = map[uint32][]netip.Prefix{}
	m := in.Map
	for _, r := range m.Self.Routes {
		s := StatusRoute{Prefix: r.Prefix, Via: m.Self.Name, State: RouteAdvertised}
		if !r.Approved {
			s.State, s.Reason = RoutePending, "waits for approval"
			p.Health = append(p.Health, HealthItem{
				ID:       "route_pending",
				Severity: SeverityWarning,
				Title:    fmt.Sprintf("%s waits for approval", r.Prefix),
				Fix:      fmt.Sprintf("on the relay: overlayd routes approve %s --node %s", r.Prefix, m.Self.Name),
			})
		}
		p.Routes = append(p.Routes, s)
	}
	if m.Self.Role == coord.RoleGateway {
		if len(m.Self.Routes) == 0 {
			p.Health = append(p.Health, HealthItem{
				ID:       "no_route_offered",
				Severity: SeverityWarning,
				Title:    "this gateway offers no network",
				Fix:      "start it with the network to offer, e.g. overlayd gateway --advertise 192.168.1.0/24",
			})
		}
		return carried // a gateway serves its own networks and uses nobody's
	}

	offers := offersOf(m.Peers)
	for i, o := range offers {
		s := StatusRoute{Prefix: o.prefix, Via: o.via.Name, State: RouteActive}
		switch {
		case i > 0 && offers[i-1].prefix == o.prefix:
			s.State, s.Reason = RouteStandby, carrier(p.Routes, o.prefix)+" carries it"
		case !o.via.Online && coveredOnline(offers, o.prefix):
			s.State, s.Reason = RouteOffline, o.via.Name+" is offline; a wider route carries it"
		default:
			if c, ok := in.clash(o.prefix); ok {
				s.State, s.Reason = RouteClash, c.words()
				p.Health = append(p.Health, c.health(o))
				break
			}
			if !o.via.Online {
				s.State, s.Reason = RouteOffline, o.via.Name+" is offline"
				p.Health = append(p.Health, HealthItem{
					ID:       "gateway_offline",
					Severity: SeverityWarning,
					Title:    fmt.Sprintf("%s cannot be reached: its gateway %s is offline", o.prefix, o.via.Name),
					Fix:      "look at `overlayd status` on " + o.via.Name,
				})
			}
			p.Routing.Routes = append(p.Routing.Routes, o.prefix)
			carried[o.via.Label] = append(carried[o.via.Label], o.prefix)
		}
		p.Routes = append(p.Routes, s)
	}
	return carried
}

func carrier(routes []StatusRoute, p netip.Prefix) string {
	for _, r := range routes {
		if r.Prefix == p && r.State != RouteStandby {
			return r.Via
		}
	}
	return "another gateway"
}

// offer is one gateway's approved prefix.
type offer struct {
	prefix netip.Prefix
	via    *coord.Node
}

// offersOf lists the approved prefixes of all peers: by prefix, and for each
// prefix the gateway to use first: one that is online, then the lowest label,
// so that all nodes choose alike.
func offersOf(peers []coord.Node) []offer {
	var offers []offer
	for i := range peers {
		for _, r := range peers[i].Routes {
			if r.Approved {
				offers = append(offers, offer{r.Prefix, &peers[i]})
			}
		}
	}
	slices.SortFunc(offers, func(a, b offer) int {
		if c := a.prefix.Compare(b.prefix); c != 0 {
			return c
		}
		if a.via.Online != b.via.Online {
			if a.via.Online {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.via.Label, b.via.Label)
	})
	return offers
}

// coveredOnline reports whether a wider prefix of a gateway that is online
// contains p: then p's own, offline, gateway would only black-hole it.
func coveredOnline(offers []offer, p netip.Prefix) bool {
	return slices.ContainsFunc(offers, func(o offer) bool {
		return o.via.Online && o.prefix.Bits() < p.Bits() && o.prefix.Contains(p.Addr())
	})
}

// clash is a network this machine is really on that covers an offered prefix.
type clash struct{ routing.Route }

// clash reports whether this machine is itself on the whole of p. A network
// that is only part of p needs no answer here: main's more specific route wins
// in the kernel, and the rest of p is reached through the gateway.
func (in planInput) clash(p netip.Prefix) (clash, bool) {
	for _, c := range in.Host.Connected(p, in.Interface) {
		if c.Prefix.Bits() <= p.Bits() {
			return clash{c}, true
		}
	}
	return clash{}, false
}

func (c clash) words() string {
	return fmt.Sprintf("%s is itself on %s, which wins", c.Link, c.Prefix)
}

func (c clash) health(o offer) HealthItem {
	return HealthItem{
		ID:       "route_clash",
		Severity: SeverityWarning,
		Title: fmt.Sprintf("%s of %s is not used: this machine's %s is itself on %s",
			o.prefix, o.via.Name, c.Link, c.Prefix),
		Fix: fmt.Sprintf("nothing, if this is that network; else renumber one of the two, or reach %s by its overlay address %s",
			o.via.Name, firstAddr(o.via.Addrs)),
	}
}

func firstAddr(addrs []netip.Addr) string {
	if len(addrs) == 0 {
		return "-"
	}
	return addrs[0].String()
}

func (p *Plan) planPeers(m *coord.Map, carried map[uint32][]netip.Prefix) {
	for _, n := range m.Peers {
		p.Peers = append(p.Peers, PlanPeer{
			ID:         n.ID,
			Name:       n.Name,
			Key:        n.WireGuard,
			Label:      relay.Label(n.Label),
			AtRelay:    slices.ContainsFunc(m.Relays, func(r coord.Relay) bool { return r.Label == n.Label }),
			At:         places(m.Relays, n.Attached),
			AllowedIPs: append(hostPrefixes(n.Addrs), carried[n.Label]...),
		})
	}
}

// planHosted gives this machine the addresses of the seats that it carries, and
// adds to what its peers carry the members that they host.
func (p *Plan) planHosted(m *coord.Map, carried map[uint32][]netip.Prefix) {
	for _, h := range m.Hosted {
		if h.Host == m.Self.ID {
			if h.Seat {
				p.Routing.Addrs = append(p.Routing.Addrs, hostPrefixes(h.Addrs)...)
				p.Routing.Seats = append(p.Routing.Seats, h.Addrs...)
			} else if !h.WireGuard.IsZero() {
				p.Peers = append(p.Peers, PlanPeer{Name: h.Name, Key: h.WireGuard, AllowedIPs: hostPrefixes(h.Addrs), Device: true})
			}
			continue
		}
		for _, n := range m.Peers {
			if n.ID == h.Host {
				carried[n.Label] = append(carried[n.Label], hostPrefixes(h.Addrs)...)
			}
		}
	}
}

// planLANs turns on forwarding for the approved prefixes of a gateway. One
// without any still keeps members out of its networks: it may be a router of its
// own, whose hosts would answer them.
func (p *Plan) planLANs(in planInput) {
	m := in.Map
	rules := nat.Ruleset{Link: in.Interface, Overlay: m.Overlay, MTU: p.Routing.MTU}
	for _, r := range m.Self.Routes {
		if !r.Approved {
			continue
		}
		link, connected := in.Host.Toward(r.Prefix, in.Interface)
		if link == "" {
			p.Health = append(p.Health, HealthItem{
				ID:       "lan_unreachable",
				Severity: SeverityError,
				Title:    fmt.Sprintf("no interface of this gateway leads to %s", r.Prefix),
				Fix:      "connect the gateway to that network, or withdraw the route",
			})
			continue
		}
		if !connected {
			p.Health = append(p.Health, HealthItem{
				ID:       "lan_not_connected",
				Severity: SeverityWarning,
				Title:    fmt.Sprintf("%s is not on a connected interface; it is forwarded by %s", r.Prefix, link),
				Fix:      "check that the router behind " + link + " knows the way",
			})
		}
		rules.LANs = append(rules.LANs, nat.LAN{Prefix: r.Prefix, Link: link})
		if !slices.Contains(p.Routing.LANs, link) {
			p.Routing.LANs = append(p.Routing.LANs, link)
		}
	}
	p.Routing.Forward = len(rules.LANs) > 0
	switch {
	case in.Userspace: // it passes on nothing that is not ours
	case p.Routing.Forward || m.Self.Role == coord.RoleGateway:
		p.NAT = &rules
	case in.Host.Forwarding && in.Firewall:
		rules.Guest = true
		p.NAT = &rules
	case in.Host.Forwarding:
		p.Health = append(p.Health, HealthItem{
			ID:       "forwards_unfiltered",
			Severity: SeverityWarning,
			Title:    "this machine forwards packets, also those that other members send to its other networks",
			Fix:      "install iptables, or turn off net.ipv4.ip_forward",
		})
	}
}

// planRelays lists the relays to keep sessions with: all but this machine's own,
// to which there is a way inside.
func (p *Plan) planRelays(in planInput) {
	own := ownRelay(in.Map)
	for _, r := range in.Map.Relays {
		rel := underlay.Relay{ID: r.ID, Name: r.Name, Label: relay.Label(r.Label), Endpoint: r.Endpoint, Pin: r.Pin, Crowd: len(in.Map.Peers)}
		if r.ID == own {
			p.Relays = append(p.Relays, rel)
			continue
		}
		rel.Addrs = in.RelayAddr[r.ID]
		for _, a := range rel.Addrs {
			p.Routing.Outer = append(p.Routing.Outer, a.Addr())
		}
		for _, pass := range in.Map.Passes {
			if pass.Relay == r.ID {
				rel.Ticket, rel.Key = pass.Ticket, pass.Key
			}
		}
		p.Relays = append(p.Relays, rel)
	}
}

// ownRelay returns the ID of the relay on this machine, "" when there is none.
func ownRelay(m *coord.Map) string {
	for _, r := range m.Relays {
		if r.Label != 0 && r.Label == m.Self.Label {
			return r.ID
		}
	}
	return ""
}

// othersRelays lists the relays that are reached by the network.
func othersRelays(m *coord.Map) []coord.Relay {
	own := ownRelay(m)
	return slices.DeleteFunc(slices.Clone(m.Relays), func(r coord.Relay) bool { return r.ID == own })
}

// places names relays by their labels, as nodes do among themselves.
func places(relays []coord.Relay, attached []coord.Attachment) []underlay.Place {
	var all []underlay.Place
	for _, a := range attached {
		for _, r := range relays {
			if r.ID == a.Relay && r.Label != 0 {
				all = append(all, underlay.Place{Relay: relay.Label(r.Label), Cost: a.Cost})
			}
		}
	}
	return all
}

func hostPrefixes(addrs []netip.Addr) []netip.Prefix { return withLength(addrs, 32) }

func withLength(addrs []netip.Addr, bits int) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(addrs))
	for _, a := range addrs {
		out = append(out, netip.PrefixFrom(a, bits))
	}
	return out
}

// tunnelPeers is the part of the plan that package tunnel makes true.
func (p *Plan) tunnelPeers() []tunnel.Peer {
	out := make([]tunnel.Peer, 0, len(p.Peers))
	for _, peer := range p.Peers {
		if peer.Device {
			out = append(out, tunnel.Peer{Key: peer.Key, AllowedIPs: peer.AllowedIPs, Device: true})
			continue
		}
		out = append(out, tunnel.Peer{Key: peer.Key, Endpoint: underlay.Endpoint(peer.Key), AllowedIPs: peer.AllowedIPs})
	}
	return out
}

// underlayPeers is the part of the plan that package underlay makes true.
func (p *Plan) underlayPeers() []underlay.Peer {
	out := make([]underlay.Peer, 0, len(p.Peers))
	for _, peer := range p.Peers {
		if peer.Device {
			continue
		}
		out = append(out, underlay.Peer{ID: peer.ID, Key: peer.Key, Label: peer.Label, AtRelay: peer.AtRelay, At: peer.At})
	}
	return out
}

// String prints the plan as `overlayd plan` shows it: a line for each thing
// that will be true.
func (p *Plan) String() string {
	var b strings.Builder
	if p.Stack != nil {
		b.WriteString(stackText(p.Stack, p.Routing.Routes, p.Closed))
	} else {
		b.WriteString(p.Routing.String())
	}
	if p.NAT != nil {
		b.WriteString(p.NAT.String())
	}
	for _, r := range p.Relays {
		if len(r.Ticket) > 0 && len(r.Addrs) > 0 {
			fmt.Fprintf(&b, "relay %s at %s\n", r.Name, joinText(r.Addrs))
		}
	}
	for _, peer := range p.Peers {
		if peer.Device {
			fmt.Fprintf(&b, "device %s %s allowed-ips %s\n", peer.Name, peer.Key, joinText(peer.AllowedIPs))
			continue
		}
		fmt.Fprintf(&b, "peer %s %s label %d allowed-ips %s\n", peer.Name, peer.Key, peer.Label, joinText(peer.AllowedIPs))
	}
	for _, r := range p.Routes {
		if r.State != RouteActive && r.State != RouteAdvertised {
			fmt.Fprintf(&b, "# %s: %s: %s\n", r.words(), r.State, r.Reason)
		}
	}
	for _, h := range p.Health {
		fmt.Fprintf(&b, "# %s: %s\n", h.Severity, h.Title)
	}
	return b.String()
}

func joinText[T fmt.Stringer](items []T) string {
	words := make([]string, len(items))
	for i, it := range items {
		words[i] = it.String()
	}
	return strings.Join(words, ",")
}
