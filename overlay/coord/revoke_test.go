package coord

import (
	"context"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"overlayd/internal/limit"
	"overlayd/overlay/record"
)

type prefix = netip.Prefix

// newMemory is a store with records in it.
func newMemory(t *testing.T, records []Record) Store {
	t.Helper()
	s, err := OpenBolt(filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if _, err := s.Commit(t.Context(), 0, records); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRevokeUser(t *testing.T) {
	l, ctx := newLab(t), t.Context()
	if _, err := l.admin.Grant(ctx, "alice", "nas:80", time.Hour); err != nil {
		t.Fatal(err)
	}
	link := l.invite(Invite{User: "alice"})
	r, err := l.admin.Revoke(ctx, "alice")
	if err != nil || r.Kind != "user" || r.Name != "alice" || len(r.Nodes) != 1 || r.Nodes[0] != (Ack{"gw", true, true, 3}) {
		t.Fatalf("%+v, %v", r, err)
	}
	if r.Took > 2*time.Second {
		t.Errorf("it took %s", r.Took)
	}
	l.atAlice.await("nobody", func(m *Map) bool { return m.Self.State == NodeDisabled && len(m.Peers) == 0 })
	l.g.await("bob alone, and no grant", func(m *Map) bool { return sees("desk")(m) && enforces("all", "ssh")(m) })
	wantKind(t, l.stranger().enroll(link, "x"), KindDenied, "revoked")
	wantDenied(t, l.adminOf(l.alice))
	if rm := <-l.removed; rm.Label != l.alice.Label {
		t.Errorf("removed %+v", rm)
	}

	// Again, there is nothing to do; but who has not heard of it is still named.
	if r, err := l.admin.Revoke(ctx, "user:alice"); err != nil || len(r.Nodes) != 1 || !r.Nodes[0].Applied || r.Nodes[0].FlowsCut != 0 {
		t.Errorf("again: %+v, %v", r, err)
	}
	l.g.cancel()
	l.g.ended()
	l.atBob.await("the gateway offline", func(m *Map) bool { return len(m.Peers) == 1 && !m.Peers[0].Online })
	if _, err := l.admin.UpdateUser(ctx, "bob", UserUpdate{AddTags: []string{"x"}}); err != nil {
		t.Fatal(err)
	}
	if r, err := l.admin.Revoke(ctx, "user:alice"); err != nil || len(r.Nodes) != 1 || r.Nodes[0].Applied || r.Nodes[0].Online {
		t.Errorf("with the gateway away: %+v, %v", r, err)
	}
}

// TestRevokeOffline names who was not there, and reaches it on contact.
func TestRevokeOffline(t *testing.T) {
	l, ctx := newLab(t), t.Context()
	l.g.cancel()
	l.g.ended()
	l.atBob.await("the gateway offline", func(m *Map) bool { return len(m.Peers) == 1 && !m.Peers[0].Online })
	r, err := l.admin.Revoke(ctx, "laptop")
	if err != nil || r.Kind != "node" || len(r.Nodes) != 1 || r.Nodes[0] != (Ack{Node: "gw"}) {
		t.Fatalf("%+v, %v", r, err)
	}
	if p, ok := AsProblem(l.atAlice.ended()); !ok || p.Kind != KindDenied {
		t.Errorf("alice's laptop: %v", l.atAlice.err)
	}
	l.enforcing(l.gw, 0).await("bob alone", func(m *Map) bool { return sees("desk")(m) })
}

// TestRevokeSilent: a node that is there and applies nothing is waited for, for
// a while.
func TestRevokeSilent(t *testing.T) {
	p, now := newPresence(), time.Now()
	if _, err := p.join("gw", 1, now); err != nil {
		t.Fatal(err)
	}
	nodes := []*nodeRecord{{ID: "gw", Name: "gw"}}
	acks := p.await(t.Context(), nodes, 5, time.Millisecond)
	if len(acks) != 1 || acks[0] != (Ack{"gw", true, false, 0}) {
		t.Errorf("%+v", acks)
	}
	done := make(chan []Ack)
	go func() { done <- p.await(t.Context(), nodes, 5, patience) }()
	p.apply("gw", Applied{4, 9})
	p.apply("gw", Applied{6, 2})
	if acks := <-done; acks[0] != (Ack{"gw", true, true, 2}) {
		t.Errorf("%+v", acks)
	}
}

func TestRevokeWhat(t *testing.T) {
	l, ctx := newLab(t), t.Context()
	l.user("laptop")
	_, err := l.admin.Revoke(ctx, "laptop")
	wantKind(t, err, KindConflict, "user:laptop", "node:laptop")
	for _, what := range []string{"nobody", "user:desk", "invite:laptop", "planet:laptop", ""} {
		_, err := l.admin.Revoke(ctx, what)
		wantKind(t, err, KindNotFound, "there is no")
	}
	l.join(Invite{}, "phone") // for nobody: its user has its name
	if r, err := l.admin.Revoke(ctx, "phone"); err != nil || r.Kind != "user" || r.Name != "phone" {
		t.Errorf("%+v, %v", r, err)
	}
	link := l.invite(Invite{})
	if r, err := l.admin.Revoke(ctx, link.Invite); err != nil || r.Kind != "invite" {
		t.Errorf("%+v, %v", r, err)
	}
	wantKind(t, l.stranger().enroll(link, "x"), KindDenied, "revoked")
}

func wantDenied(t *testing.T, a *Admin) {
	t.Helper()
	_, err := a.Users(t.Context())
	wantKind(t, err, KindDenied)
}

func TestAdminFromALaptop(t *testing.T) {
	l, ctx := newLab(t), t.Context()
	alice, bob := l.adminOf(l.alice), l.adminOf(l.bob)
	_, err := alice.Grant(ctx, "alice", "nas:80", time.Hour)
	wantKind(t, err, KindDenied, "alice has not the role of admin", "ask an admin")
	wantDenied(t, bob)
	if _, err := l.admin.UpdateUser(ctx, "bob", UserUpdate{Admin: ptr(true)}); err != nil {
		t.Fatal(err)
	}
	if _, err := bob.AddUser(ctx, "carol", nil, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := bob.ApplyPolicy(ctx, "rules: []\n"); err != nil { // it does not lock bob out
		t.Fatal(err)
	}
	if r, err := bob.Revoke(ctx, "alice"); err != nil || r.Kind != "user" {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := l.admin.UpdateUser(ctx, "bob", UserUpdate{Admin: ptr(false)}); err != nil {
		t.Fatal(err)
	}
	wantDenied(t, bob)

	var refused, added, own *Event
	for _, e := range l.lines() {
		switch {
		case e.Call == "AddGrant":
			refused = &e
		case e.Call == "AddUser" && e.Who == "user:bob":
			added = &e
		case e.Call == "Enroll" && slices.Contains(e.About, "node:laptop"):
			own = &e
		}
	}
	if refused == nil || refused.Who != "user:alice" || refused.Node != "laptop" || refused.From != "127.0.0.1" || refused.Refused == "" ||
		!strings.Contains(string(refused.Request), "nas:80") {
		t.Errorf("alice's try is recorded as %+v", refused)
	}
	if added == nil || added.Refused != "" || added.Revision == 0 || !slices.Equal(added.About, []string{"user:carol"}) {
		t.Errorf("bob's act is recorded as %+v", added)
	}
	if own == nil || !strings.HasPrefix(own.Who, "invite:") {
		t.Errorf("the enrolment is recorded as %+v", own)
	}
	if v, err := l.admin.VerifyRecord(ctx); err != nil || len(v.Problems) > 0 || v.Lines < 10 {
		t.Errorf("%+v, %v", v, err)
	}
}

// TestStrangersCallNothing: the Admin service on the TLS port needs a member.
func TestStrangersCallNothing(t *testing.T) {
	n := newNetwork(t)
	wantDenied(t, n.adminOf(n.stranger()))
	web := n.client(n.stranger().machine).connect()
	defer web.close()
	resp, err := web.transport.RoundTrip(post(t, "https://"+n.addr+"/overlayd.coord.v1.Admin/ListUsers"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode == 200 {
		t.Error("without a token it was answered")
	}
}

// TestRefusalsAreBounded: the record cannot be flooded by who may nothing.
func TestRefusalsAreBounded(t *testing.T) {
	l := newLab(t)
	alice := l.adminOf(l.alice)
	for range 5 * limit.Burst {
		wantDenied(t, alice)
	}
	count := 0
	for _, e := range l.lines() {
		if e.Refused != "" {
			count++
		}
	}
	if count == 0 || count > limit.Burst+2 {
		t.Errorf("%d refusals are recorded", count)
	}
}

func TestSecretsStayOutOfTheRecord(t *testing.T) {
	n, ctx := newNetwork(t), t.Context()
	rel := n.stranger()
	offer := &RelayOffer{Endpoint: "203.0.113.7:443", Secret: testLink().Secret}
	link := n.invite(Invite{Role: RoleRelay})
	if _, err := rel.c.Enroll(ctx, EnrollRequest{Invite: link.Invite, Secret: link.Secret, Name: "vps2", WireGuard: rel.private.Public(), Relay: offer}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.admin.RenameNode(ctx, "vps2", "vps3"); err != nil {
		t.Fatal(err)
	}
	for _, e := range n.lines() {
		for _, u := range e.Undo {
			if strings.Contains(string(u.Value), `"secret":"`) || strings.HasPrefix(u.Key, keyInvite) {
				t.Errorf("%s has %s", u.Key, u.Value)
			}
		}
	}
}

func TestAccess(t *testing.T) {
	l, ctx := newLab(t), t.Context()
	who := func(target string, at time.Time) (list []string) {
		t.Helper()
		a, err := l.admin.Access(ctx, target, at)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range a.Lines {
			list = append(list, x.Who+" by "+x.Rule)
		}
		return list
	}
	want := func(got []string, lines ...string) {
		t.Helper()
		if !slices.Equal(got, lines) {
			t.Errorf("%v, want %v", got, lines)
		}
	}
	start := l.now.Now()
	l.now.add(time.Minute)
	g, err := l.admin.Grant(ctx, "alice", "nas:80", 4*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	want(who("nas:80", time.Time{}), "user:alice by grant:"+g.ID, "user:bob by all")
	granted := l.now.Now()
	l.now.add(time.Minute)
	if _, err := l.admin.Revoke(ctx, "alice"); err != nil {
		t.Fatal(err)
	}
	l.now.add(time.Minute)
	if _, err := l.admin.RemoveNode(ctx, "laptop"); err != nil {
		t.Fatal(err)
	}
	l.apply("hosts: {nas: 192.168.1.201}\nrules: []\n")
	l.now.add(time.Minute)
	want(who("nas:22", time.Time{}))
	want(who("nas:22", granted), "user:alice by ssh", "user:bob by all")
	want(who("nas:80", granted), "user:alice by grant:"+g.ID, "user:bob by all")
	want(who("nas:80", granted.Add(90*time.Second)), "user:bob by all") // revoked
	want(who("nas:80", start), "user:bob by all")                       // not yet granted

	_, err = l.admin.Access(ctx, "nas:22", start.Add(-time.Hour))
	wantKind(t, err, KindNotFound, "does not reach back")
	_, err = l.admin.Access(ctx, "nas:22", l.now.Now().Add(time.Hour))
	wantKind(t, err, KindInvalid, "earlier")
	_, err = l.admin.Access(ctx, "nas:22/xyz", time.Time{})
	wantKind(t, err, KindInvalid, "protocol")
}

func TestExplain(t *testing.T) {
	l, ctx := newLab(t), t.Context()
	explain := func(a *Admin, who, target string) (string, bool) {
		t.Helper()
		steps, ok, err := a.Explain(ctx, who, target)
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		for _, s := range steps {
			b.WriteString(s.Name + " " + s.Verdict + ": " + s.Text + "\n")
		}
		return b.String(), ok
	}
	text, ok := explain(l.admin, "alice", "nas:22")
	for _, w := range []string{"user ok: alice is active with laptop", "name ok: nas is 192.168.1.201", "policy ok: rule ssh", "route ok: through gw", "gateway ok: gw is online"} {
		if !ok || !strings.Contains(text, w) {
			t.Errorf("it is %v and not said: %s\n%s", ok, w, text)
		}
	}
	if text, ok := explain(l.admin, "alice", "nas:80"); ok || !strings.Contains(text, "policy bad: no rule") {
		t.Errorf("%v\n%s", ok, text)
	}
	if text, ok := explain(l.adminOf(l.alice), "", "192.168.1.201:22"); !ok {
		t.Error(text)
	}
	if text, ok := explain(l.admin, "alice", "nsa:22"); ok || !strings.Contains(text, "name bad: there is no host or node nsa") || strings.Contains(text, "policy") {
		t.Errorf("%v\n%s", ok, text)
	}
	if _, err := l.admin.Grant(ctx, "alice", "10.9.0.1:22", time.Hour); err != nil {
		t.Fatal(err)
	}
	if text, ok := explain(l.admin, "alice", "10.9.0.1:22"); ok || !strings.Contains(text, "policy ok: rule grant:") || !strings.Contains(text, "route bad: no node has") {
		t.Errorf("%v\n%s", ok, text)
	}
	if text, ok := explain(l.admin, "alice", "10.9.0.2:22"); ok || !strings.Contains(text, "policy bad: no rule") || !strings.Contains(text, "route bad: no node has") {
		t.Errorf("%v\n%s", ok, text)
	}
	l.apply(strings.Replace(labPolicy, "dst: routes}", "dst: routes, times: {until: 2020-01-01}}", 1))
	if text, ok := explain(l.admin, "bob", "nas:80"); ok || !strings.Contains(text, "policy bad: rule all lets bob reach nas:80, but not at this time") {
		t.Errorf("%v\n%s", ok, text)
	}
	l.apply(labPolicy)
	if text, ok := explain(l.admin, "bob", "192.168.0.0/16:22"); ok || !strings.Contains(text, "route unknown: no single node") {
		t.Errorf("%v\n%s", ok, text)
	}
	_, _, err := l.adminOf(l.alice).Explain(ctx, "bob", "nas:22")
	wantKind(t, err, KindDenied, "others")
	l.g.cancel()
	l.g.ended()
	l.atBob.await("the gateway offline", func(m *Map) bool { return !m.Peers[0].Online })
	if _, err := l.admin.UpdateUser(ctx, "alice", UserUpdate{Disabled: ptr(true)}); err != nil {
		t.Fatal(err)
	}
	if text, ok := explain(l.admin, "alice", "nas:22"); ok || !strings.Contains(text, "alice is disabled") || !strings.Contains(text, "gw is offline") {
		t.Errorf("%v\n%s", ok, text)
	}
}

// TestGapIsTold: a stop between a commit and its line does not go unseen.
func TestGapIsTold(t *testing.T) {
	dir := t.TempDir()
	store := newMemory(t, []Record{put(keyNetwork, networkRecord{Overlay: testOverlay})})
	start := func(t *testing.T) *Server {
		s, err := NewServer(ServerOptions{Store: store, Endpoint: "127.0.0.1:443", Events: recordEvents(t, dir)})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	t.Run("first", func(t *testing.T) {
		s := start(t)
		rev := s.ledger.now().rev
		if _, err := store.Commit(context.Background(), rev, []Record{putUser(userRecord{ID: "u1", Name: "eve"})}); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("second", func(t *testing.T) { start(t) })
	told := false
	if err := record.Read(dir, "control", func(line []byte) error {
		told = told || strings.Contains(string(line), "before it had recorded")
		return nil
	}); err != nil || !told {
		t.Errorf("it was not told (%v)", err)
	}
}
