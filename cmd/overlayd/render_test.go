package main

import (
	"bytes"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"overlayd/overlay"
	"overlayd/overlay/coord"
	"overlayd/overlay/key"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares got with a file of testdata.
func golden(t *testing.T, file, got string) {
	t.Helper()
	path := filepath.Join("testdata", file)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (- want, + got; -update accepts it):\n%s", path, d)
	}
}

func ptr[T any](v T) *T { return &v }

func laptopStatus() overlay.Status {
	ip := netip.MustParseAddr
	return overlay.Status{
		Schema: overlay.StatusSchema, Version: "0.1.0", State: overlay.StateReady,
		Node: overlay.StatusNode{Name: "laptop", IPs: []netip.Addr{ip("172.18.0.11")}, Role: "member",
			PublicKey: "AAAA", Interface: "ovl0", MTUBytes: ptr(1420)},
		Network: overlay.StatusNetwork{Overlay: ptr(netip.MustParsePrefix("172.18.0.0/24")), MapVersion: ptr(uint64(12)),
			MapAgeMS: ptr(int64(3200)), Control: overlay.StatusControl{State: "connected", Endpoint: "203.0.113.10:443"}},
		Relays: []overlay.StatusRelay{{Name: "vps", Endpoint: "203.0.113.10:443", State: "up", Transport: "udp", RTTMS: ptr(23.4)}},
		Peers: []overlay.StatusPeer{
			{Name: "lab-gw", IPs: []netip.Addr{ip("172.18.0.200")}, Role: "gateway", Online: true,
				Path: overlay.StatusPath{Kind: "relay", Transport: "udp", Endpoint: "203.0.113.10:443"}, RTTMS: ptr(44.2),
				RxBytes: 1_234_567_890, TxBytes: 80_400, LastHandshakeAt: ptr(testNow.Add(-12 * time.Second))},
			{Name: "vps", IPs: []netip.Addr{ip("172.18.0.10")}, Role: "relay", Online: true,
				Path: overlay.StatusPath{Kind: "relay", Transport: "udp", Endpoint: "203.0.113.10:443"}},
		},
		Routes:   []overlay.StatusRoute{{Prefix: netip.MustParsePrefix("192.168.1.0/24"), Via: "lab-gw", State: overlay.RouteActive}},
		Health:   []overlay.HealthItem{},
		Counters: []overlay.Counter{{Name: "drop_probe_forged", Value: 2}},
	}
}

// clashStatus is a laptop that sits on the LAN's own prefix, with its relay gone.
func clashStatus() overlay.Status {
	s := laptopStatus()
	s.State = overlay.StateDegraded
	s.Network.Control.State = "lost"
	s.Relays[0].State, s.Relays[0].RTTMS = "lost", nil
	s.Peers[0].Path = overlay.StatusPath{Kind: "none", Reason: "relay_down"}
	s.Peers[1].Online = false
	s.Routes[0].State, s.Routes[0].Reason = overlay.RouteClash, "wlan0 is on 192.168.1.0/24 itself, which wins"
	s.Health = []overlay.HealthItem{
		{ID: "route_clash", Severity: overlay.SeverityWarning, Title: "192.168.1.0/24 is also the network of wlan0",
			Fix: "hosts behind lab-gw are out of reach while this machine is on that network"},
		{ID: "relay_unreachable", Severity: overlay.SeverityError, Title: "relay vps at 203.0.113.10:443 does not answer over UDP",
			Fix: "check that overlayd runs on the relay and that its UDP port is open there and here"},
	}
	return s
}

// crowdStatus has more of everything than a screen holds.
func crowdStatus() overlay.Status {
	s := clashStatus()
	for i := range 40 {
		s.Peers = append(s.Peers, overlay.StatusPeer{
			Name: fmt.Sprintf("node-%02d", i), IPs: []netip.Addr{netip.AddrFrom4([4]byte{172, 18, 0, byte(20 + i)})},
			Role: "member", Online: i%3 == 0, Path: overlay.StatusPath{Kind: "direct", Transport: "udp", Endpoint: "198.51.100.7:41641"},
		})
		s.Routes = append(s.Routes, overlay.StatusRoute{
			Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 16), Via: "lab-gw", State: overlay.RouteActive})
		s.Health = append(s.Health, overlay.HealthItem{ID: "noise", Severity: overlay.SeverityInfo, Title: "nothing much"})
	}
	return s
}

func TestStatusScreen(t *testing.T) {
	empty := overlay.Status{Schema: overlay.StatusSchema, State: overlay.StateStarting,
		Node: overlay.StatusNode{Name: "laptop", Role: "member"}, Network: overlay.StatusNetwork{Control: overlay.StatusControl{State: "connecting"}}}
	for file, s := range map[string]overlay.Status{
		"status.golden": laptopStatus(), "status_clash.golden": clashStatus(),
		"status_crowd.golden": crowdStatus(), "status_starting.golden": empty,
	} {
		t.Run(file, func(t *testing.T) {
			var b, coloured bytes.Buffer
			writeStatus(&b, s, testNow, style{})
			golden(t, file, b.String())
			if n := strings.Count(b.String(), "\n"); n > screenLines {
				t.Errorf("%d lines, a screen has %d", n, screenLines)
			}
			if strings.Contains(b.String(), "\x1b") {
				t.Error("colour without a terminal")
			}
			writeStatus(&coloured, s, testNow, style{colour: true})
			plain := strings.NewReplacer("\x1b[31m", "", "\x1b[32m", "", "\x1b[33m", "", "\x1b[0m", "").Replace(coloured.String())
			if plain != b.String() {
				t.Error("colour changes more than the colour")
			}
		})
	}
}

func TestListings(t *testing.T) {
	w := newWorld(t)
	w.status = clashStatus()
	pub := key.NewPrivate().Public() // JSON is compared without it
	prefix := netip.MustParsePrefix
	w.nodes = []coord.NodeInfo{
		{Node: coord.Node{ID: "n1", Name: "vps", Addrs: []netip.Addr{netip.MustParseAddr("172.18.0.10")}, Role: coord.RoleRelay,
			WireGuard: pub, Online: true}, Joined: testNow.AddDate(0, -1, 0), LastSeen: testNow},
		{Node: coord.Node{ID: "n2", Name: "lab-gw", Addrs: []netip.Addr{netip.MustParseAddr("172.18.0.200")}, Role: coord.RoleGateway,
			WireGuard: pub, Routes: []coord.Route{{Prefix: prefix("192.168.1.0/24"), Approved: true}, {Prefix: prefix("10.9.0.0/16")}}},
			Joined: testNow.AddDate(0, 0, -2), LastSeen: testNow.Add(-5 * time.Minute)},
	}
	w.routes = []coord.RouteInfo{
		{Route: coord.Route{Prefix: prefix("192.168.1.0/24"), Approved: true}, Node: "lab-gw", Advertised: true, Online: true},
		{Route: coord.Route{Prefix: prefix("10.9.0.0/16")}, Node: "lab-gw", Advertised: true, Online: true},
		{Route: coord.Route{Prefix: prefix("10.8.0.0/16"), Approved: true}, Node: "old-gw", Advertised: true},
		{Route: coord.Route{Prefix: prefix("10.7.0.0/16"), Approved: true}, Node: "old-gw"},
	}
	w.invites = []coord.InviteInfo{
		{Invite: coord.Invite{Name: "laptop", Role: coord.RoleMember, Uses: 1}, ID: "abcd2345", State: coord.InviteOpen,
			Created: testNow, Expires: testNow.Add(24 * time.Hour)},
		{Invite: coord.Invite{Role: coord.RoleGateway, Uses: 3, Routes: []netip.Prefix{prefix("192.168.1.0/24")}}, ID: "efgh6789",
			Used: 3, State: coord.InviteUsed, Created: testNow, Expires: testNow.Add(time.Hour)},
	}
	for _, c := range []struct{ file, args, role string }{
		{"peers.golden", "peers", "member"},
		{"peers.json.golden", "peers --json", "member"},
		{"status.json.golden", "status --json", "member"},
		{"routes_here.golden", "routes", "member"},
		{"routes_network.golden", "routes list", "relay"},
		{"routes.json.golden", "routes --json", "relay"},
		{"nodes.golden", "nodes", "relay"},
		{"invites.golden", "invite list", "relay"},
		{"invites_all.golden", "invite list --all", "relay"},
		{"invites.json.golden", "invite list --json", "relay"},
	} {
		t.Run(c.file, func(t *testing.T) {
			w.status.Node.Role = c.role
			if code := w.do(strings.Fields(c.args)...); code != 0 {
				t.Fatalf("exit code %d: %s", code, &w.err)
			}
			golden(t, c.file, w.out.String())
		})
	}
}

func TestReadyLine(t *testing.T) {
	gw := laptopStatus()
	gw.Node.Name, gw.Node.Role = "lab-gw", "gateway"
	gw.Routes = []overlay.StatusRoute{
		{Prefix: netip.MustParsePrefix("192.168.1.0/24"), State: overlay.RouteAdvertised},
		{Prefix: netip.MustParsePrefix("10.9.0.0/16"), State: overlay.RoutePending},
	}
	vps := laptopStatus()
	vps.Node.Name, vps.Node.Role, vps.Peers, vps.Routes = "vps", "relay", nil, nil
	rootless := laptopStatus()
	rootless.Node.Userspace = true
	closed := laptopStatus()
	closed.Routes = []overlay.StatusRoute{{Prefix: netip.MustParsePrefix("192.168.1.0/24"), State: overlay.RouteRefused}}
	for want, s := range map[string]overlay.Status{
		"laptop is 172.18.0.11; may reach nothing in 192.168.1.0/24":                                                   closed,
		"laptop is 172.18.0.11; 192.168.1.0/24 through lab-gw; programs get in by overlayd proxy, nc, ssh and forward": rootless,
		"laptop is 172.18.0.11; 192.168.1.0/24 through lab-gw":                                                         laptopStatus(),
		"lab-gw is 172.18.0.11; offers 192.168.1.0/24; waits for approval of 10.9.0.0/16":                              gw,
		"vps is 172.18.0.11; a machine joins with a link: sudo overlayd invite":                                        vps,
	} {
		if got := readyLine(s); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

func TestFigures(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 9949: "9.9 kB", 9951: "10 kB",
		999_499: "999 kB", 999_600: "1.0 MB", 1_234_567_890: "1.2 GB", 1 << 63: "9223372 TB"} {
		if got := bytesText(n); got != want {
			t.Errorf("bytesText(%d) = %s, want %s", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{24 * time.Hour: "24h", 90 * time.Minute: "1h30m", 7 * 24 * time.Hour: "7d",
		time.Second: "1s", 200 * time.Millisecond: "200ms", time.Minute: "1m", 50 * time.Hour: "50h"} {
		if got := spanText(d); got != want {
			t.Errorf("spanText(%v) = %s, want %s", d, got, want)
		}
		var s span
		if err := s.Set(want); err != nil || time.Duration(s) != d {
			t.Errorf("span %s reads as %v (%v)", want, time.Duration(s), err)
		}
	}
	for d, want := range map[time.Duration]string{0: "0 s", 119 * time.Second: "119 s", 2 * time.Minute: "2 min", 3 * time.Hour: "3 h", 72 * time.Hour: "3 days"} {
		if got := roughly(d); got != want {
			t.Errorf("roughly(%v) = %s, want %s", d, got, want)
		}
	}
}

// TestPathOfARelaysMachine: nothing lies in between by the relay's own relay, and
// another relay by another.
func TestPathOfARelaysMachine(t *testing.T) {
	peer := overlay.StatusPeer{Name: "vps", Role: "relay", Online: true}
	for want, path := range map[string]overlay.StatusPath{
		"the relay itself, udp": {Kind: "relay", Transport: "udp", Relay: "vps"},
		"relay vps2 udp":        {Kind: "relay", Transport: "udp", Relay: "vps2"},
		"from the relay here":   {Kind: "relay", Transport: "local", Relay: "vps2"},
	} {
		peer.Path = path
		compare(t, want, pathText(peer, nil), want)
	}
}
