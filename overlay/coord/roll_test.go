package coord

import (
	"crypto/ed25519"
	"maps"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"overlayd/overlay/key"
	"overlayd/overlay/policy"
)

// testRoll has everybody of a map, and is newer.
func testRoll(m *Map) *Roll {
	r := &Roll{Network: m.Network, Version: m.Version + 1, nodes: map[rollNode]bool{m.Network.rollNode(m.Self.ID): true}}
	for _, p := range slices.Concat(m.Peers, m.Hosted) {
		r.nodes[m.Network.rollNode(p.ID)] = true
	}
	return r
}

// reopen signs a roll and opens it.
func reopen(t *testing.T, r *Roll) *Roll {
	t.Helper()
	k := key.NewMachine()
	again, err := r.sign(k).Open(k.Public(), r.Network)
	if err != nil {
		t.Fatal(err)
	}
	return again
}

func TestRollIsTheCoordinators(t *testing.T) {
	k, m := key.NewMachine(), testMap()
	s := testRoll(m).sign(k)
	if r, err := s.Open(k.Public(), m.Network); err != nil || r.Version != m.Version+1 || len(r.nodes) != len(m.Peers)+1 {
		t.Errorf("%+v, %v", r, err)
	}
	forged, other := SignedRoll{slices.Clone(s.Roll), s.Signature}, m.Network
	forged.Roll[len(forged.Roll)-1] ^= 1
	other[0] ^= 1
	for name, err := range map[string]error{
		"changed":            failure(forged.Open(k.Public(), m.Network)),
		"another signer":     failure(s.Open(key.NewMachine().Public(), m.Network)),
		"no signer":          failure(s.Open(key.MachinePublic{}, m.Network)),
		"another network":    failure(s.Open(k.Public(), other)),
		"nothing":            failure(SignedRoll{}.Open(k.Public(), m.Network)),
		"a bare signature":   failure(SignedRoll{nil, s.Signature}.Open(k.Public(), m.Network)),
		"a map's beginnings": failure(SignedRoll{m.Append(nil), s.Signature}.Open(k.Public(), m.Network)),
	} {
		if err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func failure(_ *Roll, err error) error { return err }

func TestNarrow(t *testing.T) {
	m := testMap()
	gone, stays := m.Peers[0], m.Peers[1:]
	host := func(n Node) netip.Prefix { return netip.PrefixFrom(n.Addrs[0], n.Addrs[0].BitLen()) }
	m.Ruleset = &policy.Ruleset{Node: m.Self.Name}
	for _, p := range m.Peers {
		m.Ruleset.Sources = append(m.Ruleset.Sources, policy.Source{Address: p.Addrs[0], Node: p.Name})
		m.Ruleset.From = append(m.Ruleset.From, policy.Set{ID: "node:" + p.Name, Prefixes: []netip.Prefix{host(p)}})
	}
	m.Ruleset.Rules = []policy.NodeRule{{ID: "all"}, {ID: policy.GrantPrefix + "a1"}, {ID: policy.GrantPrefix + "a2"}}
	before := m.Ruleset.Digest()

	r := testRoll(m)
	r.Grants = []string{"a1", "a2"}
	if got := m.Narrow(reopen(t, r)); got != m {
		t.Error("a roll with everybody changed the map")
	}
	r.Grants = []string{"a2", "a3"}
	delete(r.nodes, m.Network.rollNode(gone.ID))
	r.Version = m.Version
	if got := m.Narrow(reopen(t, r)); got != m {
		t.Error("an old roll changed the map")
	}
	r.Version++
	got := m.Narrow(reopen(t, r))
	if len(got.Peers) != len(stays) || got.Peers[0].ID != stays[0].ID || got.Version != m.Version {
		t.Errorf("peers %+v at version %d", got.Peers, got.Version)
	}
	s := got.Ruleset
	if len(s.Sources) != len(stays) || s.Sources[0].Node != stays[0].Name || len(s.From[0].Prefixes) != 0 || len(s.From[1].Prefixes) != 1 {
		t.Errorf("sources %+v, sets %+v", s.Sources, s.From)
	}
	if len(s.Rules) != 2 || s.Rules[0].ID != "all" || s.Rules[1].ID != "grant:a2" {
		t.Errorf("rules %+v", s.Rules)
	}
	if m.Ruleset.Digest() != before || len(m.Peers) != len(stays)+1 {
		t.Error("the old map changed")
	}
	if got.Narrow(reopen(t, r)) != got {
		t.Error("narrowed twice")
	}
}

// TestHandOn: a relay hands on the newest roll that it heard of, in whatever order
// it hears of them, and whether or not it tells the relay itself anything.
func TestHandOn(t *testing.T) {
	k, m := key.NewMachine(), testMap()
	m.Signer, m.Self.Role = k.Public(), RoleRelay
	at := func(version uint64) SignedRoll {
		r := testRoll(m)
		r.Version = version
		return r.sign(k)
	}
	for _, step := range []struct {
		version, want uint64 // 0: none
	}{{m.Version, 0}, {m.Version + 2, m.Version + 2}, {m.Version + 1, m.Version + 2}, {m.Version + 3, m.Version + 3}} {
		m = m.HandOn(at(step.version))
		r, err := m.Roll.Open(k.Public(), m.Network)
		if step.want == 0 {
			if err == nil {
				t.Errorf("the roll of version %d is taken by a map of %d", step.version, m.Version)
			}
		} else if err != nil || r.Version != step.want {
			t.Errorf("after version %d: %+v, %v", step.version, r, err)
		}
	}
	if again := m.HandOn(testRoll(m).sign(key.NewMachine())); again != m {
		t.Error("a forged roll is handed on")
	}
	if m.Self.Role = RoleMember; m.HandOn(at(m.Version+9)) != m {
		t.Error("somebody who is no relay hands on")
	}
}

// What is taken away, the relays' roll does not have any more; and
// nobody but relays gets one.
func TestRelaysKnowTheRoll(t *testing.T) {
	n := newNetwork(t)
	n.first()
	r, offer := n.joinRelay("vps2", "198.51.100.10:443")
	a, b := n.join(Invite{}, "a"), n.join(Invite{}, "b")
	fa, fr := n.follow(a, FollowOptions{}), n.follow(r, FollowOptions{Relay: offer})
	old := fa.await("both", func(m *Map) bool { return len(m.Peers) == 3 && !m.Signer.IsZero() && m.Roll.isZero() })
	has := func(id string) func(*Map) bool {
		return func(m *Map) bool {
			roll, err := m.Roll.Open(m.Signer, m.Network)
			return err == nil && m.Signer == old.Signer && roll.nodes[m.Network.rollNode(id)]
		}
	}
	fr.await("b on the roll", has(b.NodeID))
	g, err := n.admin.Grant(t.Context(), "b", a.Name, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	fr.await("the grant", func(m *Map) bool {
		roll, err := m.Roll.Open(m.Signer, m.Network)
		return err == nil && slices.Contains(roll.Grants, g.ID)
	})
	if _, err := n.admin.RemoveUser(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	m := fr.await("b off the roll", func(m *Map) bool { return has(a.NodeID)(m) && !has(b.NodeID)(m) })
	roll, err := m.Roll.Open(old.Signer, old.Network)
	if err != nil || len(roll.Grants) != 0 {
		t.Errorf("%+v, %v", roll, err)
	}
	if got := old.Narrow(roll); len(got.Peers) != 2 || slices.ContainsFunc(got.Peers, func(p Node) bool { return p.Name == "b" }) {
		t.Errorf("an old map keeps %+v", got.Peers)
	}
}

// The signing key is not in the record of changes.
func TestSignerIsASecret(t *testing.T) {
	n := newNetwork(t)
	if seed := n.server.ledger.now().network.Signer; len(seed) == 0 || strings.Contains(string(n.server.ledger.now().before(keyNetwork)), "signer") {
		t.Error("the signing key is missing, or in the record")
	}
}

func TestAskForTheRoll(t *testing.T) {
	m := testMap()
	signed := testRoll(m).sign(key.NewMachine())
	var newest SignedRoll
	relay := httptest.NewUnstartedServer(RollHandler(func() SignedRoll { return newest }))
	relay.EnableHTTP2 = true // as a relay has it
	relay.StartTLS()
	defer relay.Close()
	c, err := NewClient(ClientOptions{Endpoint: "127.0.0.1:1", Pin: testPin(), Machine: key.NewMachine()})
	if err != nil {
		t.Fatal(err)
	}
	at := Relay{Name: "vps2", Endpoint: relay.Listener.Addr().String(), Pin: key.PinOf(relay.Certificate())}
	if _, err := c.Roll(t.Context(), at); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("a relay without a roll: %v", err)
	}
	newest = signed
	got, err := c.Roll(t.Context(), at)
	if err != nil || string(got.Roll) != string(signed.Roll) || string(got.Signature) != string(signed.Signature) {
		t.Errorf("%v, %v", got, err)
	}
	newest.Roll = make([]byte, maxRoll)
	if _, err := c.Roll(t.Context(), at); err == nil {
		t.Error("a roll without end was read")
	}
	at.Pin = testPin()
	if _, err := c.Roll(t.Context(), at); err == nil {
		t.Error("a stranger was asked")
	}
}

func FuzzOpenRoll(f *testing.F) {
	k, m := key.NewMachine(), testMap()
	f.Add(testRoll(m).sign(k).Roll)
	f.Add([]byte{})
	f.Add([]byte("\x0a\x02\x1a\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parseSignedRoll(b); err == nil {
			if _, err := s.Open(k.Public(), m.Network); err == nil {
				t.Error("what nobody signed was taken")
			}
		}
		r, err := SignedRoll{b, ed25519.Sign(k.Signer(), signedRoll(b))}.Open(k.Public(), m.Network)
		if err != nil {
			return
		}
		if again, err := r.sign(k).Open(k.Public(), m.Network); err != nil || !maps.Equal(again.nodes, r.nodes) || !slices.Equal(again.Grants, r.Grants) || again.Version != r.Version {
			t.Errorf("%+v became %+v (%v)", r, again, err)
		}
	})
}
