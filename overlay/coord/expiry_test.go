package coord

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"overlayd/overlay/key"
	"overlayd/overlay/policy"
)

const day = 24 * time.Hour

// A person's key expires, and takes the machine off every map; a renewal brings
// it back where it was. Gateways go on for ever.
func TestKeyExpires(t *testing.T) {
	n := newNetwork(t)
	if _, err := n.admin.AddUser(t.Context(), "alice", nil, nil); err != nil {
		t.Fatal(err)
	}
	gw := n.join(Invite{Role: RoleGateway}, "gw")
	a := n.join(Invite{User: "alice", KeyTTL: 10 * day}, "laptop")
	fg, fa := n.follow(gw, FollowOptions{}), n.follow(a, FollowOptions{})
	m := fa.await("a peer", func(m *Map) bool { return len(m.Peers) == 1 && len(m.Passes) == 1 })
	if left := m.Self.Expires.Sub(n.now.Now()); left < 9*day || left > 10*day {
		t.Errorf("expires at %v", m.Self.Expires)
	}
	gm := fg.await("a peer", func(m *Map) bool { return len(m.Peers) == 1 })
	if !gm.Self.Expires.IsZero() || !gm.Peers[0].Expires.Equal(m.Self.Expires) {
		t.Errorf("the gateway expires at %v, and knows %v of the laptop", gm.Self.Expires, gm.Peers[0].Expires)
	}
	if gm.Unexpired(m.Self.Expires.Add(-time.Second)) != gm || len(gm.Unexpired(m.Self.Expires).Peers) != 0 {
		t.Error("a map does not know when its peers expire")
	}

	ends := func() {
		t.Helper()
		if err := n.server.end(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ends() // nothing yet
	n.now.add(10*day + time.Minute)
	ends()
	<-n.removed // its passes
	fa.await("its end", func(m *Map) bool { return m.Self.State == NodeExpired && len(m.Peers) == 0 })
	fg.await("the laptop's end", func(m *Map) bool { return len(m.Peers) == 0 })
	_, err := n.adminOf(a).Nodes(t.Context())
	wantKind(t, err, KindDenied, "the key of laptop expired at")
	rev := n.server.ledger.now().rev
	ends() // once is enough
	if n.server.ledger.now().rev != rev {
		t.Error("it expired twice")
	}

	info, err := n.admin.RenewNode(t.Context(), "laptop", 0)
	if err != nil || info.State != NodeActive || info.Expires.Sub(n.now.Now()) < 9*day {
		t.Fatalf("%+v, %v", info, err)
	}
	fa.await("its return", func(m *Map) bool { return m.Self.State == NodeActive && len(m.Peers) == 1 && m.Self.Label == a.Label })
	fg.await("the laptop's return", func(m *Map) bool { return len(m.Peers) == 1 })
	_, err = n.admin.RenewNode(t.Context(), "gw", 0)
	wantKind(t, err, KindInvalid, "does not expire")
	_, err = n.admin.RenewNode(t.Context(), "laptop", 100*366*day)
	wantKind(t, err, KindInvalid, "ten years")
	if info, err := n.admin.RenewNode(t.Context(), "laptop", ForEver); err != nil || !info.Expires.IsZero() {
		t.Errorf("%+v, %v", info, err)
	}
}

// A link renews for the user that it is for, and for nobody else.
func TestRenewWithLink(t *testing.T) {
	n := newNetwork(t)
	for _, u := range []string{"alice", "bob"} {
		if _, err := n.admin.AddUser(t.Context(), u, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	a := n.join(Invite{User: "alice", KeyTTL: 10 * day}, "laptop")
	renew := func(nd *node, l Link) error {
		_, err := nd.c.Enroll(t.Context(), EnrollRequest{
			Invite: l.Invite, Secret: l.Secret, Name: "laptop", Role: RoleMember, WireGuard: nd.private.Public(), Renew: true,
		})
		return err
	}
	wantKind(t, renew(a, n.invite(Invite{User: "bob"})), KindDenied, "is not for alice")
	wantKind(t, renew(a, n.invite(Invite{})), KindDenied, "is not for alice")
	wantKind(t, renew(n.stranger(), n.invite(Invite{User: "alice"})), KindDenied, "not a member")
	forged := n.invite(Invite{User: "alice"})
	forged.Secret = key.NewSecret()
	wantKind(t, renew(a, forged), KindDenied, "unknown")

	n.now.add(11 * day)
	if err := n.server.end(t.Context()); err != nil {
		t.Fatal(err)
	}
	l := n.invite(Invite{User: "alice", KeyTTL: 30 * day})
	if err := renew(a, l); err != nil {
		t.Fatal(err)
	}
	snap := n.server.ledger.now()
	if r := snap.nodes[a.NodeID]; snap.stateOf(r) != NodeActive || r.Expires.Sub(n.now.Now()) < 29*day {
		t.Errorf("renewed until %v, %v", r.Expires, snap.stateOf(r))
	}
	wantKind(t, renew(a, l), KindDenied, "used up")
}

// Nodes from before there were expiries get one, and a network can have keys
// without.
func TestKeyTTLOfTheNetwork(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	after := func(s *snapshot, changes []Record) *snapshot {
		next, err := s.with(s.rev+1, changes)
		if err != nil {
			t.Fatal(err)
		}
		return next
	}
	empty, err := newSnapshot(1, []Record{
		networkOf(networkRecord{Overlay: testOverlay}),
		putNode(nodeRecord{ID: "n1", Name: "laptop", Label: 1, Role: RoleMember, Machine: key.NewMachine().Public()}),
		putNode(nodeRecord{ID: "n2", Name: "gw", Label: 2, Role: RoleGateway, Machine: key.NewMachine().Public()}),
		putNode(nodeRecord{ID: "n3", Name: "server", Label: 3, Role: RoleMember, Machine: key.NewMachine().Public(), KeyTTL: ForEver}),
	})
	if err != nil {
		t.Fatal(err)
	}
	s := after(empty, empty.setKeyTTL(0, now))
	if e := s.nodes["n1"].Expires; !e.Equal(now.Add(DefaultKeyTTL)) || !s.nodes["n2"].Expires.IsZero() || !s.nodes["n3"].Expires.IsZero() {
		t.Errorf("laptop %v, gateway %v, server %v", e, s.nodes["n2"].Expires, s.nodes["n3"].Expires)
	}
	if again := s.setKeyTTL(0, now.Add(day)); again != nil {
		t.Errorf("the next start changes %d records", len(again))
	}
	s = after(empty, empty.setKeyTTL(ForEver, now))
	if !s.nodes["n1"].Expires.IsZero() || s.network.KeyTTL != ForEver {
		t.Errorf("%v, %v", s.nodes["n1"].Expires, s.network.KeyTTL)
	}
	for _, bad := range []time.Duration{-2, 11 * 366 * day} {
		if checkKeyTTL(bad) == nil {
			t.Errorf("%v is taken", bad)
		}
	}
}

func networkOf(n networkRecord) Record { return put(keyNetwork, n) }

// A key expires at its moment, also one that was given a sooner end while a later
// one was waited for.
func TestKeyExpiresAtItsMoment(t *testing.T) {
	heard(t, func(n *heardNode) {
		state := func() NodeState {
			synctest.Wait()
			snap := n.s.ledger.now()
			return snap.stateOf(snap.nodes[n.id])
		}
		for _, ttl := range []time.Duration{2 * time.Second, 90 * time.Second, 20 * time.Minute} {
			err := n.s.ledger.change(t.Context(), func(snap *snapshot) ([]Record, error) {
				_, changes, err := snap.renew(n.id, ttl, n.s.o.Now().UTC())
				return changes, err
			})
			if err != nil {
				t.Fatal(err)
			}
			end := n.s.ledger.now().nodes[n.id].Expires
			time.Sleep(time.Until(end) - time.Millisecond)
			if s := state(); s != NodeActive {
				t.Errorf("%v: %s before its end", ttl, s)
			}
			time.Sleep(time.Millisecond)
			if s := state(); s != NodeExpired {
				t.Errorf("%v: %s at its end", ttl, s)
			}
		}
	})
}

// A map by itself comes to what the coordinator would say.
func TestUnexpired(t *testing.T) {
	at := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	m := &Map{
		Self:    Node{Name: "laptop", State: NodeActive, Expires: at.Add(2 * time.Hour)},
		Peers:   []Node{{Name: "gw"}, {Name: "desk", Addrs: []netip.Addr{testOverlay.Addr().Next()}, Expires: at.Add(time.Hour)}},
		Passes:  []Pass{{Relay: "r1"}},
		Ruleset: &policy.Ruleset{Node: "laptop", Rules: []policy.NodeRule{{ID: "r"}}},
	}
	for _, tt := range []struct {
		after time.Duration
		state NodeState
		peers int
		next  time.Duration // 0: no key expires any more
	}{
		{0, NodeActive, 2, time.Hour},
		{time.Hour - 1, NodeActive, 2, time.Hour},
		{time.Hour, NodeActive, 1, 2 * time.Hour},
		{2 * time.Hour, NodeExpired, 0, 0},
	} {
		now := at.Add(tt.after)
		got, next := m.Unexpired(now), m.NextExpiry(now)
		if got.Self.State != tt.state || len(got.Peers) != tt.peers {
			t.Errorf("after %v: %s with %d peers", tt.after, got.Self.State, len(got.Peers))
		}
		if expired := got.Self.State == NodeExpired; expired != (len(got.Passes)+len(got.Ruleset.Rules) == 0) || got.Ruleset.Node != "laptop" {
			t.Errorf("after %v: %d passes, %+v", tt.after, len(got.Passes), got.Ruleset)
		}
		if (got == m) != (tt.peers == 2) {
			t.Errorf("after %v: the same map: %v", tt.after, got == m)
		}
		if tt.next == 0 != next.IsZero() || tt.next != 0 && !next.Equal(at.Add(tt.next)) {
			t.Errorf("after %v: the next expires at %v", tt.after, next)
		}
	}
}
