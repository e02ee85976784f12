// Package overlayd_test keeps the rules that hold for the tree as a whole.
package overlayd_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const (
	wireguard = "golang.zx2c4.com/wireguard"
	netlink   = "github.com/vishvananda/netlink"
	iptables  = "github.com/coreos/go-iptables"
	upnp      = "github.com/huin/goupnp"
)

// reaches lists, for each of our packages, what it may reach of ours. A package
// that is not listed is an error: its place is a decision.
var reaches = map[string][]string{
	"overlayd/internal/netnstest":      {}, // tests only
	"overlayd/internal/bell":           {},
	"overlayd/internal/limit":          {},
	"overlayd/journal":                 {},
	"overlayd/routing":                 {},
	"overlayd/nat":                     {},
	"overlayd/overlay/key":             {},
	"overlayd/overlay/login":           {},
	"overlayd/overlay/udp":             {"internal/bell"},
	"overlayd/overlay/train":           {},
	"overlayd/overlay/netstack":        {"overlay/train"},
	"overlayd/overlay/tun":             {"internal/bell", "overlay/train"},
	"overlayd/overlay/coord/api":       {},
	"overlayd/overlay/coord":           {"internal/limit", "overlay/login", "overlay/key", "overlay/coord/api", "overlay/policy", "overlay/record"},
	"overlayd/overlay/coord/storetest": {"internal/limit", "overlay/login", "overlay/key", "overlay/coord", "overlay/coord/api", "overlay/policy", "overlay/record"},
	"overlayd/overlay/local":           {},
	"overlayd/overlay/jump":            {"internal/limit", "overlay/splice"},
	"overlayd/overlay/publish":         {"internal/limit", "overlay/splice"},
	"overlayd/overlay/netsim":          {},
	"overlayd/overlay/filter":          {},
	"overlayd/overlay/policy":          {},
	"overlayd/overlay/portmap":         {},
	"overlayd/overlay/record":          {},
	"overlayd/overlay/splice":          {},
	"overlayd/overlay/proxy":           {"overlay/splice"},
	"overlayd/overlay/forward":         {"overlay/splice"},
	"overlayd/overlay/resolver":        {},
	"overlayd/overlay/owner":           {},
	"overlayd/overlay/relay":           {"internal/bell", "overlay/key", "overlay/udp"},
	"overlayd/overlay/underlay":        {"internal/bell", "overlay/key", "overlay/udp", "overlay/relay"},
	"overlayd/overlay/tunnel":          {"internal/bell", "overlay/filter", "overlay/key", "overlay/tun", "overlay/train"},
	"overlayd/overlay":                 {"internal/bell", "journal", "routing", "nat", "overlay/key", "overlay/tun", "overlay/train", "overlay/netstack", "overlay/udp", "overlay/coord", "overlay/coord/api", "overlay/local", "overlay/relay", "overlay/underlay", "overlay/tunnel", "overlay/portmap", "overlay/policy", "overlay/filter", "overlay/record", "overlay/splice", "overlay/proxy", "overlay/forward", "overlay/resolver", "overlay/owner", "internal/limit", "overlay/login", "overlay/jump", "overlay/publish"},
	"overlayd/cmd/overlayd":            {"*"},
	"overlayd/examples/embed":          {"*"}, // package overlay, as a library
	"overlayd/examples/lab":            {},
	"overlayd/examples/lab/cmd":        {"examples/lab"},
	"overlayd/examples/lab/labtest":    {"examples/lab"},
	"overlayd/examples/lab/waysin":     {},
	"overlayd/examples/lab/bench":      {"*"}, // drives the lab, and reads the daemons' status
}

// only lists who may import a package themselves, with the reason.
var only = map[string]struct {
	importers []string
	reason    string
}{
	wireguard + "/device":  {[]string{"overlayd/overlay/tunnel"}, "one package owns the WireGuard device"},
	netlink:                {[]string{"overlayd/routing"}, "one package changes addresses, routes and rules"},
	upnp:                   {[]string{"overlayd/overlay/portmap"}, "one package talks to routers"},
	iptables + "/iptables": {[]string{"overlayd/nat"}, "one package changes netfilter"},
	"html/template":        {nil, "calling methods by name keeps all of them in the program: 6 MB"},
	"text/template":        {nil, "calling methods by name keeps all of them in the program: 6 MB"},
}

func TestDirection(t *testing.T) {
	ours := list(t, "{{.ImportPath}}", "./...")
	for _, pkg := range ours {
		if pkg == "overlayd" {
			continue // this test
		}
		allowed, ok := reaches[pkg]
		if !ok {
			t.Errorf("%s is new: say in this test what it may reach", pkg)
			continue
		}
		for _, dep := range list(t, "{{.ImportPath}}", "-deps", pkg) {
			own, isOurs := strings.CutPrefix(dep, "overlayd/")
			if isOurs && dep != pkg && !slices.Contains(allowed, own) && !slices.Contains(allowed, "*") {
				t.Errorf("%s reaches %s, which lies above it", pkg, dep)
			}
		}
	}
}

// TestRelayIsBlind: the relay forwards what it cannot read, so it has no
// business with WireGuard, nor with this machine's routes or the members.
func TestRelayIsBlind(t *testing.T) {
	for _, dep := range list(t, "{{.ImportPath}}", "-deps", "overlayd/overlay/relay") {
		for _, not := range []string{wireguard, netlink, iptables, "overlayd/overlay/coord"} {
			if dep == not || strings.HasPrefix(dep, not+"/") {
				t.Errorf("overlay/relay reaches %s", dep)
			}
		}
	}
}

func TestOneOwner(t *testing.T) {
	for _, line := range list(t, "{{.ImportPath}} {{join .Imports \" \"}}", "./...") {
		pkg, imports, _ := strings.Cut(line, " ")
		for _, imp := range strings.Fields(imports) {
			if rule, ok := only[imp]; ok && !slices.Contains(rule.importers, pkg) {
				t.Errorf("%s imports %s: %s", pkg, imp, rule.reason)
			}
		}
	}
}

func list(t *testing.T, format string, args ...string) []string {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list", "-f", format}, args...)...).Output()
	if err != nil {
		t.Fatalf("go list %s: %v", strings.Join(args, " "), err)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}
