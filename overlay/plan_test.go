package overlay

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"overlayd/overlay/coord"
	"overlayd/overlay/key"
	"overlayd/routing"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func testNode(name string, label uint32, role coord.Role, online bool, routes ...coord.Route) coord.Node {
	var b [key.Size]byte
	b[0] = byte(label)
	k, err := key.PublicFromBytes(b[:])
	if err != nil {
		panic(err)
	}
	return coord.Node{
		ID: name, Name: name, Label: label, Role: role, Online: online, WireGuard: k, Routes: routes,
		Addrs: []netip.Addr{netip.AddrFrom4([4]byte{172, 18, 0, byte(label)})},
	}
}

func approved(s string) coord.Route { return coord.Route{Prefix: prefix(s), Approved: true} }
func pending(s string) coord.Route  { return coord.Route{Prefix: prefix(s)} }

func testMap(self coord.Node, peers ...coord.Node) *coord.Map {
	return &coord.Map{
		Version: 7, Overlay: prefix("172.18.0.0/24"), Self: self, Peers: peers,
		Relays: []coord.Relay{{ID: "1", Name: "vps", Endpoint: "203.0.113.10:443"}},
		Passes: []coord.Pass{{Relay: "1", Ticket: []byte("ticket"), Key: key.NewSecret()}},
	}
}

// testHost is a machine with one network on eth0.
func testHost(network string) routing.Host {
	addr := prefix(network)
	return routing.Host{
		Links:   []routing.Link{{Name: "eth0", Index: 2, MTU: 1500, Up: true, Addrs: []netip.Prefix{addr}}},
		Routes:  []routing.Route{{Prefix: addr.Masked(), Link: "eth0"}},
		Default: []routing.Gateway{{Link: "eth0", Via: addr.Masked().Addr().Next()}},
	}
}

func testPlan(m *coord.Map, host routing.Host) *Plan {
	return plan(planInput{
		Map: m, Host: host, Interface: "ovl0",
		RelayAddr: map[string][]netip.AddrPort{"1": {netip.MustParseAddrPort("203.0.113.10:443")}},
	})
}

// TestPlanRoutes: what becomes of each offered prefix, on a laptop.
const lan = "192.168.1.0/24"

func gw(name string, label uint32, online bool, prefixes ...string) coord.Node {
	var routes []coord.Route
	for _, p := range prefixes {
		routes = append(routes, approved(p))
	}
	return testNode(name, label, coord.RoleGateway, online, routes...)
}

var planRoutes = []struct {
	name   string
	home   string // the laptop's own network
	peers  []coord.Node
	closed []string
	want   []string // prefix via state
	routed []string
	health []string
}{
	{
		name: "one gateway", home: "10.0.0.5/24",
		peers:  []coord.Node{gw("lab", 200, true, lan)},
		want:   []string{lan + " lab active"},
		routed: []string{lan},
	},
	{
		name: "the gateway is away", home: "10.0.0.5/24",
		peers:  []coord.Node{gw("lab", 200, false, lan)},
		want:   []string{lan + " lab offline"},
		routed: []string{lan},
		health: []string{"gateway_offline"},
	},
	{
		name: "two gateways, the lower label carries it", home: "10.0.0.5/24",
		peers:  []coord.Node{gw("b", 201, true, lan), gw("a", 200, true, lan)},
		want:   []string{lan + " a active", lan + " b standby"},
		routed: []string{lan},
	},
	{
		name: "two gateways, the lower label is away", home: "10.0.0.5/24",
		peers:  []coord.Node{gw("a", 200, false, lan), gw("b", 201, true, lan)},
		want:   []string{lan + " b active", lan + " a standby"},
		routed: []string{lan},
	},
	{
		name: "an offline gateway does not black-hole a wider route", home: "10.0.0.5/24",
		peers:  []coord.Node{gw("wide", 200, true, "192.168.0.0/16"), gw("narrow", 201, false, lan)},
		want:   []string{"192.168.0.0/16 wide active", lan + " narrow offline"},
		routed: []string{"192.168.0.0/16"},
	},
	{
		name: "at home in the same network", home: "192.168.1.77/24",
		peers:  []coord.Node{gw("lab", 200, true, lan)},
		want:   []string{lan + " lab clash"},
		health: []string{"route_clash"},
	},
	{
		name: "at home in a wider network", home: "192.168.9.77/16",
		peers:  []coord.Node{gw("lab", 200, true, lan)},
		want:   []string{lan + " lab clash"},
		health: []string{"route_clash"},
	},
	{
		name: "at home in a part of it: the kernel prefers the part", home: "192.168.1.77/28",
		peers:  []coord.Node{gw("lab", 200, true, lan)},
		want:   []string{lan + " lab active"},
		routed: []string{lan},
	},
	{
		name: "a closed network is led where it is refused", home: "10.0.0.5/24",
		peers:  []coord.Node{gw("lab", 200, true, "192.168.2.0/24")},
		closed: []string{lan, "192.168.0.0/16"},
		want:   []string{"192.168.2.0/24 lab active", lan + "  refused", "192.168.0.0/16  refused"},
		routed: []string{"192.168.2.0/24", lan, "192.168.0.0/16"},
	},
	{
		name: "at home in a closed network", home: "192.168.1.77/24",
		closed: []string{lan},
		want:   []string{lan + "  clash"},
	},
	{
		name: "at home in a part of a closed network: nobody carries the rest", home: "192.168.1.77/28",
		closed: []string{lan, "10.9.0.0/16"},
		want:   []string{lan + "  clash", "10.9.0.0/16  refused"},
		routed: []string{"10.9.0.0/16"},
	},
	{
		name: "the internet is closed to nobody", home: "192.168.1.77/28",
		closed: []string{"198.51.100.0/24", "192.0.0.0/3", "10.0.0.0/7", "fd00:9::/64", "2000::/3", "100.64.0.0/10"},
		want:   []string{"100.64.0.0/10  refused"},
		routed: []string{"100.64.0.0/10"},
	},
	{
		name: "the overlay itself is at home", home: "172.18.0.77/16",
		health: []string{"overlay_clash"},
	},
}

func TestPlanRoutes(t *testing.T) {
	laptop := testNode("laptop", 11, coord.RoleMember, true)
	for _, tt := range planRoutes {
		t.Run(tt.name, func(t *testing.T) {
			m := testMap(laptop, tt.peers...)
			for _, c := range tt.closed {
				m.Closed = append(m.Closed, prefix(c))
			}
			p := testPlan(m, testHost(tt.home))
			var got, routed, health []string
			for _, r := range p.Routes {
				got = append(got, r.Prefix.String()+" "+r.Via+" "+r.State)
			}
			for _, r := range p.Routing.Routes {
				routed = append(routed, r.String())
			}
			for _, h := range p.Health {
				health = append(health, h.ID)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("routes (-want +got):\n%s", d)
			}
			if d := cmp.Diff(tt.routed, routed); d != "" {
				t.Errorf("kernel routes (-want +got):\n%s", d)
			}
			if d := cmp.Diff(tt.health, health); d != "" {
				t.Errorf("health (-want +got):\n%s", d)
			}
			for _, peer := range p.Peers {
				for _, a := range peer.AllowedIPs {
					if !a.IsSingleIP() && !strings.Contains(strings.Join(tt.routed, " "), a.String()) {
						t.Errorf("peer %s may send from %s, which is not routed to it", peer.Name, a)
					}
				}
			}
		})
	}
}

// TestOverlayClash: an interface of this machine, another overlayd's among them, keeps
// nothing of the overlay from a stack of our own.
func TestOverlayClash(t *testing.T) {
	for userspace, want := range map[bool]int{false: 1, true: 0} {
		p := plan(planInput{
			Map: testMap(testNode("laptop", 11, coord.RoleMember, true)), Host: testHost("172.18.0.77/16"),
			Interface: "ovl0", Userspace: userspace,
		})
		if len(p.Health) != want {
			t.Errorf("without an interface %t: %+v", userspace, p.Health)
		}
	}
}

// TestClosedServes: a network that is closed is not led anywhere when this machine
// is served from there without us.
func TestClosedServes(t *testing.T) {
	m := testMap(testNode("laptop", 11, coord.RoleMember, true))
	m.Closed = []netip.Prefix{prefix("10.9.0.0/16"), prefix(lan)}
	relay := map[string][]netip.AddrPort{"1": {netip.MustParseAddrPort("192.168.1.8:443")}}
	for _, c := range []struct {
		name   string
		needs  []netip.Addr
		relay  map[string][]netip.AddrPort
		routed string
	}{
		{"elsewhere", []netip.Addr{netip.MustParseAddr("10.8.0.53"), netip.MustParseAddr("fd00::53")}, nil, "10.9.0.0/16," + lan},
		{"a name server", []netip.Addr{netip.MustParseAddr("10.9.0.53")}, nil, lan},
		{"a relay", nil, relay, "10.9.0.0/16"},
	} {
		p := plan(planInput{Map: m, Host: testHost("10.0.0.5/24"), Interface: "ovl0", Needs: c.needs, RelayAddr: c.relay})
		if got := joinText(p.Routing.Routes); got != c.routed || joinText(p.Closed) != c.routed {
			t.Errorf("%s: %s is led, want %s:\n%s", c.name, got, c.routed, p)
		}
	}
}

// TestRecall: a machine that is revoked while its daemon runs goes on refusing
// what it led to; who takes part has what the coordinator says, and a gateway
// led nowhere.
func TestRecall(t *testing.T) {
	lab := gw("lab", 200, true, lan)
	before := testMap(testNode("laptop", 11, coord.RoleMember, true), lab)
	before.Closed = []netip.Prefix{prefix("10.9.0.0/16")}
	after := testMap(before.Self)
	if got := recall(after, before); got != after {
		t.Errorf("closed to a machine that takes part: %v", got.Closed)
	}
	after.Self.State = coord.NodeDisabled
	got := recall(after, before)
	if len(after.Closed) > 0 || joinText(got.Closed) != "10.9.0.0/16,"+lan {
		t.Errorf("closed are %v; the coordinator's map has %v", got.Closed, after.Closed)
	}
	if again := recall(after, got); joinText(again.Closed) != joinText(got.Closed) {
		t.Errorf("with the next map closed are %v", again.Closed)
	}
	if p := testPlan(got, testHost("10.0.0.5/24")); joinText(p.Routing.Routes) != "10.9.0.0/16,"+lan || p.Routes[1].Reason != barred(got).Message {
		t.Errorf("the plan:\n%s", p)
	}
	if got := recall(after, nil); got != after {
		t.Errorf("closed to who knew nothing: %v", got.Closed)
	}
	after.Self.Role = coord.RoleGateway
	if got := recall(after, before); got != after {
		t.Errorf("closed to a gateway: %v", got.Closed)
	}
}

func TestPlanGateway(t *testing.T) {
	gw := testNode("lab", 200, coord.RoleGateway, true, approved("192.168.1.0/24"), pending("10.9.0.0/16"))
	other := testNode("other", 201, coord.RoleGateway, true, approved("10.77.0.0/16"))
	p := testPlan(testMap(gw, other, testNode("laptop", 11, coord.RoleMember, true)), testHost("192.168.1.200/24"))

	if p.NAT == nil || !p.Routing.Forward {
		t.Fatal("an approved route does not turn on forwarding")
	}
	if len(p.NAT.LANs) != 1 || p.NAT.LANs[0].Prefix != prefix("192.168.1.0/24") || p.NAT.LANs[0].Link != "eth0" {
		t.Errorf("LANs %v: the pending route must not be forwarded", p.NAT.LANs)
	}
	if len(p.Routing.Routes) != 0 {
		t.Errorf("a gateway uses other gateways' routes: %v", p.Routing.Routes)
	}
	if len(p.Health) != 1 || p.Health[0].ID != "route_pending" {
		t.Errorf("health %v, want route_pending", p.Health)
	}
	if p.Routing.MTU != 1420 {
		t.Errorf("MTU %d, want Ethernet's 1500 less 80", p.Routing.MTU)
	}
	for _, line := range []string{"relay vps at 203.0.113.10:443", "peer laptop", "10.9.0.0/16 via lab: pending"} {
		if !strings.Contains(p.String(), line) {
			t.Errorf("the plan does not say %q:\n%s", line, p)
		}
	}
}

// TestPlanHosted: what a peer carries for others is that peer's, and a seat that
// this machine carries is an address of its own.
func TestPlanHosted(t *testing.T) {
	gw := testNode("lab", 200, coord.RoleGateway, true, approved("192.168.1.0/24"))
	vps, laptop := testNode("vps", 10, coord.RoleRelay, true), testNode("laptop", 11, coord.RoleMember, true)
	hosted := func(name string, label uint32, seat bool) coord.Node {
		n := testNode(name, label, coord.RoleMember, false)
		n.Host, n.Seat = vps.ID, seat
		return n
	}
	m := testMap(gw, vps, laptop)
	m.Hosted = []coord.Node{hosted("phone", 14, false), hosted("alice-at-vps", 15, true)}
	p := testPlan(m, testHost("192.168.1.200/24"))
	for _, peer := range p.Peers {
		want := map[string]string{"vps": "172.18.0.10/32,172.18.0.14/32,172.18.0.15/32", "laptop": "172.18.0.11/32"}[peer.Name]
		if got := joinText(peer.AllowedIPs); got != want {
			t.Errorf("%s may send from %s, want %s", peer.Name, got, want)
		}
	}
	if got := joinText(p.Routing.Addrs); got != "172.18.0.200/24" {
		t.Errorf("the gateway's own addresses are %s", got)
	}
	if got := joinText(carriedBy(m)); got != "172.18.0.10/32,172.18.0.11/32,172.18.0.14/32,172.18.0.15/32" {
		t.Errorf("peers carry %s", got)
	}

	m.Self, m.Peers = vps, []coord.Node{gw}
	p = testPlan(m, testHost("203.0.113.10/24"))
	if got := joinText(p.Routing.Addrs); got != "172.18.0.10/24,172.18.0.15/32" {
		t.Errorf("the carrier's own addresses are %s", got)
	}
	if len(p.Peers) != 2 || !p.Peers[0].Device || joinText(p.Peers[0].AllowedIPs) != "172.18.0.14/32" ||
		p.Peers[1].Device || joinText(p.Peers[1].AllowedIPs) != "172.18.0.200/32,192.168.1.0/24" {
		t.Errorf("the carrier's peers: %+v", p.Peers)
	}
	if peers := p.tunnelPeers(); len(peers) != 2 || peers[0].Endpoint != "" || !peers[0].Device || peers[1].Endpoint == "" {
		t.Errorf("WireGuard's peers at the carrier: %+v", peers)
	}
	if peers := p.underlayPeers(); len(peers) != 1 || peers[0].Label != 200 {
		t.Errorf("who is reached by paths: %+v", peers)
	}
}

func TestPlanGatewayWithoutRoutes(t *testing.T) {
	p := testPlan(testMap(testNode("lab", 200, coord.RoleGateway, true)), testHost("192.168.1.200/24"))
	if p.Routing.Forward || len(p.Health) != 1 || p.Health[0].ID != "no_route_offered" {
		t.Errorf("forward %v, health %v: want no forwarding, and a word about it", p.Routing.Forward, p.Health)
	}
}

// TestPlanGuest: a laptop that forwards for Docker does not forward for members.
func TestPlanGuest(t *testing.T) {
	host := testHost("10.0.0.5/24")
	in := planInput{Map: testMap(testNode("laptop", 11, coord.RoleMember, true)), Host: host, Interface: "ovl0", Firewall: true}
	if p := plan(in); p.NAT != nil {
		t.Errorf("a machine that does not forward gets rules:\n%s", p.NAT)
	}
	in.Host.Forwarding = true
	if p := plan(in); p.NAT == nil || !p.NAT.Guest || p.Routing.Forward {
		t.Errorf("NAT %v, forward %v: want a guest's rules", p.NAT, p.Routing.Forward)
	}
	in.Firewall = false
	if p := plan(in); p.NAT != nil || len(p.Health) != 1 || p.Health[0].ID != "forwards_unfiltered" {
		t.Errorf("NAT %v, health %v: want a warning", p.NAT, p.Health)
	}
}

func TestPlanLANNotConnected(t *testing.T) {
	gw := testNode("lab", 200, coord.RoleGateway, true, approved("10.50.0.0/16"))
	p := testPlan(testMap(gw), testHost("192.168.1.200/24"))
	if p.NAT == nil || p.NAT.LANs[0].Link != "eth0" || len(p.Health) != 1 || p.Health[0].ID != "lan_not_connected" {
		t.Errorf("NAT %v, health %v: want forwarding by the default route's link, and a warning", p.NAT, p.Health)
	}
	p = testPlan(testMap(gw), routing.Host{})
	if p.Routing.Forward || len(p.Health) != 1 || p.Health[0].ID != "lan_unreachable" {
		t.Errorf("health %v: a machine without networks forwards nothing", p.Health)
	}
}

// TestPlanNotApproved: before its route is approved, a gateway turns nothing on,
// and still lets no member through, should it forward by itself.
func TestPlanNotApproved(t *testing.T) {
	p := testPlan(testMap(testNode("lab", 200, coord.RoleGateway, true, pending("192.168.1.0/24"))), testHost("192.168.1.200/24"))
	if p.Routing.Forward || p.NAT == nil || len(p.NAT.LANs) != 0 {
		t.Errorf("forward %v, NAT %v: want a firewall without LANs", p.Routing.Forward, p.NAT)
	}
	if p = testPlan(testMap(testNode("laptop", 11, coord.RoleMember, true)), testHost("192.168.1.77/24")); p.NAT != nil {
		t.Errorf("a laptop needs iptables for %v", p.NAT)
	}
}

func TestStrangers(t *testing.T) {
	node := func(label uint32, boot uint64, online bool) coord.Node {
		n := testNode("n", label, coord.RoleMember, online)
		n.BootID = boot
		return n
	}
	known := boots{}
	for _, step := range []struct {
		name  string
		peers []coord.Node
		want  []uint32
	}{
		{"our own start", []coord.Node{node(1, 10, true), node(2, 20, true), node(3, 30, false)}, []uint32{1, 2}},
		{"nothing new", []coord.Node{node(1, 10, true), node(2, 20, true), node(3, 30, false)}, nil},
		{"one restarted, one is new", []coord.Node{node(1, 10, true), node(2, 21, true), node(4, 40, true)}, []uint32{2, 4}},
		{"the coordinator restarted", []coord.Node{node(1, 0, false), node(2, 0, false), node(4, 0, false)}, nil},
		{"and everybody is back", []coord.Node{node(1, 10, true), node(2, 21, true), node(4, 41, true)}, []uint32{4}},
	} {
		var got []uint32
		for _, n := range known.strangers(step.peers) {
			got = append(got, n.Label)
		}
		if d := cmp.Diff(step.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", step.name, d)
		}
	}
}
