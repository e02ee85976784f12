package routing

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var host = Host{
	Links: []Link{
		{Name: "lo", Index: 1, MTU: 65536, Up: true, Virtual: true, Addrs: prefixes("127.0.0.1/8")},
		{Name: "eth0", Index: 2, MTU: 1500, Up: true, Addrs: prefixes("192.168.1.50/24", "fe80::1/64")},
		{Name: "ppp0", Index: 3, MTU: 1492, Up: true, Virtual: true, Addrs: prefixes("10.64.0.2/32")},
		{Name: "eth1", Index: 4, MTU: 9000, Addrs: prefixes("10.1.0.1/16")},
		{Name: "ovl0", Index: 5, MTU: 1412, Up: true, Virtual: true, Addrs: prefixes("172.18.0.11/32")},
	},
	Routes:  []Route{{netip.MustParsePrefix("192.168.1.0/24"), "eth0"}, {netip.MustParsePrefix("10.128.0.0/9"), "ppp0"}},
	Default: []Gateway{{Link: "ppp0", Metric: 100}, {Link: "eth0", Metric: 200}},
}

func TestConnected(t *testing.T) {
	for _, tt := range []struct {
		name, prefix string
		want         []Route
	}{
		{"the same", "192.168.1.0/24", []Route{{netip.MustParsePrefix("192.168.1.0/24"), "eth0"}}},
		{"a larger one", "192.168.0.0/16", []Route{{netip.MustParsePrefix("192.168.1.0/24"), "eth0"}}},
		{"a part", "192.168.1.128/25", []Route{{netip.MustParsePrefix("192.168.1.0/24"), "eth0"}}},
		{"another's route", "10.200.0.0/16", []Route{{netip.MustParsePrefix("10.128.0.0/9"), "ppp0"}}},
		{"a link that is down", "10.1.0.0/16", nil},
		{"our own", "172.18.0.0/24", nil},
		{"none", "192.168.2.0/24", nil},
		{"loopback", "127.0.0.0/8", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := host.Connected(netip.MustParsePrefix(tt.prefix), "ovl0")
			if diff := cmp.Diff(tt.want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestToward(t *testing.T) {
	for _, tt := range []struct {
		name, prefix, link string
		connected          bool
	}{
		{"on a LAN", "192.168.1.0/24", "eth0", true},
		{"part of a LAN", "192.168.1.64/26", "eth0", true},
		{"behind a router", "10.129.0.0/16", "ppp0", false},
		{"anywhere", "203.0.113.0/24", "ppp0", false},
		{"larger than a LAN", "192.168.0.0/16", "ppp0", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			link, connected := host.Toward(netip.MustParsePrefix(tt.prefix), "ovl0")
			if link != tt.link || connected != tt.connected {
				t.Errorf("got %q, %v", link, connected)
			}
		})
	}
	if link, _ := (Host{}).Toward(netip.MustParsePrefix("192.168.1.0/24"), ""); link != "" {
		t.Errorf("no network: %q", link)
	}
}

func TestMTU(t *testing.T) {
	for underlay, want := range map[int]int{0: 1280, 1300: 1280, 1400: 1320, 1492: 1412, 1500: 1420, 9000: 1420} {
		if got := TunnelMTU(underlay); got != want {
			t.Errorf("TunnelMTU(%d) = %d, want %d", underlay, got, want)
		}
	}
	for _, tt := range []struct {
		name string
		host Host
		want int
	}{
		{"preferred default route", host, 1492},
		{"no default route", Host{Links: host.Links}, 1500},
		{"the route's own", Host{Links: host.Links, Default: []Gateway{{Link: "eth0", MTU: 1400}}}, 1400},
	} {
		if got := tt.host.UnderlayMTU(); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestLoosened(t *testing.T) {
	inside := netip.MustParseAddr("10.0.0.5")
	s := State{Link: "ovl0", Routes: prefixes("10.0.0.0/8")}
	for _, tt := range []struct {
		name  string
		outer []netip.Addr
		mode  int
		want  int
	}{
		{"no relay known", nil, 1, 0},
		{"relay elsewhere", []netip.Addr{netip.MustParseAddr("203.0.113.1")}, 1, 0},
		{"relay behind a route of ours", []netip.Addr{inside}, 1, 2},
		{"not strict", []netip.Addr{inside}, 2, 0},
		{"off", []netip.Addr{inside}, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s.Outer = tt.outer
			if got := s.loosened(host, func(string) int { return tt.mode }); len(got) != tt.want {
				t.Errorf("got %v", got)
			}
		})
	}
}
