package overlay

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"overlayd/overlay/coord"
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
		{"inside an advertised prefix", gw, []routing.Link{link("eth0", false, "192.168.1.200/24", "10.7.0.1/16")}, []string{"10.7.0.1"}, []string{"10.7.0.0/16"}},
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

// TestAtRelay: the relay's own node is known as such, and nobody else.
func TestAtRelay(t *testing.T) {
	vps, other := testNode("vps", 10, coord.RoleRelay, true), testNode("lab", 200, coord.RoleGateway, true)
	m := testMap(testNode("laptop", 11, coord.RoleMember, true), vps, other)
	m.Relays[0].Label = 10
	for _, p := range testPlan(m, testHost("10.0.0.5/24")).underlayPeers() {
		if p.AtRelay != (p.Label == 10) {
			t.Errorf("%+v", p)
		}
	}
}
