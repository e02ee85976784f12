package routing

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func prefixes(list ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, s := range list {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

var laptop = State{Link: "ovl0", MTU: 1420, Addrs: prefixes("172.18.0.11/24"), Routes: prefixes("192.168.1.0/24")}

func TestStateString(t *testing.T) {
	dotted := laptop
	dotted.Forward, dotted.LANs = true, []string{"eth0.100"}
	for _, tt := range []struct {
		name  string
		state State
		want  string
	}{
		{"laptop", laptop, `
link set ovl0 mtu 1420
link set ovl0 up
addr add 172.18.0.11/32 dev ovl0
sysctl net.ipv4.conf.ovl0.rp_filter=2
rule add pref 5335 to 172.18.0.0/24 lookup main suppress_prefixlength 0
rule add pref 5335 to 192.168.1.0/24 lookup main suppress_prefixlength 0
rule add pref 5340 not fwmark 0xb000000/0xff000000 lookup 7350
route add 172.18.0.0/24 dev ovl0 table 7350 src 172.18.0.11
route add 192.168.1.0/24 dev ovl0 table 7350 src 172.18.0.11
`},
		{"gateway on a VLAN", State{Link: "ovl0", Addrs: prefixes("172.18.0.200/24"), Forward: true, LANs: []string{"eth0.100"}}, `
link set ovl0 up
addr add 172.18.0.200/32 dev ovl0
sysctl net.ipv4.conf.ovl0.rp_filter=2
sysctl net.ipv4.ip_forward=1
sysctl net.ipv4.conf.ovl0.forwarding=1
sysctl net.ipv4.conf.eth0/100.forwarding=1
rule add pref 5335 to 172.18.0.0/24 lookup main suppress_prefixlength 0
rule add pref 5340 not fwmark 0xb000000/0xff000000 lookup 7350
route add 172.18.0.0/24 dev ovl0 table 7350 src 172.18.0.200
`},
		{"IPv6", State{Link: "ovl0", Addrs: prefixes("fd00::b/64"), Routes: prefixes("2001:db8::/48")}, `
link set ovl0 up
addr add fd00::b/128 dev ovl0
sysctl net.ipv4.conf.ovl0.rp_filter=2
-6 rule add pref 5335 to fd00::/64 lookup main suppress_prefixlength 0
-6 rule add pref 5335 to 2001:db8::/48 lookup main suppress_prefixlength 0
-6 rule add pref 5340 not fwmark 0xb000000/0xff000000 lookup 7350
route add fd00::/64 dev ovl0 table 7350 src fd00::b
route add 2001:db8::/48 dev ovl0 table 7350 src fd00::b
`},
		{"no address yet", State{Link: "ovl0"}, `
link set ovl0 up
sysctl net.ipv4.conf.ovl0.rp_filter=2
`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(strings.TrimPrefix(tt.want, "\n"), tt.state.String()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDiff(t *testing.T) {
	moved, narrowed := laptop, laptop
	moved.Addrs = prefixes("172.18.0.12/24")
	narrowed.Routes = nil
	renamed := laptop
	renamed.Link = "ovl1"
	for _, tt := range []struct {
		name       string
		have, want []Fact
		changes    string
	}{
		{"nothing to do", laptop.Facts(), laptop.Facts(), ""},
		{"another address: the new one first", laptop.Facts(), moved.Facts(), `
addr add 172.18.0.12/32 dev ovl0
route add 172.18.0.0/24 dev ovl0 table 7350 src 172.18.0.12
route add 192.168.1.0/24 dev ovl0 table 7350 src 172.18.0.12
addr del 172.18.0.11/32 dev ovl0
`},
		{"a route less: the route before its rule", laptop.Facts(), narrowed.Facts(), `
route del 192.168.1.0/24 dev ovl0 table 7350
rule del pref 5335 to 192.168.1.0/24 lookup main suppress_prefixlength 0
`},
		{"a rule lost", slices.DeleteFunc(laptop.Facts(), func(f Fact) bool { return f == Fact(rule{priority: prefOurs}) }), laptop.Facts(), `
rule add pref 5340 not fwmark 0xb000000/0xff000000 lookup 7350
`},
		{"what another link's crash left", laptop.Facts()[4:], renamed.Facts(), `
link set ovl1 mtu 1420
link set ovl1 up
addr add 172.18.0.11/32 dev ovl1
sysctl net.ipv4.conf.ovl1.rp_filter=2
route add 172.18.0.0/24 dev ovl1 table 7350 src 172.18.0.11
route add 192.168.1.0/24 dev ovl1 table 7350 src 172.18.0.11
`},
		{"everything away", laptop.Facts(), nil, `
route del 192.168.1.0/24 dev ovl0 table 7350
route del 172.18.0.0/24 dev ovl0 table 7350
rule del pref 5340 not fwmark 0xb000000/0xff000000 lookup 7350
rule del pref 5335 to 192.168.1.0/24 lookup main suppress_prefixlength 0
rule del pref 5335 to 172.18.0.0/24 lookup main suppress_prefixlength 0
addr del 172.18.0.11/32 dev ovl0
`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got strings.Builder
			for _, c := range Diff(tt.have, tt.want) {
				fmt.Fprintln(&got, c)
			}
			if diff := cmp.Diff(strings.TrimPrefix(tt.changes, "\n"), got.String()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// randomState is any state of few words, so that states often share some.
func randomState(r *rand.Rand) State {
	pick := func(from []string) (some []string) {
		for _, s := range from {
			if r.IntN(2) == 0 {
				some = append(some, s)
			}
		}
		r.Shuffle(len(some), func(i, j int) { some[i], some[j] = some[j], some[i] })
		return some
	}
	return State{
		Link:    "ovl0",
		MTU:     []int{0, 1280, 1420}[r.IntN(3)],
		Addrs:   prefixes(pick([]string{"172.18.0.11/24", "172.18.0.12/24", "10.9.0.1/32"})...),
		Routes:  prefixes(pick([]string{"192.168.1.0/24", "192.168.0.0/16", "10.0.0.0/8", "192.168.1.128/25"})...),
		Forward: r.IntN(2) == 0,
		LANs:    pick([]string{"eth0", "eth1"}),
	}
}

// applied is what a kernel has after the changes; it refuses what a kernel would.
func applied(t *testing.T, have []Fact, changes []Change) []Fact {
	have = slices.Clone(have)
	for _, c := range changes {
		i := slices.IndexFunc(have, func(f Fact) bool { return f.slot() == c.Fact.slot() })
		switch {
		case c.Remove && i < 0:
			t.Fatalf("%s: there is none", c)
		case c.Remove:
			have = slices.Delete(have, i, i+1)
		case i >= 0:
			have[i] = c.Fact
		default:
			have = append(have, c.Fact)
		}
	}
	return have
}

// TestDiffConverges applies random states one after the other: the kernel ends
// with what the last one wants, as if the others had never been.
func TestDiffConverges(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var have []Fact
	for i := range 2000 {
		want := randomState(r).Facts()
		changes := Diff(have, want)
		if r.IntN(4) == 0 { // a crash on the way
			changes = changes[:r.IntN(len(changes)+1)]
			have = applied(t, have, changes)
			continue
		}
		have = applied(t, have, changes)
		if rest := Diff(have, want); len(rest) > 0 {
			t.Fatalf("round %d: still to do: %v", i, rest)
		}
		for _, f := range have {
			if !f.lasting() && !slices.Contains(want, f) {
				t.Fatalf("round %d: left over: %v", i, f)
			}
		}
	}
}

func TestValidate(t *testing.T) {
	for _, tt := range []struct {
		name  string
		state State
		ok    bool
	}{
		{"good", laptop, true},
		{"no link", State{}, false},
		{"a path", State{Link: "../../kernel"}, false},
		{"all links", State{Link: "all"}, false},
		{"a LAN that is a path", State{Link: "ovl0", LANs: []string{"a/b"}}, false},
		{"long name", State{Link: "sixteen-letters0"}, false},
		{"no prefix", State{Link: "ovl0", Routes: []netip.Prefix{{}}}, false},
		{"mtu", State{Link: "ovl0", MTU: -1}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.state.validate(); (err == nil) != tt.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}
