package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func labWorld() World {
	return World{
		Users: []User{{Name: "alice"}, {Name: "bob", Groups: []string{"admins"}}, {Name: "carol"}, {Name: "dave"}, {Name: "eve", Disabled: true}},
		Nodes: []Node{
			{Name: "vps", Role: Relay, Addresses: []netip.Addr{addr("172.18.0.10")}},
			{Name: "gw", Role: Gateway, Addresses: []netip.Addr{addr("172.18.0.200")}, Routes: []netip.Prefix{prefix("192.168.1.0/24")}},
			{Name: "alice-1", User: "alice", Role: Member, Addresses: []netip.Addr{addr("172.18.0.11")}},
			{Name: "alice-2", User: "alice", Role: Member, Addresses: []netip.Addr{addr("172.18.0.12")}},
			{Name: "bob-1", User: "bob", Role: Member, Addresses: []netip.Addr{addr("172.18.0.13")}},
			{Name: "dave-1", User: "dave", Role: Member, Addresses: []netip.Addr{addr("172.18.0.14")}},
			{Name: "eve-1", User: "eve", Role: Member, Addresses: []netip.Addr{addr("172.18.0.15")}},
			{Name: "laser", Role: Member, Tags: []string{"printer"}, Addresses: []netip.Addr{addr("172.18.0.16")}},
			{Name: "mower", Role: Member, Tags: []string{"robot"}, Addresses: []netip.Addr{addr("172.18.0.17")}},
		},
	}
}

func who(t testing.TB, s string) Term {
	t.Helper()
	w, err := ParseSource(s)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func target(t testing.TB, s string) Target {
	t.Helper()
	to, err := ParseTarget(s)
	if err != nil {
		t.Fatal(err)
	}
	return to
}

func TestReaches(t *testing.T) {
	p, w := mustParse(t, labText), labWorld()
	if err := p.Check(w); err != nil {
		t.Fatal(err)
	}
	if err := p.RunTests(w); err != nil {
		t.Fatal(err)
	}
	until := time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC) // a Monday
	r := Resolve(p, w, []Grant{{ID: "7", User: "alice", To: target(t, "192.168.1.50:80"), Until: until}})
	for _, c := range []struct {
		who, to       string
		at            time.Time
		allowed, part bool
		rule          string
	}{
		{"alice", "nas:22", time.Time{}, true, true, "students-ssh"},
		{"node:alice-2", "192.168.1.201:22", time.Time{}, true, true, "students-ssh"},
		{"alice", "192.168.1.202:22", time.Time{}, false, false, ""},
		{"alice", "lab:22", time.Time{}, false, true, "students-ssh"},
		{"alice", "nas:22-23", time.Time{}, false, true, "students-ssh"},
		{"alice", "nas", time.Time{}, false, true, "students-ssh"},
		{"bob", "192.168.1.7:1234/udp", time.Time{}, true, true, p.Rules[1].Name},
		{"tag:robot", "alice-1:22", time.Time{}, true, true, p.Rules[1].Name},
		{"node:mower", "alice-1:22", time.Time{}, true, true, p.Rules[1].Name},
		{"bob", "8.8.8.8", time.Time{}, false, false, ""},
		{"eve", "laser:631", until, false, false, ""},
		{"dave", "laser:631", until, true, true, "office"},
		{"dave", "laser:631", until.Add(12 * time.Hour), false, false, ""},
		{"dave", "laser:9100-9102", until, true, true, "office"},
		{"dave", "gw:161/udp", until, true, true, "office"},
		{"alice", "192.168.1.50:80", until.Add(-time.Second), true, true, "grant:7"},
		{"alice", "192.168.1.50:80", until, false, false, ""},
		{"nobody", "nas:22", time.Time{}, false, false, ""},
	} {
		v := r.Reaches(who(t, c.who), target(t, c.to), c.at)
		if v.Allowed != c.allowed || v.Partly != c.part || v.Rule != c.rule || !v.Partly && v.Why == "" {
			t.Errorf("%s to %s at %s: %+v", c.who, c.to, c.at, v)
		}
	}
	if v := r.Reaches(who(t, "bob"), target(t, "192.168.1.7"), until); !slices.Equal(v.Nodes, []string{"gw"}) {
		t.Errorf("%v receive for the LAN", v.Nodes)
	}
	var names []string
	for _, a := range r.WhoReaches(target(t, "nas:22"), until) {
		names = append(names, a.Who.String())
	}
	if got := strings.Join(names, " "); got != "user:alice user:bob user:carol node:mower" {
		t.Errorf("the nas is reached by %s", got)
	}
}

func TestFailedTests(t *testing.T) {
	p := mustParse(t, `
rules:
  - {name: x, src: alice, dst: 192.168.1.0/24, ports: tcp/22}
tests:
  - who: alice
    accept: 192.168.1.7:23
    deny:
      - 192.168.0.0/16:22
`)
	err := p.RunTests(labWorld())
	want := `line 6: test: user:alice must reach 192.168.1.7:23/tcp and does not: no rule lets user:alice reach 192.168.1.7:23/tcp
hint: add a rule that allows it, or correct the test
line 8: test: user:alice must not reach 192.168.0.0/16:22/tcp, but rule x allows it
hint: narrow the rule x, or correct the test`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

// TestTestsAreAboutThePolicy: who is disabled today is not asked for; what the
// policy gives them has to be right when they are back.
func TestTestsAreAboutThePolicy(t *testing.T) {
	p := mustParse(t, `
rules:
  - {name: x, src: alice, dst: 192.168.1.7, ports: tcp/22}
  - {name: y, src: group:admins, dst: 192.168.1.8, ports: tcp/22}
tests:
  - {who: alice, accept: "192.168.1.7:22"}
  - {who: bob, accept: "192.168.1.8:22"}
`)
	w := labWorld()
	w.Idle = []string{"admins"}
	for i := range w.Users {
		w.Users[i].Disabled = true
	}
	if err := p.RunTests(w); err != nil {
		t.Errorf("somebody who is disabled must reach something: %v", err)
	}
	p = mustParse(t, "rules:\n  - {name: x, src: alice, dst: 192.168.1.7}\ntests:\n  - {who: alice, deny: \"192.168.1.7:22\"}\n")
	if err := p.RunTests(w); err == nil {
		t.Error("somebody who is disabled must not reach something, and would")
	}
	if r := Resolve(p, w, nil); r.Reaches(Term{Kind: KindUser, Name: "alice"}, target(t, "192.168.1.7:22"), time.Time{}).Partly || !w.Users[0].Disabled {
		t.Error("the tests let somebody in")
	}
}

// TestIdleGroup: a group that stands for nobody gives its members nothing, of the
// network's and of the policy's alike.
func TestIdleGroup(t *testing.T) {
	p := mustParse(t, "groups: {night: [alice]}\nrules:\n  - {src: group:admins, dst: 192.168.1.8}\n  - {src: night, dst: 192.168.1.7}\n")
	reach := func(w World, user, to string) bool {
		return Resolve(p, w, nil).Reaches(Term{Kind: KindUser, Name: user}, target(t, to), time.Time{}).Allowed
	}
	w := labWorld()
	if !reach(w, "bob", "192.168.1.8:22") || !reach(w, "alice", "192.168.1.7:22") {
		t.Fatal("the groups give nothing to begin with")
	}
	w.Idle = []string{"admins", "night"}
	if reach(w, "bob", "192.168.1.8:22") || reach(w, "alice", "192.168.1.7:22") {
		t.Error("an idle group gives something")
	}
}

func TestCheck(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"rules:\n  - {src: alic, dst: gw}", "line 2: there is no user or group alic\nhint: did you mean alice?"},
		{"rules:\n  - {src: admin, dst: gw}", "line 2: there is no user or group admin\nhint: did you mean group:admins?"},
		{"rules:\n  - {src: zed, dst: gw}", "line 2: there is no user or group zed\nhint: overlayd users add zed; or write group:zed after overlayd groups add zed"},
		{"rules:\n  - {src: user:zed, dst: gw}", "line 2: there is no user zed\nhint: overlayd users add zed"},
		{"rules:\n  - {src: admins, dst: gw}", "line 2: there is no user admins, but a group\nhint: write group:admins"},
		{"rules:\n  - {src: group:admin, dst: gw}", "line 2: there is no group admin\nhint: did you mean admins?"},
		{"rules:\n  - {src: tag:robt, dst: gw}", "line 2: nothing has the tag robt\nhint: did you mean robot?"},
		{"rules:\n  - src: bob\n    dst:\n      - gw\n      - nsa\nhosts: {nas: 10.0.0.1}", "line 5: there is no host or node nsa\nhint: did you mean nas?"},
		{"hosts: {gw: 10.0.0.1}\nrules:\n  - {src: bob, dst: gw}", "line 3: gw is both a host and a node\nhint: write host:gw or node:gw"},
		{"groups: {bob: [alice]}\nrules:\n  - {src: bob, dst: gw}", "line 3: bob is both a group and a user\nhint: write group:bob or user:bob"},
		{"groups: {bob: [alice]}\nrules:\n  - {src: group:bob, dst: node:gw}", ""},
		{"groups: {x: [mallory]}\nrules: []", "line 1: there is no user mallory\nhint: overlayd users add mallory"},
		{"rules: []\ntests:\n  - {who: zed, deny: gw}", "line 3: there is no user zed\nhint: overlayd users add zed"},
	} {
		err := mustParse(t, c.text).Check(labWorld())
		if got := fmt.Sprint(err); got != c.want && (c.want != "" || err != nil) {
			t.Errorf("%s\ngives %s\nwant  %s", c.text, got, c.want)
		}
	}
}

func TestCheckGrant(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	p, w := mustParse(t, labText), labWorld()
	ok := Grant{User: "alice", To: target(t, "nas:80"), Until: now.Add(time.Hour)}
	if err := p.CheckGrant(w, ok, now); err != nil {
		t.Error(err)
	}
	for _, change := range []func(*Grant){
		func(g *Grant) { g.User = "alicia" }, func(g *Grant) { g.Until = now }, func(g *Grant) { g.Until = time.Time{} },
		func(g *Grant) { g.NotBefore = now.Add(2 * time.Hour) }, func(g *Grant) { g.To = target(t, "nase:80") },
	} {
		g := ok
		change(&g)
		if p.CheckGrant(w, g, now) == nil {
			t.Errorf("%+v is taken", g)
		}
	}
}

// TestWarnings: what rules and grants open that nobody has, each once, where it is
// first said.
func TestWarnings(t *testing.T) {
	const text = `hosts: {nas: 192.168.1.201, far: [192.168.1.7, 10.9.0.1], away: 10.8.0.0/16}
rules:
  - {src: alice, dst: [nas, routes, "*", gw, 172.18.0.0/24, 192.168.0.0/16, 172.18.0.15]}
  - {src: alice, dst: far}
  - {src: bob, dst: [far, away, 172.18.0.99]}
`
	p, w := mustParse(t, text), labWorld()
	w.Nodes[1].Disabled = true // the gateway may be back
	got := p.Warnings(w).Lines()
	want := []string{
		"line 4: no gateway carries 10.9.0.1, which is far, and no machine of the network has it",
		"line 5: no gateway carries 172.18.0.99 and no machine of the network has it",
		"line 5: no gateway carries 10.8.0.0/16, which is away, and no machine of the network has it",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	warning := p.Warning(w)
	for to, want := range map[string]string{"nas:22": "", "192.168.1.3:80": "", "gw": "", "routes": "", "far/icmp": "10.9.0.1, which is far,", "10.1.2.3:22": "10.1.2.3 and"} {
		if got := warning(target(t, to)); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s: %q", to, got)
		}
	}
	many := make(Problems, 2*manyProblems)
	for i := range many {
		many[i] = &Problem{}
	}
	if lines := many.Lines(); len(lines) != manyProblems+1 || lines[manyProblems] != "and 20 more" {
		t.Errorf("%d lines", len(lines))
	}
}

func TestSchedule(t *testing.T) {
	berlin := mustParse(t, labText).Rules[2].When
	night := Schedule{Days: []time.Weekday{time.Friday}, Hours: []Hours{{22 * 60, 6 * 60}}}
	at := func(s string) time.Time {
		v, err := time.Parse(time.RFC3339, s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, c := range []struct {
		s     Schedule
		at    string
		on    bool
		until string
	}{
		{Schedule{}, "2026-03-02T12:00:00Z", true, ""},
		{berlin, "2026-03-02T07:00:00Z", true, "2026-03-02T17:00:00Z"},
		{berlin, "2026-03-02T06:59:59Z", false, "2026-03-02T07:00:00Z"},
		{berlin, "2026-03-02T17:00:00Z", false, "2026-03-03T07:00:00Z"},
		{berlin, "2026-03-06T17:00:00Z", false, "2026-03-09T07:00:00Z"}, // over a weekend
		{berlin, "2026-03-30T06:00:00Z", true, "2026-03-30T16:00:00Z"},  // summer time
		{berlin, "2026-12-31T22:00:00Z", false, "2026-12-31T23:00:00Z"},
		{berlin, "2027-01-04T09:00:00Z", false, ""},
		{night, "2026-03-07T05:59:59Z", true, "2026-03-07T06:00:00Z"},
		{night, "2026-03-06T05:00:00Z", false, "2026-03-06T22:00:00Z"},
		{night, "2026-03-07T22:00:00Z", false, "2026-03-13T22:00:00Z"},
		{Schedule{NotBefore: at("2026-01-01T00:00:00Z")}, "2025-12-31T00:00:00Z", false, "2026-01-01T00:00:00Z"},
		{Schedule{Until: at("2026-01-01T00:00:00Z")}, "2025-12-31T00:00:00Z", true, "2026-01-01T00:00:00Z"},
	} {
		on, until := c.s.Active(at(c.at))
		want := time.Time{}
		if c.until != "" {
			want = at(c.until)
		}
		if on != c.on || !until.Equal(want) {
			t.Errorf("%s at %s: %t until %s", c.s, c.at, on, until)
		}
	}
}

func TestCompile(t *testing.T) {
	p, w := mustParse(t, labText), labWorld()
	r := Resolve(p, w, nil)
	s := r.For("gw")
	var lines []string
	for _, rule := range s.Rules {
		lines = append(lines, fmt.Sprintf("%s%v%v", rule.Name, rule.From, rule.To))
	}
	for _, set := range append(s.From, s.To...) {
		lines = append(lines, fmt.Sprintf("%s%v", set.ID, set.Prefixes))
	}
	want := []string{
		"office[*][node:gw]", p.Rules[1].Name + "[tag:robot user:bob][*]", "students-ssh[group:students][host:nas]",
		"*[172.18.0.10/32 172.18.0.11/32 172.18.0.12/32 172.18.0.13/32 172.18.0.14/32 172.18.0.16/32 172.18.0.17/32]",
		"group:students[172.18.0.11/32 172.18.0.12/32]", "tag:robot[172.18.0.17/32]", "user:bob[172.18.0.13/32]",
		"*[172.18.0.200/32 192.168.1.0/24]", "host:nas[192.168.1.201/32]", "node:gw[172.18.0.200/32]",
	}
	if d := cmp.Diff(want, lines); d != "" {
		t.Error(d)
	}
	if peers := r.Peers("alice-1"); !slices.Equal(peers, []string{"bob-1", "gw", "laser", "mower"}) {
		t.Errorf("alice's peers are %v", peers)
	}
	if s := r.For("eve-1"); len(s.Rules)+len(s.Sources) != 0 {
		t.Errorf("a disabled node gets %+v", s)
	}
	// A member that only reaches, and is not reached, knows those it reaches.
	if s := Compile(mustParse(t, Default), w, "alice-1", nil); len(s.Rules) != 0 || len(s.Sources) != 2 {
		t.Errorf("the default policy gives alice %+v", s)
	}
}

// What Compile gives must be the same as what Reaches says, for everybody and
// every address.
func TestCompileAgainstReaches(t *testing.T) {
	p, w := mustParse(t, labText), labWorld()
	r := Resolve(p, w, nil)
	for _, at := range []time.Time{time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC), time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)} {
		for _, n := range r.nodes {
			set := r.For(n.Name)
			for _, from := range r.nodes {
				if from.Name == n.Name {
					continue
				}
				for _, to := range []string{n.Addresses[0].String(), "192.168.1.201", "192.168.1.7", "10.9.0.1"} {
					if to != n.Addresses[0].String() && n.Name != "gw" {
						continue
					}
					for _, service := range []string{":22", ":22/udp", ":631", ":161/udp", "/icmp"} {
						v := r.Reaches(Term{Kind: KindNode, Name: from.Name}, target(t, to+service), at)
						allowed := v.Allowed && len(v.Nodes) > 0
						if got := set.allows(from.Addresses[0], addr(to), target(t, to+service).Services[0], at); got != allowed {
							t.Errorf("%s to %s%s at %s: compiled %t, reaches %+v", from.Name, to, service, at, got, v)
						}
					}
				}
			}
		}
	}
}

// allows is the slow reading of a ruleset.
func (s Ruleset) allows(from, to netip.Addr, service Service, at time.Time) bool {
	in := func(sets []Set, ids []string, a netip.Addr) bool {
		return slices.ContainsFunc(sets, func(x Set) bool {
			return slices.Contains(ids, x.ID) && slices.ContainsFunc(x.Prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
		})
	}
	return slices.ContainsFunc(s.Rules, func(r NodeRule) bool {
		on, _ := r.When.Active(at)
		return on && in(s.From, r.From, from) && in(s.To, r.To, to) &&
			slices.ContainsFunc(r.Services, func(x Service) bool { return x.covers(service) })
	})
}

func TestDelta(t *testing.T) {
	w := labWorld()
	old := Compile(mustParse(t, labText), w, "gw", nil)
	text := strings.Replace(labText, "[carol, alice]", "[carol]", 1)
	next := Compile(mustParse(t, text), w, "gw", []Grant{{ID: "1", User: "alice", To: target(t, "192.168.1.7:80"), Until: time.Unix(2e9, 0)}})
	d := old.Diff(next)
	if len(d.Sources)+len(d.DropSources)+len(d.DropRules) != 0 || len(d.Rules) != 1 || len(d.From) != 2 || len(d.To) != 1 || d.Own {
		t.Errorf("the delta is %+v", d)
	}
	// It crosses the wire.
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	var wire Delta
	if err := json.Unmarshal(b, &wire); err != nil {
		t.Fatal(err)
	}
	got, err := old.Apply(wire)
	if err != nil {
		t.Fatalf("%v, delta %s", err, b)
	}
	same := cmp.Options{cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmpopts.IgnoreUnexported(Schedule{})}
	if d := cmp.Diff(next, got, same); d != "" {
		t.Error(d)
	}
	if _, err := next.Apply(wire); !errors.Is(err, ErrBase) {
		t.Errorf("a delta for another ruleset: %v", err)
	}
}

// Any ruleset becomes any other, and applying changes nothing in the old one.
func TestDeltaRandom(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	random := func() Ruleset {
		w := labWorld()
		rnd.Shuffle(len(w.Nodes), func(i, j int) { w.Nodes[i], w.Nodes[j] = w.Nodes[j], w.Nodes[i] })
		w.Nodes = w.Nodes[:rnd.IntN(len(w.Nodes)+1)]
		w.Users[rnd.IntN(len(w.Users))].Disabled = rnd.IntN(2) == 0
		p := mustParse(t, labText)
		p.Rules = p.Rules[rnd.IntN(len(p.Rules)):]
		return Compile(p, w, "gw", nil)
	}
	s := random()
	for range 500 {
		next := random()
		before := s.Digest()
		got, err := s.Apply(s.Diff(next))
		if err != nil || got.Digest() != next.Digest() || s.Digest() != before {
			t.Fatalf("%v: from %+v to %+v came %+v", err, s, next, got)
		}
		s = got
	}
}

// bigPolicy has 1,000 users with a node each and 10,000 rules.
func bigPolicy(t testing.TB) (*Policy, World) {
	var w World
	w.Nodes = append(w.Nodes, Node{Name: "gw", Role: Gateway, Addresses: []netip.Addr{addr("10.64.255.1")}, Routes: []netip.Prefix{prefix("192.168.0.0/16")}})
	for i := range 1000 {
		name := fmt.Sprintf("user%d", i)
		w.Users = append(w.Users, User{Name: name, Groups: []string{fmt.Sprintf("group%d", i%50)}})
		w.Nodes = append(w.Nodes, Node{Name: name, User: name, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 64, byte(i / 250), byte(i%250 + 1)})}})
	}
	var b strings.Builder
	b.WriteString("rules:\n")
	for i := range 10000 {
		src := fmt.Sprintf("user%d", i%1000)
		if i%3 == 0 {
			src = fmt.Sprintf("group:group%d", i%50)
		}
		fmt.Fprintf(&b, "  - name: r%d\n    src: %s\n    dst: 192.168.%d.%d\n    ports: [tcp/%d, udp/53]\n", i, src, i/250%100, i%250+1, 20+i%7)
	}
	return mustParse(t, b.String()), w
}

// TestBigPolicy: it is compiled in time, and a small change is told in few bytes.
func TestBigPolicy(t *testing.T) {
	const (
		promised = time.Second
		slack    = 5 // a machine that is busy with other tests, and the race detector
		few      = 512
	)
	p, w := bigPolicy(t)
	best := time.Hour
	var old Ruleset
	for range 3 {
		began := time.Now()
		old = Compile(p, w, "gw", nil)
		best = min(best, time.Since(began))
	}
	t.Logf("compiled in %v", best)
	if best > slack*promised || len(old.Rules) != 10000 || len(old.Sources) != 1000 {
		t.Errorf("%d rules for %d sources are compiled in %v", len(old.Rules), len(old.Sources), best)
	}
	w.Users = slices.Clone(w.Users)
	w.Users[7].Groups = nil
	next := Compile(p, w, "gw", nil)
	wire, err := json.Marshal(old.Diff(next))
	if err != nil {
		t.Fatal(err)
	}
	var d Delta
	if err := json.Unmarshal(wire, &d); err != nil {
		t.Fatal(err)
	}
	if got, err := old.Apply(d); err != nil || got.Digest() != next.Digest() || len(wire) > few {
		t.Errorf("who leaves a group is told in %d bytes: %v", len(wire), err)
	}
}

func BenchmarkParse(b *testing.B) {
	p, _ := bigPolicy(b)
	text := []byte(p.String())
	for b.Loop() {
		if _, err := Parse(text); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCompile resolves the big policy and compiles it for its gateway.
func BenchmarkCompile(b *testing.B) {
	p, w := bigPolicy(b)
	for b.Loop() {
		if s := Compile(p, w, "gw", nil); len(s.Rules) != 10000 {
			b.Fatalf("%d rules", len(s.Rules))
		}
	}
}

// BenchmarkCompileAll does it for each of the 1,001 nodes.
func BenchmarkCompileAll(b *testing.B) {
	p, w := bigPolicy(b)
	for b.Loop() {
		r := Resolve(p, w, nil)
		for _, n := range w.Nodes {
			r.For(n.Name)
		}
	}
}

// BenchmarkDelta finds what one user's leaving a group changes.
func BenchmarkDelta(b *testing.B) {
	p, w := bigPolicy(b)
	old := Compile(p, w, "gw", nil)
	w.Users = slices.Clone(w.Users)
	w.Users[7].Groups = nil
	next := Compile(p, w, "gw", nil)
	size := 0
	for b.Loop() {
		d := old.Diff(next)
		wire, err := json.Marshal(d)
		if err != nil {
			b.Fatal(err)
		}
		size = len(wire)
	}
	b.ReportMetric(float64(size), "bytes")
}

// FuzzRuleset: whatever reads as a ruleset or a delta is written and read again
// as the same, and applying it to anything never panics.
func FuzzRuleset(f *testing.F) {
	p, err := Parse([]byte(labText))
	if err != nil {
		f.Fatal(err)
	}
	s := Compile(p, labWorld(), "gw", nil)
	for _, v := range []any{s, s.Diff(Ruleset{Node: "gw"}), Ruleset{Node: "gw"}.Diff(s)} {
		b, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var set Ruleset
		if json.Unmarshal(b, &set) == nil {
			again, err := json.Marshal(set)
			if err != nil {
				t.Fatal(err)
			}
			var second Ruleset
			if err := json.Unmarshal(again, &second); err != nil || second.Digest() != set.Digest() {
				t.Fatalf("%v: %s becomes %s", err, b, again)
			}
		}
		var d Delta
		if json.Unmarshal(b, &d) == nil {
			d.Base = set.Digest()
			_, _ = set.Apply(d)
		}
	})
}

func FuzzTarget(f *testing.F) {
	for _, s := range []string{"nas:22", "192.168.1.0/24:80,443/udp", "[fd00::1]:22", "tag:x:1-2/tcp", "*", "fd00::/8", "routes/icmp"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		target, err := ParseTarget(s)
		if err != nil {
			return
		}
		if again, err := ParseTarget(target.String()); err != nil || again.String() != target.String() {
			t.Fatalf("%q is %s, which is %s, %v", s, target, again, err)
		}
	})
}
