package overlay

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"overlayd/overlay/coord"
)

func userPlan(m *coord.Map, network string, hostPorts bool) *Plan {
	return plan(planInput{
		Map: m, Host: testHost(network), Userspace: true, HostPorts: hostPorts,
		RelayAddr: map[string][]netip.AddrPort{"1": {netip.MustParseAddrPort("203.0.113.10:443")}},
	})
}

// userLines are what a plan says of the stack, and of the kernel: nothing.
func userLines(t *testing.T, p *Plan) []string {
	t.Helper()
	var lines []string
	for line := range strings.Lines(p.String()) {
		switch word, _, _ := strings.Cut(line, " "); word {
		case "userspace":
			lines = append(lines, strings.TrimSpace(line))
		case "peer", "relay", "#":
		default:
			t.Errorf("the kernel is to have %q", line)
		}
	}
	return lines
}

// TestPlanUserspace: what would be routes, addresses and forwarding is the
// stack's, and the kernel is left alone.
func TestPlanUserspace(t *testing.T) {
	gw := testNode("gw", 200, coord.RoleGateway, true, approved("192.168.1.0/24"), pending("10.20.0.0/16"))
	laptop := testNode("laptop", 11, coord.RoleMember, true)
	for _, tt := range []struct {
		name    string
		plan    *Plan
		forward bool
		want    []string
	}{
		{"laptop", userPlan(testMap(laptop, gw), "10.9.0.5/16", true), false, []string{
			"userspace mtu 1420", "userspace address 172.18.0.11", "userspace reach 172.18.0.0/24",
			"userspace reach 192.168.1.0/24", "userspace serve 172.18.0.11 at 10.9.0.5",
		}},
		{"a program", userPlan(testMap(laptop, gw), "10.9.0.5/16", false), false, []string{
			"userspace mtu 1420", "userspace address 172.18.0.11", "userspace reach 172.18.0.0/24", "userspace reach 192.168.1.0/24",
		}},
		{"on that network itself", userPlan(testMap(laptop, gw), "192.168.1.50/24", false), false, []string{
			"userspace mtu 1420", "userspace address 172.18.0.11", "userspace reach 172.18.0.0/24",
		}},
		{"gateway", userPlan(testMap(gw, laptop), "192.168.1.200/24", true), true, []string{
			"userspace mtu 1420", "userspace address 172.18.0.200", "userspace reach 172.18.0.0/24",
			"userspace serve 192.168.1.0/24", "userspace serve 172.18.0.200 at 192.168.1.200",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if d := cmp.Diff(tt.want, userLines(t, tt.plan)); d != "" {
				t.Error(d)
			}
			if tt.plan.NAT != nil || tt.plan.Routing.Forward != tt.forward {
				t.Errorf("NAT %v, forward %v", tt.plan.NAT, tt.plan.Routing.Forward)
			}
		})
	}
}

// TestUserPlaces follows the XDG Base Directory Specification.
func TestUserPlaces(t *testing.T) {
	for _, tt := range []struct {
		name       string
		env        map[string]string
		dir, socks string // "": refused
	}{
		{"nothing but a home", map[string]string{"HOME": "/home/a"}, "/home/a/.local/state/overlayd", "/home/a/.local/state/overlayd/overlayd.sock"},
		{"a session", map[string]string{"HOME": "/home/a", "XDG_RUNTIME_DIR": "/run/user/7"}, "/home/a/.local/state/overlayd", "/run/user/7/overlayd/overlayd.sock"},
		{"another state", map[string]string{"XDG_STATE_HOME": "/srv/a"}, "/srv/a/overlayd", "/srv/a/overlayd/overlayd.sock"},
		{"relative ones do not count", map[string]string{"HOME": "/home/a", "XDG_STATE_HOME": "x", "XDG_RUNTIME_DIR": "y"}, "/home/a/.local/state/overlayd", "/home/a/.local/state/overlayd/overlayd.sock"},
		{"no home", map[string]string{}, "", ""},
	} {
		dir, socket, err := UserPlaces(func(k string) string { return tt.env[k] })
		if filepath.ToSlash(dir) != tt.dir || filepath.ToSlash(socket) != tt.socks || (err != nil) != (tt.dir == "") {
			t.Errorf("%s: %s, %s, %v", tt.name, dir, socket, err)
		}
	}
}

// TestStackHealth: a table that was full is said to have been, and what to do.
func TestStackHealth(t *testing.T) {
	if len(stackHealth(false)) != 0 {
		t.Error("a complaint about nothing")
	}
	if items := stackHealth(true); len(items) != 1 || items[0].ID != "flows_full" || items[0].Fix == "" {
		t.Errorf("got %+v", items)
	}
}
