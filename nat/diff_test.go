package nat

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var gateway = Ruleset{
	Link:    "ovl0",
	Overlay: netip.MustParsePrefix("172.18.0.0/24"),
	LANs:    []LAN{{netip.MustParsePrefix("192.168.1.0/24"), "eth0"}},
	MTU:     1420,
}

func TestRulesetString(t *testing.T) {
	member := Ruleset{Link: "ovl0", Overlay: gateway.Overlay}
	two := gateway
	two.MTU = 0
	two.LANs = append(slices.Clone(two.LANs), LAN{netip.MustParsePrefix("192.168.2.0/24"), "eth0"})
	for _, tt := range []struct {
		name string
		r    Ruleset
		want string
	}{
		{"gateway", gateway, `
iptables -t filter -N OVL-FWD
iptables -t filter -A OVL-FWD -d 172.18.0.0/24 -o ovl0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -t filter -A OVL-FWD -i ovl0 -m conntrack --ctstate RELATED,ESTABLISHED --ctdir REPLY -j ACCEPT
iptables -t filter -A OVL-FWD -s 172.18.0.0/24 -d 192.168.1.0/24 -i ovl0 -o eth0 -j ACCEPT
iptables -t filter -A OVL-FWD -i ovl0 -j DROP
iptables -t filter -A OVL-FWD -o ovl0 -j DROP
iptables -t filter -I FORWARD 1 -j OVL-FWD
iptables -t filter -N OVL-IN
iptables -t filter -A OVL-IN -d 172.18.0.0/24 -i eth0 -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP
iptables -t filter -I INPUT 1 -j OVL-IN
iptables -t nat -N OVL-POST
iptables -t nat -A OVL-POST -s 172.18.0.0/24 -d 192.168.1.0/24 -o eth0 -j MASQUERADE --random-fully
iptables -t nat -I POSTROUTING 1 -j OVL-POST
iptables -t mangle -N OVL-MSS
iptables -t mangle -A OVL-MSS -i ovl0 -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
iptables -t mangle -A OVL-MSS -i ovl0 -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1380
iptables -t mangle -A OVL-MSS -o ovl0 -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
iptables -t mangle -A OVL-MSS -o ovl0 -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1380
iptables -t mangle -I FORWARD 1 -j OVL-MSS
`},
		{"no gateway: nothing out of the tunnel", Ruleset{Link: "ovl0", Overlay: gateway.Overlay, Guest: true}, `
iptables -t filter -N OVL-FWD
iptables -t filter -A OVL-FWD -i ovl0 -m conntrack --ctstate RELATED,ESTABLISHED --ctdir REPLY -j ACCEPT
iptables -t filter -A OVL-FWD -i ovl0 -j DROP
iptables -t filter -I FORWARD 1 -j OVL-FWD
`},
		{"no LAN: nothing through the tunnel", member, `
iptables -t filter -N OVL-FWD
iptables -t filter -A OVL-FWD -d 172.18.0.0/24 -o ovl0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -t filter -A OVL-FWD -i ovl0 -m conntrack --ctstate RELATED,ESTABLISHED --ctdir REPLY -j ACCEPT
iptables -t filter -A OVL-FWD -i ovl0 -j DROP
iptables -t filter -A OVL-FWD -o ovl0 -j DROP
iptables -t filter -I FORWARD 1 -j OVL-FWD
`},
		{"two networks on one link", two, `
iptables -t filter -N OVL-FWD
iptables -t filter -A OVL-FWD -d 172.18.0.0/24 -o ovl0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -t filter -A OVL-FWD -i ovl0 -m conntrack --ctstate RELATED,ESTABLISHED --ctdir REPLY -j ACCEPT
iptables -t filter -A OVL-FWD -s 172.18.0.0/24 -d 192.168.1.0/24 -i ovl0 -o eth0 -j ACCEPT
iptables -t filter -A OVL-FWD -s 172.18.0.0/24 -d 192.168.2.0/24 -i ovl0 -o eth0 -j ACCEPT
iptables -t filter -A OVL-FWD -i ovl0 -j DROP
iptables -t filter -A OVL-FWD -o ovl0 -j DROP
iptables -t filter -I FORWARD 1 -j OVL-FWD
iptables -t filter -N OVL-IN
iptables -t filter -A OVL-IN -d 172.18.0.0/24 -i eth0 -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP
iptables -t filter -I INPUT 1 -j OVL-IN
iptables -t nat -N OVL-POST
iptables -t nat -A OVL-POST -s 172.18.0.0/24 -d 192.168.1.0/24 -o eth0 -j MASQUERADE --random-fully
iptables -t nat -A OVL-POST -s 172.18.0.0/24 -d 192.168.2.0/24 -o eth0 -j MASQUERADE --random-fully
iptables -t nat -I POSTROUTING 1 -j OVL-POST
iptables -t mangle -N OVL-MSS
iptables -t mangle -A OVL-MSS -i ovl0 -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
iptables -t mangle -A OVL-MSS -o ovl0 -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
iptables -t mangle -I FORWARD 1 -j OVL-MSS
`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(strings.TrimPrefix(tt.want, "\n"), tt.r.String()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func lines(steps []step) string {
	var b strings.Builder
	for _, s := range steps {
		fmt.Fprintln(&b, s)
	}
	return b.String()
}

func TestLead(t *testing.T) {
	c := chain{table: "filter", name: "OVL-FWD", from: "FORWARD"}
	const a, b, docker = "-j OVL-FWD", "-m comment --comment overlayd -j OVL-FWD", "-j DOCKER-USER"
	for _, tt := range []struct {
		name string
		have []string
		want string
	}{
		{"in place", []string{a, docker}, ""},
		{"in place after a move", []string{b, docker}, ""},
		{"missing", []string{docker}, "iptables -t filter -I FORWARD 1 -j OVL-FWD\n"},
		{"pushed down", []string{docker, a}, `iptables -t filter -I FORWARD 1 -m comment --comment overlayd -j OVL-FWD
iptables -t filter -D FORWARD -j OVL-FWD
`},
		{"pushed down after a move", []string{docker, b}, `iptables -t filter -I FORWARD 1 -j OVL-FWD
iptables -t filter -D FORWARD -m comment --comment overlayd -j OVL-FWD
`},
		{"twice", []string{a, docker, a}, `iptables -t filter -I FORWARD 1 -m comment --comment overlayd -j OVL-FWD
iptables -t filter -D FORWARD -j OVL-FWD
iptables -t filter -D FORWARD -j OVL-FWD
`},
		{"a crash in a move", []string{b, docker, a}, "iptables -t filter -D FORWARD -j OVL-FWD\n"},
		{"both pushed down", []string{docker, b, a}, `iptables -t filter -D FORWARD -j OVL-FWD
iptables -t filter -I FORWARD 1 -j OVL-FWD
iptables -t filter -D FORWARD -m comment --comment overlayd -j OVL-FWD
`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, lines(lead(c, tt.have))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// play runs steps on a picture of the firewall, as iptables would.
func play(t *testing.T, s saved, steps []step) {
	for _, st := range steps {
		rules := s[st.table][st.chain]
		exists := s.has(st.table, st.chain)
		if exists == (st.op == newChain) {
			t.Fatalf("%s: chain exists: %v", st, exists)
		}
		switch st.op {
		case newChain:
			rules = []string{}
		case insertRule:
			rules = slices.Insert(slices.Clone(rules), st.pos-1, st.rule)
		case appendRule:
			rules = append(slices.Clone(rules), st.rule)
		case deleteRule, deleteAt:
			i := st.pos - 1
			if st.op == deleteRule {
				i = slices.Index(rules, st.rule)
			}
			if i < 0 || i >= len(rules) {
				t.Fatalf("%s: no such rule in %q", st, rules)
			}
			rules = slices.Delete(slices.Clone(rules), i, i+1)
		case flushChain:
			rules = nil
		case deleteChain:
			for name, other := range s[st.table] {
				for _, rule := range other {
					if target(rule) == st.chain {
						t.Fatalf("%s: %s jumps there", st, name)
					}
				}
			}
			if len(rules) > 0 {
				t.Fatalf("%s: not empty", st)
			}
			delete(s[st.table], st.chain)
			continue
		}
		s[st.table][st.chain] = rules
	}
}

// foreign is a firewall without us.
func foreign() saved {
	return saved{
		"filter": {
			"INPUT": {"-i lo -j ACCEPT"}, "OUTPUT": nil,
			"FORWARD":     {"-j DOCKER-USER", "-i docker0 -j ACCEPT"},
			"DOCKER-USER": {"-j RETURN"},
		},
		"nat":    {"PREROUTING": nil, "POSTROUTING": {"-s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"}},
		"mangle": {"FORWARD": nil},
	}
}

func randomRuleset(r *rand.Rand) Ruleset {
	rs := Ruleset{Link: "ovl0", Overlay: gateway.Overlay, MTU: []int{0, 1280, 1420}[r.IntN(3)]}
	for _, n := range r.Perm(4)[:r.IntN(4)] {
		rs.LANs = append(rs.LANs, LAN{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(n), 0}), 24),
			fmt.Sprintf("eth%d", r.IntN(2)),
		})
	}
	return rs
}

// TestDiffConverges applies random rulesets one after the other, with crashes on
// the way and others moving our jumps. The firewall ends as the last one wants
// it, and after Clear as it was.
func TestDiffConverges(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	have := foreign()
	for i := range 1000 {
		if r.IntN(5) == 0 { // Docker restarts
			f := have["filter"]["FORWARD"]
			have["filter"]["FORWARD"] = append([]string{"-j DOCKER-USER"},
				slices.DeleteFunc(slices.Clone(f), func(s string) bool { return s == "-j DOCKER-USER" })...)
		}
		want := randomRuleset(r).chains(true)
		steps := diff(have, want)
		if r.IntN(4) == 0 {
			play(t, have, steps[:r.IntN(len(steps)+1)])
			continue
		}
		play(t, have, steps)
		for _, c := range want {
			if got := have[c.table][c.name]; !slices.Equal(got, c.rules) {
				t.Fatalf("round %d: %s: %q, want %q", i, c.name, got, c.rules)
			}
			if got := have[c.table][c.from]; target(got[0]) != c.name {
				t.Fatalf("round %d: %s: %q", i, c.from, got)
			}
		}
		if rest := diff(have, want); len(rest) > 0 {
			t.Fatalf("round %d: still to do: %v", i, rest)
		}
	}
	play(t, have, remove(have, func(string, string) bool { return true }))
	for table, chains := range have {
		if diff := cmp.Diff(slices.Sorted(maps.Keys(foreign()[table])), slices.Sorted(maps.Keys(chains))); diff != "" {
			t.Errorf("%s: %s", table, diff)
		}
	}
}

func TestValidate(t *testing.T) {
	change := func(f func(*Ruleset)) Ruleset {
		r := gateway
		r.LANs = slices.Clone(r.LANs)
		f(&r)
		return r
	}
	for _, tt := range []struct {
		name string
		r    Ruleset
		ok   bool
	}{
		{"good", gateway, true},
		{"empty", Ruleset{}, false},
		{"link is a pattern", change(func(r *Ruleset) { r.Link = "eth+" }), false},
		{"link is an option", change(func(r *Ruleset) { r.Link = "-j" }), false},
		{"link with a space", change(func(r *Ruleset) { r.LANs[0].Link = "a b" }), false},
		{"everything", change(func(r *Ruleset) { r.LANs[0].Prefix = netip.MustParsePrefix("0.0.0.0/0") }), false},
		{"IPv6", change(func(r *Ruleset) { r.Overlay = netip.MustParsePrefix("fd00::/64") }), false},
		{"mtu", change(func(r *Ruleset) { r.MTU = 30 }), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.r.validate(); (err == nil) != tt.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestParseSaved(t *testing.T) {
	const text = `# Generated by iptables-save v1.8.9 on Sat Nov 21 21:10:23 2026
*nat
:PREROUTING ACCEPT [0:0]
:OVL-POST - [0:0]
-A PREROUTING -m comment --comment "a b" -j RETURN
COMMIT
# Completed
-A PREROUTING -j LOST
*filter
:INPUT ACCEPT [0:0]
what is this
COMMIT
`
	want := saved{
		"nat":    {"PREROUTING": {`-m comment --comment "a b" -j RETURN`}, "OVL-POST": nil},
		"filter": {"INPUT": nil},
	}
	if diff := cmp.Diff(want, parseSaved(text)); diff != "" {
		t.Error(diff)
	}
}

func FuzzParseSaved(f *testing.F) {
	f.Add("*nat\n:OVL-POST - [0:0]\n-A POSTROUTING -j OVL-POST\n-A OVL-POST -j\nCOMMIT\n")
	f.Fuzz(func(t *testing.T, text string) {
		s := parseSaved(text)
		diff(s, gateway.chains(true))
		for _, st := range remove(s, func(string, string) bool { return true }) {
			if st.op != deleteRule && !isOurs(st.chain) {
				t.Errorf("touches what is not ours: %s", st)
			}
		}
	})
}

func TestLeftover(t *testing.T) {
	empty := func(name string) nftChain { return nftChain{name: name, base: true} }
	for _, tt := range []struct {
		name, described string
		chains          []nftChain
		want            []string
		whole           bool
	}{
		{"all ours", "absent", []nftChain{empty("FORWARD"), empty("INPUT")}, []string{"FORWARD", "INPUT"}, true},
		{"no chain left", "absent", []nftChain{}, nil, true},
		{"was there, empty", "chains", []nftChain{empty("FORWARD")}, []string{"FORWARD"}, false},
		{"had that chain", "chains INPUT", []nftChain{empty("FORWARD"), empty("INPUT")}, []string{"FORWARD"}, false},
		{"came into use", "absent", []nftChain{empty("FORWARD"), {name: "INPUT", base: true, used: true}}, []string{"FORWARD"}, false},
		{"somebody's chain", "absent", []nftChain{empty("FORWARD"), {name: "DOCKER"}}, []string{"FORWARD"}, false},
		{"somebody's hook", "absent", []nftChain{empty("mine")}, nil, false},
		{"a note that is not understood", "", []nftChain{empty("FORWARD")}, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			chains, whole := nftTables{"nat": tt.chains}.leftover("nat", tt.described)
			if !slices.Equal(chains, tt.want) || whole != tt.whole {
				t.Errorf("got %q, %v", chains, whole)
			}
		})
	}
	if _, whole := (nftTables{}).leftover("nat", absent); whole {
		t.Error("removes a table that is gone")
	}
}
