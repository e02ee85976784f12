package policy

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// hostedWorld is the lab with a device of alice's and a seat of bob's at vps.
func hostedWorld() World {
	w := labWorld()
	w.Nodes = append(w.Nodes,
		Node{Name: "phone", User: "alice", Role: Member, Addresses: []netip.Addr{addr("172.18.0.30")}, Host: "vps"},
		Node{Name: "bob-at-vps", User: "bob", Role: Member, Addresses: []netip.Addr{addr("172.18.0.31")}, Host: "vps", Seat: true})
	return w
}

// carolsWorld has a machine of carol's, too.
func carolsWorld() World {
	w := hostedWorld()
	w.Nodes = append(w.Nodes, Node{Name: "carol-1", User: "carol", Role: Member, Addresses: []netip.Addr{addr("172.18.0.18")}})
	return w
}

const hostedPolicy = `
rules:
  - {name: nas, src: [alice, bob], dst: 192.168.1.201, ports: tcp/80}
  - {name: ring, src: carol, dst: node:phone, ports: tcp/9}
  - {name: own, src: alice, dst: relays, ports: tcp/22}
  - {name: near, src: alice-2, dst: 172.18.0.0/24, ports: tcp/7}
hosts: {none: 10.9.9.9}
groups: {alice-2: [dave]}
`

func TestHosted(t *testing.T) {
	p := mustParse(t, hostedPolicy)
	r := Resolve(p, carolsWorld(), nil)

	gw := r.For("gw")
	var sources []string
	for _, s := range gw.Sources {
		sources = append(sources, s.Node)
	}
	if want := []string{"alice-1", "alice-2", "bob-1", "dave-1", "phone", "bob-at-vps"}; !slices.Equal(sources, want) {
		t.Errorf("the gateway's sources are %v", sources)
	}
	if peers := r.Peers("gw"); !slices.Equal(peers, []string{"alice-1", "alice-2", "bob-1", "bob-at-vps", "dave-1", "phone", "vps"}) {
		t.Errorf("on the gateway's map are %v", peers)
	}

	vps := r.For("vps")
	if !slices.Equal(vps.Self, []netip.Addr{addr("172.18.0.10")}) || !slices.Equal(vps.Hosted, []netip.Addr{addr("172.18.0.30"), addr("172.18.0.31")}) {
		t.Errorf("the carrier has %v and %v", vps.Self, vps.Hosted)
	}
	sources = sources[:0]
	for _, s := range vps.Sources {
		sources = append(sources, s.Node)
	}
	if want := []string{"alice-1", "alice-2", "dave-1", "carol-1", "phone", "gw"}; !slices.Equal(sources, want) {
		t.Errorf("the carrier's sources are %v", sources)
	}
	to := map[string][]netip.Prefix{}
	for _, s := range vps.To {
		to[s.ID] = s.Prefixes
	}
	want := map[string][]netip.Prefix{
		// What the phone may begin elsewhere, which is alice's, and not bob's.
		"192.168.1.201 onward": {prefix("192.168.1.201/32")},
		"relays onward":        {prefix("172.18.0.10/32")},

		"node:phone":    {prefix("172.18.0.30/32")},
		"relays":        {prefix("172.18.0.10/32")},
		"172.18.0.0/24": {prefix("172.18.0.10/32"), prefix("172.18.0.30/32")}, // and not the seat
	}
	if d := cmp.Diff(want, to, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Errorf("the carrier lets reach:\n%s", d)
	}
	from := map[string][]netip.Prefix{}
	for _, s := range vps.From {
		if strings.HasSuffix(s.ID, onward) {
			from[s.ID] = s.Prefixes
		}
	}
	if want := (map[string][]netip.Prefix{"user:alice onward": {prefix("172.18.0.30/32")}}); !maps.EqualFunc(from, want, slices.Equal) {
		t.Errorf("what goes on is from %v", from)
	}
	if !slices.IsSortedFunc(vps.Rules, func(a, b NodeRule) int { return compareIDs(a.ID, b.ID) }) {
		t.Errorf("the rules are out of order: %+v", vps.Rules)
	}
	if peers := r.Peers("phone"); !slices.Equal(peers, []string{"carol-1", "dave-1", "gw", "vps"}) {
		t.Errorf("a revocation of the phone concerns %v", peers)
	}

	for _, c := range []struct {
		who, to string
		want    bool
	}{{"carol", "node:phone:9", true}, {"bob", "node:phone:9", false}, {"dave", "172.18.0.31:7", false}, {"dave", "172.18.0.30:7", true}, {"node:phone", "192.168.1.201:80", true}} {
		if v := r.Reaches(who(t, c.who), target(t, c.to), time.Time{}); v.Allowed != c.want {
			t.Errorf("%s to %s: %+v", c.who, c.to, v)
		}
	}
}

// A change of what a node carries is a change of its rules, and of no others' digest
// than before there were such members.
func TestHostedChange(t *testing.T) {
	p := mustParse(t, hostedPolicy)
	vps := Resolve(p, carolsWorld(), nil).For("vps")
	before := Resolve(p, labWorld(), nil).For("vps")
	after, err := before.Apply(before.Diff(vps))
	if err != nil || after.Digest() != vps.Digest() || before.Digest() == vps.Digest() {
		t.Errorf("the change brought %+v (%v)", after, err)
	}
	plain := vps
	plain.Hosted = nil
	if plain.Digest() == vps.Digest() {
		t.Error("the digest leaves out what is carried")
	}
}
