package coord

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"overlayd/overlay/policy"
)

func (n *network) user(name string, groups ...string) User {
	n.t.Helper()
	u, err := n.admin.AddUser(n.t.Context(), name, groups, nil)
	if err != nil {
		n.t.Fatal(err)
	}
	return u
}

func (n *network) apply(text string) {
	n.t.Helper()
	if _, err := n.admin.ApplyPolicy(n.t.Context(), text); err != nil {
		n.t.Fatal(err)
	}
}

func names(ns []Node) (list []string) {
	for _, n := range ns {
		list = append(list, n.Name)
	}
	return list
}

func sees(want ...string) func(*Map) bool {
	return func(m *Map) bool { return slices.Equal(names(m.Peers), want) }
}

func ruleNames(m *Map) (list []string) {
	for _, r := range m.Ruleset.Rules {
		list = append(list, r.ID)
	}
	return list
}

func enforces(want ...string) func(*Map) bool {
	return func(m *Map) bool { return m.Ruleset != nil && slices.Equal(ruleNames(m), want) }
}

func TestUsersAndGroups(t *testing.T) {
	n, ctx := newNetwork(t), t.Context()
	if _, err := n.admin.AddGroup(ctx, "students", nil); err != nil {
		t.Fatal(err)
	}
	alice := n.user("alice", "students")
	if !slices.Equal(alice.Groups, []string{"students"}) {
		t.Errorf("%+v", alice)
	}
	for name, want := range map[string]Kind{"alice": KindConflict, "Alice": KindConflict, "students": KindConflict,
		"10.0.0.1": KindInvalid, "routes": KindInvalid, "": KindInvalid, "a b": KindInvalid, "*": KindInvalid} {
		if _, err := n.admin.AddUser(ctx, name, nil, nil); err == nil {
			t.Errorf("the user %q was taken", name)
		} else {
			wantKind(t, err, want)
		}
	}
	_, err := n.admin.AddUser(ctx, "carol", []string{"teachers"}, nil)
	wantKind(t, err, KindNotFound, "teachers", "groups add")
	_, err = n.admin.AddGroup(ctx, "alice", nil)
	wantKind(t, err, KindConflict, "user alice")

	n.apply("rules:\n  - {src: alice, dst: routes}\n  - {src: \"group:students\", dst: routes}\n")
	other := "anna"
	_, err = n.admin.UpdateUser(ctx, "alice", UserUpdate{Name: &other})
	wantKind(t, err, KindConflict, "policy names the user alice")
	_, err = n.admin.RemoveGroup(ctx, "students")
	wantKind(t, err, KindConflict, "policy names the group")
	n.apply("rules: []\n")
	if u, err := n.admin.UpdateUser(ctx, "alice", UserUpdate{Name: &other, AddTags: []string{"night", "day"}}); err != nil || u.Name != "anna" || len(u.Tags) != 2 {
		t.Errorf("%+v, %v", u, err)
	}
	if g, err := n.admin.UpdateGroup(ctx, "students", GroupUpdate{RemoveMembers: []string{"anna"}}); err != nil || len(g.Members) != 0 {
		t.Errorf("%+v, %v", g, err)
	}
	_, err = n.admin.UpdateGroup(ctx, "students", GroupUpdate{RemoveMembers: []string{"anna"}})
	wantKind(t, err, KindNotFound, "not in the group")
	if u, err := n.admin.RemoveUser(ctx, "anna"); err != nil || u.ID != alice.ID {
		t.Errorf("%+v, %v", u, err)
	}
	if us, err := n.admin.Users(ctx); err != nil || len(us) != 0 {
		t.Errorf("%+v, %v", us, err)
	}
}

// TestOwner: a node is its invite's user's, or has a user of its own whose name
// gives it nothing.
func TestOwner(t *testing.T) {
	n, ctx := newNetwork(t), t.Context()
	n.user("alice")
	n.user("carol")
	n.join(Invite{User: "alice"}, "laptop")
	n.join(Invite{User: "alice"}, "phone")
	n.join(Invite{}, "alice")
	n.join(Invite{Routes: []prefix{pfx("192.168.1.0/24")}}, "lab-gw")
	n.apply("rules:\n  - {src: carol, dst: routes}\n")
	if _, err := n.admin.RemoveUser(ctx, "carol"); err != nil {
		t.Fatal(err)
	}
	n.join(Invite{}, "carol") // the policy still gives something to a carol
	nodes, err := n.admin.Nodes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, nd := range nodes {
		got[nd.Name] = nd.User
	}
	want := map[string]string{"laptop": "alice", "phone": "alice", "alice": "alice-2", "lab-gw": "", "carol": "carol-2"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", got, want)
	}
	_, err = n.admin.Invite(ctx, Invite{User: "nobody"})
	wantKind(t, err, KindNotFound, "nobody", "users add")
	_, err = n.admin.Invite(ctx, Invite{User: "alice", Role: RoleGateway})
	wantKind(t, err, KindInvalid, "--user")

	link := n.invite(Invite{User: "alice"})
	if _, err := n.admin.UpdateUser(ctx, "alice", UserUpdate{Disabled: ptr(true)}); err != nil {
		t.Fatal(err)
	}
	wantKind(t, n.stranger().enroll(link, "late"), KindDenied, "disabled")
}

func ptr[T any](v T) *T { return &v }

const labPolicy = `groups: {students: [alice]}
hosts: {nas: 192.168.1.201}
rules:
  - {name: ssh, src: students, dst: nas, ports: tcp/22}
  - {name: all, src: bob, dst: routes}
tests:
  - {who: alice, accept: [nas:22], deny: [nas:80]}
`

// lab is a network with alice, bob and a gateway, as everybody sees it.
type lab struct {
	*network
	alice, bob, gw    *node
	atAlice, atBob, g *following
}

func newLab(t testing.TB) *lab {
	l := &lab{network: newNetwork(t)}
	l.user("alice")
	l.user("bob")
	l.gw = l.join(Invite{Name: "gw", Routes: []prefix{pfx("192.168.1.0/24")}}, "gw")
	l.alice, l.bob = l.join(Invite{User: "alice"}, "laptop"), l.join(Invite{User: "bob"}, "desk")
	l.apply(labPolicy)
	l.g, l.atAlice, l.atBob = l.enforcing(l.gw, 3), l.enforcing(l.alice, 0), l.enforcing(l.bob, 0)
	return l
}

func TestPolicyDecidesMaps(t *testing.T) {
	l, ctx := newLab(t), t.Context()
	l.atAlice.await("the gateway alone", sees("gw"))
	l.atBob.await("the gateway alone", sees("gw"))
	m := l.g.await("both, and both rules", func(m *Map) bool { return sees("laptop", "desk")(m) && enforces("all", "ssh")(m) })
	if m.Peers[0].User != "alice" || m.Self.State != NodeActive {
		t.Errorf("%+v", m)
	}
	if m := l.atAlice.await("a ruleset", func(m *Map) bool { return m.Ruleset != nil }); len(m.Ruleset.Rules) != 0 {
		t.Errorf("alice's laptop lets in %v", ruleNames(m))
	}

	_, err := l.admin.ApplyPolicy(ctx, strings.Replace(labPolicy, "ports: tcp/22", "ports: tcp", 1))
	wantKind(t, err, KindInvalid, "must not reach", "stays")
	_, err = l.admin.ApplyPolicy(ctx, strings.Replace(labPolicy, "src: bob", "src: bbo", 1))
	wantKind(t, err, KindInvalid, "line 5", "did you mean")
	if p, err := l.admin.Policy(ctx, 0); err != nil || p.Version != 2 || p.Text != labPolicy || len(p.Versions) != 2 || p.By != "local" {
		t.Errorf("%+v, %v", p, err)
	}
	change, err := l.admin.ApplyPolicy(ctx, labPolicy+"#\n")
	if err != nil || change.Version != 3 || len(change.Changes) != 0 || change.Tests != 2 {
		t.Errorf("%+v, %v", change, err)
	}

	// Bob is taken out: his desk sees nobody, the gateway no desk.
	l.apply(strings.Replace(labPolicy, "  - {name: all, src: bob, dst: routes}\n", "", 1))
	l.atBob.await("nobody", sees())
	l.g.await("alice alone", func(m *Map) bool { return sees("laptop")(m) && enforces("ssh")(m) })
}

// TestClosed: who may reach nothing of a prefix is told of it, and of nothing else,
// for as long as it is so. Gateways are told of none.
func TestClosed(t *testing.T) {
	l, ctx := newLab(t), t.Context()
	far := l.join(Invite{Name: "far", Routes: []prefix{pfx("10.9.0.0/16")}}, "far")
	closed := func(want ...string) func(*Map) bool {
		return func(m *Map) bool { return slices.Equal(prefixesToWire(m.Closed), append([]string{}, want...)) }
	}
	l.atAlice.await("what lies behind far is closed", closed("10.9.0.0/16"))
	m := l.atBob.await("and open to bob", sees("gw", "far"))
	if !closed()(m) {
		t.Errorf("closed to bob: %v", m.Closed)
	}
	l.apply(strings.Replace(labPolicy, "src: bob, dst: routes", "src: bob, dst: 10.9.0.0/16", 1))
	l.atBob.await("the other one is closed", func(m *Map) bool { return closed("192.168.1.0/24")(m) && sees("far")(m) })
	if _, err := l.admin.Grant(ctx, "alice", "10.9.0.1:80", time.Hour); err != nil {
		t.Fatal(err)
	}
	l.atAlice.await("nothing is closed", closed())
	if _, err := l.admin.UpdateUser(ctx, "bob", UserUpdate{Disabled: ptr(true)}); err != nil {
		t.Fatal(err)
	}
	l.atBob.await("who takes no part is told nothing", func(m *Map) bool { return closed()(m) && m.Self.State == NodeDisabled })
	if _, err := l.admin.WithdrawRoute(ctx, "far", pfx("10.9.0.0/16")); err != nil {
		t.Fatal(err)
	}
	if m := l.atAlice.await("far is gone", sees("gw")); !closed()(m) {
		t.Errorf("what nobody has is closed: %v", m.Closed)
	}
	if m := l.enforcing(far, 0).await("a map", func(*Map) bool { return true }); len(m.Closed) > 0 {
		t.Errorf("closed to a gateway: %v", m.Closed)
	}
}

// TestRulesetDelta: the map that changes brought is the one that a new stream
// gets whole.
func TestRulesetDelta(t *testing.T) {
	l, ctx := newLab(t), t.Context()
	l.g.await("both rules", enforces("all", "ssh"))
	newName := "gate"
	for _, act := range []func() error{
		func() error { _, err := l.admin.Grant(ctx, "alice", "192.168.1.0/24:80", time.Hour); return err },
		func() error { _, err := l.admin.UpdateUser(ctx, "bob", UserUpdate{Disabled: ptr(true)}); return err },
		func() error { _, err := l.admin.UpdateUser(ctx, "bob", UserUpdate{Disabled: ptr(false)}); return err },
		func() error { _, err := l.admin.RenameNode(ctx, "gw", newName); return err },
		func() error { _, err := l.admin.RenameNode(ctx, "laptop", "alices"); return err },
		func() error { _, err := l.admin.RemoveNode(ctx, "desk"); return err },
	} {
		if err := act(); err != nil {
			t.Fatal(err)
		}
	}
	rev := l.server.ledger.now().rev
	m := l.g.await("all of it", func(m *Map) bool { return m.Version >= rev })
	fresh := l.follow(l.gw, FollowOptions{}).await("a whole map", func(*Map) bool { return true })
	if m.Ruleset.Digest() != fresh.Ruleset.Digest() || !slices.Equal(names(m.Peers), names(fresh.Peers)) {
		t.Errorf("changes brought %+v\nand %v; whole are %+v\nand %v", m.Ruleset, names(m.Peers), fresh.Ruleset, names(fresh.Peers))
	}
	again, err := ParseMap(m.Append(nil))
	if err != nil || again.Ruleset.Digest() != m.Ruleset.Digest() {
		t.Errorf("the saved map has another ruleset (%v)", err)
	}
}

// TestSmallChange: when one of many leaves a group, the gateway is sent little.
func TestSmallChange(t *testing.T) {
	n := newNetwork(t)
	var changes []Record
	now := time.Now()
	g := groupRecord{ID: "g1", Name: "all"}
	for i := range 300 {
		u := userRecord{ID: fmt.Sprintf("u%d", i), Name: fmt.Sprintf("user%d", i)}
		g = g.with(u.ID)
		nd := nodeRecord{ID: fmt.Sprintf("n%d", i), Name: fmt.Sprintf("node%d", i), Label: uint32(i + 10), Role: RoleMember, User: u.ID, Joined: now}
		changes = append(changes, putUser(u), putNode(nd))
	}
	gw := nodeRecord{ID: "gw", Name: "gw", Label: 5, Role: RoleGateway, Advertised: []prefix{pfx("10.0.0.0/8")}, Approved: []prefix{pfx("10.0.0.0/8")}}
	changes = append(changes, putGroup(g), putNode(gw), putPolicy(policyRecord{Version: 2, Text: "rules:\n  - {src: group:all, dst: routes}\n"}))
	old, err := n.server.ledger.now().with(10, changes)
	if err != nil {
		t.Fatal(err)
	}
	next, err := old.with(11, []Record{putGroup(g.without("u7"))})
	if err != nil {
		t.Fatal(err)
	}
	was, is := old.sightOf(old.nodes["gw"], nil), next.sightOf(next.nodes["gw"], nil)
	d := n.server.delta(next, next.nodes["gw"], was, is, dirt{})
	if len(was.closed) > 0 || d.Closed != nil {
		t.Error("a gateway hears of closed networks")
	}
	if d := n.server.delta(next, next.nodes["n8"], old.sightOf(old.nodes["n8"], nil), next.sightOf(next.nodes["n8"], nil), dirt{}); d.Closed != nil {
		t.Error("whom the change does not concern hears of closed networks")
	}
	if size := proto.Size(d); size > 600 || len(d.Removed) != 1 || len(d.Peers) != 0 {
		t.Errorf("%d bytes, %d peers go, %d come", size, len(d.Removed), len(d.Peers))
	}
}

func TestApproval(t *testing.T) {
	n, ctx := newNetwork(t), t.Context()
	n.user("alice")
	gw := n.join(Invite{Name: "gw"}, "gw")
	atGW := n.enforcing(gw, 0)
	nd := n.join(Invite{User: "alice", NeedsApproval: true}, "laptop")
	f := n.enforcing(nd, 0)
	f.await("itself, waiting", func(m *Map) bool {
		return m.Self.State == NodePending && len(m.Peers) == 0 && len(m.Passes) == 0 && len(m.Ruleset.Rules) == 0
	})
	wantDenied(t, n.adminOf(nd))
	if _, err := n.admin.UpdateNode(ctx, "laptop", NodeUpdate{Approve: true}); err != nil {
		t.Fatal(err)
	}
	f.await("the gateway, and a pass", func(m *Map) bool { return m.Self.State == NodeActive && sees("gw")(m) && len(m.Passes) == 1 })
	atGW.await("the laptop", sees("laptop"))
}

// TestDisabledAndBack: what was worthless stays so, and what is new is not.
func TestDisabledAndBack(t *testing.T) {
	l, ctx := newLab(t), t.Context()
	before := l.atAlice.await("a pass", func(m *Map) bool { return len(m.Passes) == 1 }).Passes[0]
	if _, err := l.admin.UpdateNode(ctx, "laptop", NodeUpdate{Disabled: ptr(true)}); err != nil {
		t.Fatal(err)
	}
	barred := <-l.removed
	if barred.Label != l.alice.Label {
		t.Errorf("barred %+v", barred)
	}
	l.atAlice.await("nobody", func(m *Map) bool { return m.Self.State == NodeDisabled && len(m.Peers) == 0 })
	l.g.await("bob alone", sees("desk"))
	if rs := l.server.removals(); !slices.ContainsFunc(rs, func(r Removal) bool {
		return r.Label == l.alice.Label && r.Serial >= barred.Serial-uint64(time.Minute/time.Microsecond)
	}) {
		t.Errorf("a restart would forget it: %v", rs)
	}
	if _, err := l.admin.UpdateNode(ctx, "laptop", NodeUpdate{Disabled: ptr(false)}); err != nil {
		t.Fatal(err)
	}
	l.atAlice.await("a new pass", func(m *Map) bool {
		return m.Self.State == NodeActive && sees("gw")(m) && len(m.Passes) == 1 && !m.Passes[0].Key.Equal(before.Key)
	})
	l.g.await("both", sees("laptop", "desk"))
}

// TestDisabledGroup: its members get nothing by it, and the policy can be changed
// meanwhile although its tests say what they should get.
func TestDisabledGroup(t *testing.T) {
	l, ctx := newLab(t), t.Context()
	_, err := l.admin.UpdateGroup(ctx, "students", GroupUpdate{Disabled: ptr(true)})
	wantKind(t, err, KindNotFound, "in the policy only", "overlayd groups add students")
	if _, err := l.admin.AddGroup(ctx, "students", []string{"bob"}); err != nil {
		t.Fatal(err)
	}
	if g, err := l.admin.UpdateGroup(ctx, "students", GroupUpdate{Disabled: ptr(true)}); err != nil || !g.Disabled {
		t.Fatalf("%+v, %v", g, err)
	}
	l.atAlice.await("nobody", sees())
	l.g.await("bob alone, by his own rule", sees("desk"))
	if _, err := l.admin.ApplyPolicy(ctx, labPolicy+"#\n"); err != nil {
		t.Errorf("a policy that names them: %v", err)
	}
	if _, err := l.admin.UpdateGroup(ctx, "students", GroupUpdate{Disabled: ptr(false)}); err != nil {
		t.Fatal(err)
	}
	l.atAlice.await("the gateway", sees("gw"))

	// Nor does a person's revocation keep the policy as it is.
	if _, err := l.admin.Revoke(ctx, "user:alice"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.admin.ApplyPolicy(ctx, labPolicy+"##\n"); err != nil {
		t.Errorf("a policy that names somebody who was revoked: %v", err)
	}
}

func TestGrants(t *testing.T) {
	l, ctx := newLab(t), t.Context()
	for _, c := range []struct {
		user, target string
		span         time.Duration
		says         string
	}{
		{"alcie", "nas:22", time.Hour, "no user"},
		{"alice", "nass:22", time.Hour, "did you mean"},
		{"alice", "nas:22", -time.Hour, "past"},
		{"alice", "nas:22", 2 * maxGrant, "a year"},
		{"alice", "nas:99999", time.Hour, "port"},
	} {
		_, err := l.admin.Grant(ctx, c.user, c.target, c.span)
		if p, ok := AsProblem(err); !ok || !strings.Contains(p.Message+p.Hint, c.says) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	g, err := l.admin.Grant(ctx, "alice", "nas:80", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	m := l.g.await("the grant", enforces("all", "ssh", "grant:"+g.ID))
	if r := m.Ruleset.Rules[2]; !r.When.Until.Equal(g.Until) || r.Services[0].First != 80 {
		t.Errorf("%+v", r)
	}
	r, err := l.admin.Revoke(ctx, g.ID)
	if err != nil || r.Kind != "grant" || len(r.Nodes) != 1 || r.Nodes[0] != (Ack{"gw", true, true, 3}) {
		t.Errorf("%+v, %v", r, err)
	}
	l.g.await("no grant", enforces("all", "ssh"))

	if _, err := l.admin.Grant(ctx, "alice", "nas:80", time.Hour); err != nil {
		t.Fatal(err)
	}
	for nd, want := range map[*node]int{l.alice: 1, l.bob: 0} { // none is an admin
		if gs, err := l.adminOf(nd).Grants(ctx); err != nil || len(gs) != want {
			t.Errorf("%s sees %v, %v, want %d", nd.Name, gs, err, want)
		}
	}
	l.now.add(2 * time.Hour)
	if gs, err := l.admin.Grants(ctx); err != nil || len(gs) != 0 {
		t.Errorf("%v, %v", gs, err)
	}
	if cs := l.server.ledger.now().overdue(l.now.Now()); len(cs) != 1 {
		t.Errorf("%d records are overdue", len(cs))
	}
}

func TestRequests(t *testing.T) {
	l, ctx := newLab(t), t.Context()
	alice, bob := l.adminOf(l.alice), l.adminOf(l.bob)
	r, err := alice.Request(ctx, "nas:80", time.Hour)
	if err != nil || r.User != "alice" || r.Node != "laptop" {
		t.Fatalf("%+v, %v", r, err)
	}
	if again, err := alice.Request(ctx, "nas:80", time.Hour); err != nil || again.ID != r.ID {
		t.Errorf("asked twice: %+v, %v", again, err)
	}
	if rs, err := bob.Requests(ctx); err != nil || len(rs) != 0 {
		t.Errorf("bob sees %v, %v", rs, err)
	}
	if rs, err := alice.Requests(ctx); err != nil || len(rs) != 1 {
		t.Errorf("alice sees %v, %v", rs, err)
	}
	_, err = alice.ApproveRequest(ctx, r.ID, 0)
	wantKind(t, err, KindDenied, "admin")
	g, err := l.admin.ApproveRequest(ctx, r.ID, 0)
	if err != nil || g.User != "alice" || g.Target != r.Target || g.By != "local" {
		t.Errorf("%+v, %v", g, err)
	}
	if rs, err := l.admin.Requests(ctx); err != nil || len(rs) != 0 {
		t.Errorf("%v, %v", rs, err)
	}
	wantKind(t, l.admin.DenyRequest(ctx, r.ID), KindNotFound, "overlayd requests")
	_, err = l.admin.Request(ctx, "nas:80", time.Hour)
	wantKind(t, err, KindInvalid, "coordinator's own")
}

// TestUpgrade opens a store from before there were users.
func TestUpgrade(t *testing.T) {
	n := newNetwork(t)
	n.join(Invite{}, "laptop")
	n.join(Invite{Routes: []prefix{pfx("192.168.1.0/24")}}, "gw")
	snap := n.server.ledger.now()
	var old []Record
	network := snap.network
	network.Schema = 0
	old = append(old, put(keyNetwork, network))
	for _, nd := range snap.nodesByLabel() {
		was := *nd
		was.User = ""
		old = append(old, putNode(was))
	}
	store := newMemory(t, old)
	o := ServerOptions{Store: store, Overlay: testOverlay, Endpoint: "127.0.0.1:443"}
	for range 2 { // the second time there is nothing to do
		s, err := NewServer(o)
		if err != nil {
			t.Fatal(err)
		}
		snap = s.ledger.now()
		if snap.rev != 2 || snap.network.ID != network.ID || snap.standing == nil || snap.policies[1].Text != policy.Default {
			t.Fatalf("%+v", snap)
		}
		if got := snap.userOf(snap.byName["laptop"]); got != "laptop" {
			t.Errorf("the laptop is of %q", got)
		}
		if got := snap.userOf(snap.byName["gw"]); got != "" {
			t.Errorf("the gateway is of %q", got)
		}
		if peers := snap.peersOf(snap.byName["laptop"]); len(peers) != 1 {
			t.Errorf("the laptop sees %d nodes", len(peers))
		}
	}
	network.Schema = networkSchema + 1
	_, err := NewServer(ServerOptions{Store: newMemory(t, []Record{put(keyNetwork, network)}), Endpoint: "127.0.0.1:443"})
	wantKind(t, err, KindConflict, "schema")
}
