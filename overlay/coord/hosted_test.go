package coord

import (
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"overlayd/overlay/key"
	"overlayd/overlay/policy"
)

// newHubLab is a lab whose coordinator's own relay has joined.
func newHubLab(t testing.TB) (l *lab, vps *node, atVPS *following) {
	l = newLab(t)
	vps = l.join(Invite{Name: "vps", Role: RoleRelay}, "vps")
	return l, vps, l.enforcing(vps, 0)
}

func hosts(want ...string) func(*Map) bool {
	return func(m *Map) bool { return slices.Equal(names(m.Hosted), want) }
}

func TestSeat(t *testing.T) {
	l, ctx := newLab(t), t.Context()
	_, err := l.server.Seat(ctx, "alice")
	wantKind(t, err, KindUnreachable, "own relay has not joined")
	vps := l.join(Invite{Name: "vps", Role: RoleRelay}, "vps")
	atVPS := l.enforcing(vps, 0)
	_, err = l.server.Seat(ctx, "nobody")
	wantKind(t, err, KindNotFound, "no user")

	// Many ask at once, by name and by id: there is one.
	id := l.server.ledger.now().userByName["alice"].ID
	seats := make([]netip.Addr, 8)
	var wg sync.WaitGroup
	for i := range seats {
		wg.Go(func() {
			who := "alice"
			if i%2 == 1 {
				who = id
			}
			var err error
			if seats[i], err = l.server.Seat(ctx, who); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if slices.ContainsFunc(seats, func(a netip.Addr) bool { return a != seats[0] }) {
		t.Fatalf("alice has the seats %v", seats)
	}

	// The gateway knows the seat and its carrier, and lets the carrier do nothing.
	m := l.g.await("the seat", hosts("alice-at-vps"))
	if !slices.Contains(names(m.Peers), "vps") || m.Hosted[0].Host != vps.NodeID || !m.Hosted[0].Seat || m.Hosted[0].Addrs[0] != seats[0] || m.Hosted[0].User != "alice" {
		t.Errorf("%+v", m)
	}
	for _, s := range m.Ruleset.Sources {
		if s.Node == "vps" {
			t.Errorf("the carrier may begin at the gateway: %+v", s)
		}
	}
	m = atVPS.await("the gateway and the seat", func(m *Map) bool { return hosts("alice-at-vps")(m) && slices.Contains(names(m.Peers), "gw") })
	if !slices.Equal(m.Ruleset.Hosted, seats[:1]) || len(m.Ruleset.Self) != 1 || len(m.Ruleset.Rules) != 0 {
		t.Errorf("the carrier's rules: %+v", m.Ruleset)
	}
	if m := l.atBob.await("a map", func(*Map) bool { return true }); len(m.Hosted) != 0 {
		t.Errorf("bob's desk sees %v", names(m.Hosted))
	}

	// What changes brought is what a new stream gets whole, also from a file.
	for _, nd := range []*node{vps, l.gw} {
		fresh := l.follow(nd, FollowOptions{}).await("a whole map", func(*Map) bool { return true })
		again, err := ParseMap(fresh.Append(nil))
		if err != nil || !slices.Equal(names(again.Hosted), names(fresh.Hosted)) || !hosts("alice-at-vps")(fresh) {
			t.Errorf("%v, %v: %v", names(fresh.Hosted), names(again.Hosted), err)
		}
	}
	info, err := l.admin.Nodes(ctx)
	if i := slices.IndexFunc(info, func(n NodeInfo) bool { return n.Seat }); err != nil || i < 0 || info[i].Host != vps.NodeID || !info[i].Online {
		t.Errorf("nodes: %+v, %v", info, err)
	}
	_, err = l.admin.UpdateNode(ctx, "alice-at-vps", NodeUpdate{User: ptr("bob")})
	wantKind(t, err, KindInvalid, "nobody else's")
}

// TestSeatReaches: nothing reaches a seat, and what is on the carrier itself is
// judged by policy too.
func TestSeatReaches(t *testing.T) {
	l, _, _ := newHubLab(t)
	l.apply("rules:\n  - {name: vps, src: alice, dst: relays, ports: tcp/22}\n  - {name: all, src: bob, dst: \"*\"}\n")
	seat, err := l.server.Seat(t.Context(), "alice")
	if err != nil {
		t.Fatal(err)
	}
	vps := l.server.ledger.now().byName["vps"]
	for _, c := range []struct {
		user string
		to   netip.AddrPort
		want bool
	}{
		{"alice", netip.AddrPortFrom(addrOf(testOverlay, vps.Label), 22), true},
		{"alice", netip.AddrPortFrom(addrOf(testOverlay, vps.Label), 23), false},
		{"bob", netip.AddrPortFrom(addrOf(testOverlay, vps.Label), 23), true},
		{"bob", netip.AddrPortFrom(seat, 22), false},
	} {
		if ok, err := l.server.Reaches(c.user, "tcp", c.to); err != nil || ok != c.want {
			t.Errorf("%s to %s: %t, %v", c.user, c.to, ok, err)
		}
	}
	if r := l.server.ledger.now().rulesetOf(vps); len(r.Rules) != 2 {
		t.Errorf("%+v", r)
	} else {
		for _, set := range r.To {
			if slices.Contains(set.Prefixes, netip.PrefixFrom(seat, 32)) {
				t.Errorf("the seat can be reached: %+v", set)
			}
		}
	}
}

// TestGuestNames: a user hears of no name of a host that the user may not reach, and
// of no gateway with nothing but such.
func TestGuestNames(t *testing.T) {
	l, _, _ := newHubLab(t)
	l.join(Invite{Name: "far", Routes: []prefix{pfx("10.9.0.0/16")}}, "far")
	l.apply(`hosts: {nas: 192.168.1.201, Printer: 192.168.1.9, lan: 192.168.1.0/24}
rules:
  - {name: ssh, src: alice, dst: nas, ports: tcp/22}
  - {name: all, src: bob, dst: "*"}
`)
	for _, c := range []struct{ user, name, want string }{
		{"alice", "nas", "192.168.1.201"}, {"alice", "NAS.", "192.168.1.201"}, {"alice", "printer", ""}, {"alice", "gw", ""}, {"alice", "lan", ""},
		{"bob", "printer", "192.168.1.9"}, {"bob", "nowhere", ""}, {"", "printer", "192.168.1.9"},
	} {
		a, err := l.server.HostAddr(c.user, c.name)
		if got := a.String(); c.want != "" && got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s hears that %s is %s, %v", c.user, c.name, got, err)
		}
	}
	if lans, err := l.server.LANs("alice"); err != nil || !slices.Equal(lans, []netip.Prefix{pfx("192.168.1.0/24")}) {
		t.Errorf("alice: %v, %v", lans, err)
	}
	if lans, err := l.server.LANs("bob"); err != nil || len(lans) != 2 {
		t.Errorf("bob: %v, %v", lans, err)
	}
	if _, err := l.server.LANs("nobody"); err == nil {
		t.Error("nobody has networks")
	}
}

// TestRevokeSeat: a revocation of the user, or of the seat, ends it at all who
// knew it, within a second.
func TestRevokeSeat(t *testing.T) {
	l, vps, atVPS := newHubLab(t)
	ctx := t.Context()
	first, err := l.server.Seat(ctx, "alice")
	if err != nil {
		t.Fatal(err)
	}
	gone := func(m *Map) bool { return len(m.Hosted) == 0 && !slices.Contains(names(m.Peers), "vps") }
	r, err := l.admin.Revoke(ctx, "alice-at-vps")
	if err != nil || len(r.Nodes) != 2 || r.Nodes[0].Node != "gw" || r.Nodes[1].Node != "vps" || !r.Nodes[0].Applied || !r.Nodes[1].Applied {
		t.Fatalf("%+v, %v", r, err)
	}
	l.g.await("no seat", gone)
	atVPS.await("no seat", func(m *Map) bool { return hosts()(m) && len(m.Ruleset.Hosted) == 0 })
	second, err := l.server.Seat(ctx, "alice")
	if err != nil || second == first {
		t.Fatalf("after the removal: %s, %v", second, err)
	}
	l.g.await("the new seat", hosts("alice-at-vps"))

	r, err = l.admin.Revoke(ctx, "alice")
	if err != nil || r.Took > time.Second || len(r.Nodes) != 2 {
		t.Fatalf("%+v, %v", r, err)
	}
	l.g.await("no seat", gone)
	atVPS.await("no seat", hosts())
	_, err = l.server.Seat(ctx, "alice")
	wantKind(t, err, KindDenied, "disabled")
	if _, err := l.admin.UpdateUser(ctx, "alice", UserUpdate{Disabled: ptr(false)}); err != nil {
		t.Fatal(err)
	}
	l.g.await("the seat again", hosts("alice-at-vps"))
	if again, err := l.server.Seat(ctx, "alice"); err != nil || again != second {
		t.Errorf("enabled again: %s, %v", again, err)
	}
	if _, err := l.admin.RemoveUser(ctx, "alice"); err != nil {
		t.Fatal(err)
	}
	l.g.await("no seat", gone)
	if snap := l.server.ledger.now(); snap.byName["alice-at-vps"] != nil || snap.nodes[vps.NodeID] == nil {
		t.Error("the user's seat is still there, or its carrier is gone")
	}
}

// TestHostedGuards: a map in which a hosted member is not what it may be is refused.
func TestHostedGuards(t *testing.T) {
	good := func() *Map {
		n := func(label uint32, host string) Node {
			return Node{ID: "n" + host + string(rune('a'+label)), Name: "x" + string(rune('a'+label)), Label: label, Role: RoleMember, State: NodeActive,
				WireGuard: key.NewPrivate().Public(), Addrs: []netip.Addr{addrOf(testOverlay, label)}, Host: host}
		}
		return &Map{Version: 1, Overlay: testOverlay, Self: n(1, ""), Peers: []Node{n(2, ""), n(3, "")}, Hosted: []Node{n(4, "nc"), n(5, "nc")}}
	}
	if _, err := ParseMap(good().Append(nil)); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Map){
		"nobody carries it":      func(m *Map) { m.Hosted[0].Host = "" },
		"it carries itself":      func(m *Map) { m.Hosted[0].Host = m.Hosted[0].ID },
		"another's address":      func(m *Map) { m.Hosted[0].Addrs = []netip.Addr{addrOf(testOverlay, 2)} },
		"two addresses":          func(m *Map) { m.Hosted[0].Addrs = append(m.Hosted[0].Addrs, addrOf(testOverlay, 9)) },
		"a route":                func(m *Map) { m.Hosted[0].Routes = []Route{{pfx("10.0.0.0/8"), true}} },
		"a peer's label":         func(m *Map) { m.Hosted[0].Label, m.Hosted[0].Addrs[0] = 2, addrOf(testOverlay, 2) },
		"this node's label":      func(m *Map) { m.Hosted[0].Label, m.Hosted[0].Addrs[0] = 1, addrOf(testOverlay, 1) },
		"out of order":           func(m *Map) { slices.Reverse(m.Hosted) },
		"a gateway":              func(m *Map) { m.Hosted[0].Role = RoleGateway },
		"a seat that stands":     func(m *Map) { m.Peers[0].Seat = true },
		"a carrier without name": func(m *Map) { m.Hosted[0].Host = "No Name" },
	} {
		m := good()
		spoil(m)
		if _, err := ParseMap(m.Append(nil)); err == nil {
			t.Errorf("%s: it is taken", name)
		}
	}
}

// TestDevice: a stock WireGuard is its user's, known with its key by who carries
// it alone, and neither key nor name is ever two's.
func TestDevice(t *testing.T) {
	l, vps, atVPS := newHubLab(t)
	ctx, k := t.Context(), key.NewPrivate().Public()
	d, err := l.admin.AddDevice(ctx, "alice", "phone", k)
	if err != nil {
		t.Fatal(err)
	}
	if d.WireGuard != k || d.User != "alice" || d.Host != vps.NodeID || d.Seat || d.RelayKey != vps.private.Public() || !d.Expires.IsZero() ||
		!slices.Equal(d.Prefixes, []netip.Prefix{testOverlay, pfx("192.168.1.0/24")}) {
		t.Errorf("%+v", d)
	}
	m := l.g.await("the phone", hosts("phone"))
	if !m.Hosted[0].WireGuard.IsZero() || m.Hosted[0].Host != vps.NodeID || m.Hosted[0].User != "alice" {
		t.Errorf("the gateway knows %+v", m.Hosted[0])
	}
	m = atVPS.await("the phone and its key", func(m *Map) bool { return hosts("phone")(m) && m.Hosted[0].WireGuard == k })
	if !slices.ContainsFunc(m.Ruleset.Sources, func(s policy.Source) bool { return s.Node == "phone" && s.User == "alice" }) {
		t.Errorf("the carrier does not know who sends: %+v", m.Ruleset.Sources)
	}

	for what, try := range map[string]func() error{
		"that of the device phone":    func() error { _, err := l.admin.AddDevice(ctx, "bob", "tablet", k); return err },
		"that of the node laptop":     func() error { _, err := l.admin.AddDevice(ctx, "bob", "tablet", l.alice.private.Public()); return err },
		"that of the node vps":        func() error { _, err := l.admin.AddDevice(ctx, "bob", "tablet", vps.private.Public()); return err },
		"is taken by a device":        func() error { _, err := l.admin.AddDevice(ctx, "bob", "phone", key.NewPrivate().Public()); return err },
		"is taken by the node":        func() error { _, err := l.admin.AddDevice(ctx, "bob", "laptop", key.NewPrivate().Public()); return err },
		"belongs to the device phone": func() error { s := l.stranger(); _, err := s.c.Enroll(ctx, EnrollRequest{WireGuard: k}); return err },
	} {
		wantKind(t, try(), KindConflict, what)
	}
	_, err = l.admin.AddDevice(ctx, "bob", "tablet", key.Public{})
	wantKind(t, err, KindInvalid, "empty")
	_, err = l.admin.AddDevice(ctx, "nobody", "tablet", key.NewPrivate().Public())
	wantKind(t, err, KindNotFound, "no user")
	_, err = l.adminOf(l.alice).AddDevice(ctx, "alice", "tablet", key.NewPrivate().Public())
	wantKind(t, err, KindDenied, "admin")

	// The carrier knows that the device has its key in a file, also while the
	// device is nobody's business.
	if _, err := l.admin.UpdateUser(ctx, "alice", UserUpdate{Disabled: ptr(true)}); err != nil {
		t.Fatal(err)
	}
	m = atVPS.await("no phone of a disabled user", hosts())
	if m.Self.Devices != 1 {
		t.Errorf("the carrier knows of %d devices, want that of the disabled user", m.Self.Devices)
	}
	if _, err := l.admin.UpdateUser(ctx, "alice", UserUpdate{Disabled: ptr(false)}); err != nil {
		t.Fatal(err)
	}
	atVPS.await("the phone again", hosts("phone"))

	// It is another user's from one moment to the next, and nobody's after that.
	if _, err := l.admin.UpdateNode(ctx, "phone", NodeUpdate{User: ptr("bob")}); err != nil {
		t.Fatal(err)
	}
	l.g.await("bob's phone", func(m *Map) bool { return hosts("phone")(m) && m.Hosted[0].User == "bob" })
	r, err := l.admin.Revoke(ctx, "node:"+d.ID)
	if err != nil || len(r.Nodes) != 2 || !r.Nodes[0].Applied || !r.Nodes[1].Applied {
		t.Errorf("%+v, %v", r, err)
	}
	l.g.await("no phone", hosts())
	if m := atVPS.await("no phone", hosts()); m.Self.Devices != 0 {
		t.Errorf("the carrier knows of %d devices, want none", m.Self.Devices)
	}
	if _, err := l.admin.AddDevice(ctx, "alice", "phone", k); err != nil {
		t.Errorf("the key of a removed device: %v", err)
	}
}
