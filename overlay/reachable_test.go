package overlay

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"overlayd/overlay/coord"
	"overlayd/overlay/portmap"
	"overlayd/routing"
)

// TestPlanLocal: which addresses of a machine peers are told.
func TestPlanLocal(t *testing.T) {
	link := func(name string, virtual bool, addrs ...string) routing.Link {
		l := routing.Link{Name: name, Up: true, Virtual: virtual}
		for _, a := range addrs {
			l.Addrs = append(l.Addrs, prefix(a))
		}
		return l
	}
	tunnel := func(l routing.Link) routing.Link {
		l.Tunnel = true
		return l
	}
	gw := testNode("lab", 200, coord.RoleGateway, true, approved("192.168.1.0/24"), pending("10.7.0.0/16"))
	laptop := testNode("laptop", 11, coord.RoleMember, true)
	defaultBy := []routing.Gateway{{Link: "eth0"}, {Link: "br0"}}
	for _, tt := range []struct {
		name  string
		self  coord.Node
		links []routing.Link
		addrs []string
		lans  []string
	}{
		{"a plain one", laptop, []routing.Link{link("lo", true, "127.0.0.1/8", "::1/128"), link("eth0", false, "10.0.0.5/24", "fe80::1/64", "2001:db8::5/64")},
			[]string{"10.0.0.5", "2001:db8::5"}, []string{"10.0.0.0/24", "2001:db8::/64"}},
		{"our own interface", laptop, []routing.Link{link("ovl0", true, "172.18.0.11/24"), link("mine", false, "172.18.0.12/24")}, nil, nil},
		{"containers", laptop, []routing.Link{link("docker0", true, "172.17.0.1/16"), link("br-1234", true, "172.19.0.1/16"), link("veth1", true, "10.9.0.1/24"), link("bridge9", true, "10.8.0.1/24")}, nil, nil},
		{"another overlay", laptop, []routing.Link{link("tailscale0", true, "100.64.0.1/32"), link("wg0", true, "10.6.0.1/24")}, nil, nil},
		{"down", laptop, []routing.Link{{Name: "eth0", Addrs: []netip.Prefix{prefix("10.0.0.5/24")}}}, nil, nil},
		{"a bridge to the world", laptop, []routing.Link{link("br0", true, "10.0.0.5/24")}, []string{"10.0.0.5"}, []string{"10.0.0.0/24"}},
		{"tunnels of any name", laptop, []routing.Link{
			tunnel(link("corp", true, "10.1.0.5/24")), tunnel(link("eth0", true, "10.2.0.5/24")),
			link("tun0", false, "10.3.0.5/32"), link("zt7nnig", true, "10.4.0.5/24"),
		}, nil, nil},
		{"IPv6", laptop, []routing.Link{link("eth0", false, "fe80::1/64", "fd12:3456::5/64", "2001:db8::5/64", "2001:db8::6/128", "::1/128")},
			[]string{"fd12:3456::5", "2001:db8::5", "2001:db8::6"}, []string{"fd12:3456::/64", "2001:db8::/64"}},
		{"IPv4 link-local", laptop, []routing.Link{link("eth0", false, "169.254.3.4/16")}, nil, nil},
		{"inside an advertised prefix", gw, []routing.Link{link("eth0", false, "192.168.1.200/24", "10.7.0.1/16")},
			[]string{"192.168.1.200", "10.7.0.1"}, []string{"192.168.1.0/24", "10.7.0.0/16"}},
		{"a laptop inside it", laptop, []routing.Link{link("eth0", false, "192.168.1.50/24")}, []string{"192.168.1.50"}, []string{"192.168.1.0/24"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			peer := gw
			if tt.self.Name == gw.Name {
				peer = laptop
			}
			p := testPlan(testMap(tt.self, peer), routing.Host{Links: tt.links, Default: defaultBy})
			if diff := cmp.Diff(tt.addrs, texts(p.Local.Addrs)); diff != "" {
				t.Errorf("addresses: %s", diff)
			}
			if diff := cmp.Diff(tt.lans, texts(p.Local.LANs)); diff != "" {
				t.Errorf("LANs: %s", diff)
			}
			if diff := cmp.Diff([]string{"192.168.1.0/24"}, texts(p.Local.Behind)); diff != "" {
				t.Errorf("behind gateways: %s", diff)
			}
			if p.Local.Label == 0 || p.Local.Refuse[0] != prefix("172.18.0.0/24") {
				t.Errorf("%+v", p.Local)
			}
		})
	}
}

func texts[T interface{ String() string }](l []T) []string {
	var out []string
	for _, v := range l {
		out = append(out, v.String())
	}
	return out
}

// TestPlanRouter: whom a machine asks for a port.
func TestPlanRouter(t *testing.T) {
	host := func(change func(*routing.Host)) routing.Host {
		h := testHost("10.0.0.5/24")
		if change != nil {
			change(&h)
		}
		return h
	}
	via := netip.MustParseAddr("10.0.0.1")
	want := portmap.Target{Gateway: via, Local: netip.MustParseAddr("10.0.0.5"), Link: "eth0"}
	for _, tt := range []struct {
		name  string
		host  routing.Host
		in    planInput
		want  portmap.Target
		relay uint32 // the label of the relay's node
	}{
		{"a home", host(nil), planInput{}, want, 0},
		{"switched off", host(nil), planInput{NoPortmap: true}, portmap.Target{}, 0},
		{name: "the relay's machine", host: host(nil), relay: 11},
		{name: "another machine than the relay's", host: host(nil), want: want, relay: 10},
		{"no default route", host(func(h *routing.Host) { h.Default = nil }), planInput{}, portmap.Target{}, 0},
		{"IPv6 first", host(func(h *routing.Host) {
			h.Default = append([]routing.Gateway{{Link: "eth0", Via: netip.MustParseAddr("fe80::1"), V6: true}}, h.Default...)
		}), planInput{}, want, 0},
		{"no router", host(func(h *routing.Host) { h.Default[0].Via = netip.Addr{} }), planInput{}, portmap.Target{}, 0},
		{"a VPN goes first", host(func(h *routing.Host) {
			h.Links = append(h.Links, routing.Link{Name: "corp", Up: true, Virtual: true, Tunnel: true, Addrs: []netip.Prefix{prefix("10.9.0.2/24")}})
			h.Default = append([]routing.Gateway{{Link: "corp", Via: netip.MustParseAddr("10.9.0.1")}}, h.Default...)
		}), planInput{}, portmap.Target{}, 0},
		{"our own interface", host(func(h *routing.Host) { h.Links[0].Name, h.Default[0].Link = "ovl0", "ovl0" }), planInput{}, portmap.Target{}, 0},
		{"a router elsewhere", host(func(h *routing.Host) { h.Default[0].Via = netip.MustParseAddr("10.5.0.1") }), planInput{}, portmap.Target{}, 0},
		{"two addresses", host(func(h *routing.Host) {
			h.Links[0].Addrs = append([]netip.Prefix{prefix("192.168.9.9/24"), prefix("fe80::5/64")}, h.Links[0].Addrs...)
		}), planInput{}, want, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := tt.in
			in.Map, in.Host, in.Interface = testMap(testNode("laptop", 11, coord.RoleMember, true)), tt.host, "ovl0"
			in.Map.Relays[0].Label = tt.relay
			if got := plan(in).Router; got != tt.want {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
		})
	}
}

// TestAtRelay: the relay's own node is known as such, and nobody else.
func TestAtRelay(t *testing.T) {
	vps, other := testNode("vps", 10, coord.RoleRelay, true), testNode("lab", 200, coord.RoleGateway, true)
	m := testMap(testNode("laptop", 11, coord.RoleMember, true), vps, other)
	m.Relays[0].Label = 10
	made := testPlan(m, testHost("10.0.0.5/24"))
	id := m.Relays[0].ID
	if !made.atRelay(vps.WireGuard, id) || made.atRelay(vps.WireGuard, id+"2") || made.atRelay(other.WireGuard, id) {
		t.Error("only the relay's own node is at it, and only at that one")
	}
	for _, p := range made.underlayPeers() {
		if p.AtRelay != (p.Label == 10) {
			t.Errorf("%+v", p)
		}
	}
}
