package coord

import (
	"bytes"
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"overlayd/overlay/key"
)

// joinRelay makes a stranger a relay.
func (n *network) joinRelay(name, endpoint string) (*node, *RelayOffer) {
	n.t.Helper()
	nd, offer := n.stranger(), &RelayOffer{Endpoint: endpoint, Pin: testPin(), Secret: key.NewSecret()}
	if err := nd.enrollRelay(n.invite(Invite{Name: name, Role: RoleRelay}), offer); err != nil {
		n.t.Fatal(err)
	}
	return nd, offer
}

func (nd *node) enrollRelay(l Link, offer *RelayOffer) (err error) {
	nd.Enrolled, err = nd.c.Enroll(context.Background(), EnrollRequest{
		Invite: l.Invite, Secret: l.Secret, Role: RoleRelay, WireGuard: nd.private.Public(), Relay: offer,
	})
	return err
}

// first makes the node of the coordinator's own machine.
func (n *network) first() *node {
	n.t.Helper()
	nd := n.stranger()
	if err := nd.enrollRelay(n.invite(Invite{Name: "vps", Role: RoleRelay}), nil); err != nil {
		n.t.Fatal(err)
	}
	return nd
}

func TestSecondRelay(t *testing.T) {
	n := newNetwork(t)
	own := n.first()
	a, b := n.join(Invite{}, "a"), n.join(Invite{}, "b")
	fa := n.follow(a, FollowOptions{})
	fa.await("one relay", func(m *Map) bool { return len(m.Relays) == 1 && m.Relays[0].Label == own.Label && len(m.Passes) == 1 })

	r, offer := n.joinRelay("vps2", "198.51.100.10:443")
	m := fa.await("two relays, and a pass for each", func(m *Map) bool { return len(m.Relays) == 2 && len(m.Passes) == 2 })
	want := Relay{ID: r.NodeID, Name: "vps2", Endpoint: offer.Endpoint, Label: r.Label, Pin: offer.Pin}
	if m.Relays[1] != want || m.Passes[1].Relay != r.NodeID || m.Passes[1].Key.Equal(m.Passes[0].Key) {
		t.Errorf("relays %+v, passes %v", m.Relays, m.Passes)
	}
	if m.Revoked != nil {
		t.Error("a member is told what relays have to refuse")
	}

	fr := n.follow(r, FollowOptions{Relay: offer})
	if m := fr.await("its map", func(m *Map) bool { return len(m.Relays) == 2 }); len(m.Passes) != 1 || m.Passes[0].Relay != "r1" {
		t.Errorf("the relay's own passes: %v", m.Passes)
	}
	if _, err := n.admin.RemoveNode(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	gone := <-n.removed
	fr.await("the removal", func(m *Map) bool { return slices.Contains(m.Revoked, gone) && gone.Label == b.Label })

	if _, err := n.admin.RenameNode(t.Context(), "vps2", "paris"); err != nil {
		t.Fatal(err)
	}
	fa.await("the relay's new name", func(m *Map) bool { return m.Relays[1].Name == "paris" })
	_, err := n.admin.RemoveNode(t.Context(), "vps")
	wantKind(t, err, KindConflict, "coordinator itself")
	if _, err := n.admin.RemoveNode(t.Context(), "paris"); err != nil {
		t.Fatal(err)
	}
	fa.await("one relay again", func(m *Map) bool { return len(m.Relays) == 1 && len(m.Passes) == 1 })
	wantKind(t, fr.ended(), KindDenied, "removed")
}

// A relay that was started with another address, or lost its secret, says so
// when it comes back.
func TestRelayChangesItsOffer(t *testing.T) {
	n := newNetwork(t)
	n.first()
	r, offer := n.joinRelay("vps2", "198.51.100.10:443")
	a := n.join(Invite{}, "a")
	fa := n.follow(a, FollowOptions{})
	before := fa.await("two passes", func(m *Map) bool { return len(m.Passes) == 2 })
	next := *offer
	next.Endpoint, next.Secret = "198.51.100.10:8443", key.NewSecret()
	n.follow(r, FollowOptions{Relay: &next}).await("its map", func(m *Map) bool { return len(m.Relays) == 2 })
	fa.await("the new address and a pass by the new secret", func(m *Map) bool {
		return m.Relays[1].Endpoint == next.Endpoint && len(m.Passes) == 2 && !m.Passes[1].Key.Equal(before.Passes[1].Key)
	})
	offer.Endpoint = n.addr
	wantKind(t, n.follow(r, FollowOptions{Relay: offer}).failed(), KindConflict, "first relay")
}

// failed returns why the first attempt that fails does.
func (f *following) failed() error {
	f.t.Helper()
	for end := time.After(patience); ; {
		f.mu.Lock()
		states, moved := slices.Clone(f.states), f.moved
		f.mu.Unlock()
		for _, s := range states {
			if s.Err != nil {
				return s.Err
			}
		}
		select {
		case <-moved:
		case <-end:
			f.t.Fatal("no attempt failed")
		}
	}
}

func TestRelayOffers(t *testing.T) {
	n := newNetwork(t)
	n.first()
	n.joinRelay("vps2", "198.51.100.10:443")
	for name, c := range map[string]struct {
		invite Invite
		offer  *RelayOffer
		kind   Kind
		words  string
	}{
		"no offer":                {Invite{Role: RoleRelay}, nil, KindInvalid, "where it is"},
		"an invite for a member":  {Invite{}, &RelayOffer{Endpoint: "198.51.100.11:443", Secret: key.NewSecret()}, KindDenied, "not for a relay"},
		"the first's address":     {Invite{Role: RoleRelay}, &RelayOffer{Endpoint: n.addr, Secret: key.NewSecret()}, KindConflict, "first relay"},
		"another's address":       {Invite{Role: RoleRelay}, &RelayOffer{Endpoint: "198.51.100.10:443", Secret: key.NewSecret()}, KindConflict, "vps2"},
		"no address":              {Invite{Role: RoleRelay}, &RelayOffer{Endpoint: ":443", Secret: key.NewSecret()}, KindInvalid, "malformed"},
		"an address with a space": {Invite{Role: RoleRelay}, &RelayOffer{Endpoint: "a b:443", Secret: key.NewSecret()}, KindInvalid, "malformed"},
		"no secret":               {Invite{Role: RoleRelay}, &RelayOffer{Endpoint: "198.51.100.12:443"}, KindInvalid, "secret"},
	} {
		t.Run(name, func(t *testing.T) {
			wantKind(t, n.stranger().enrollRelay(n.invite(c.invite), c.offer), c.kind, c.words)
		})
	}
	guess := n.invite(Invite{Role: RoleRelay})
	guess.Secret = key.NewSecret() // who has no invite does not learn whose address it is either
	wantKind(t, n.stranger().enrollRelay(guess, &RelayOffer{Endpoint: "198.51.100.10:443", Secret: key.NewSecret()}), KindDenied, "unknown")
	wantKind(t, n.stranger().enroll(n.invite(Invite{Role: RoleRelay}), "x"), KindInvalid, "where it is") // no role named: the invite's
	_, err := n.server.Invite(t.Context(), Invite{Role: RoleRelay, Routes: []netip.Prefix{pfx("192.168.1.0/24")}})
	wantKind(t, err, KindInvalid, "no routes")
	nd := n.stranger()
	l := n.invite(Invite{Role: RoleRelay})
	_, err = nd.c.Enroll(t.Context(), EnrollRequest{Invite: l.Invite, Secret: l.Secret, Role: RoleMember, WireGuard: nd.private.Public()})
	wantKind(t, err, KindInvalid, "for a relay")
}

// What a node reports of its relays comes to its peers, and only when it changes.
func TestAttached(t *testing.T) {
	n := newNetwork(t)
	n.first()
	a, b := n.join(Invite{}, "a"), n.join(Invite{}, "b")
	told := []Attachment{{"r1", 20 * time.Millisecond}}
	n.follow(a, FollowOptions{Attached: func() []Attachment { return told }})
	f := n.follow(b, FollowOptions{})
	f.await("where a is", func(m *Map) bool {
		return slices.ContainsFunc(m.Peers, func(p Node) bool { return p.Name == "a" && slices.Equal(p.Attached, told) })
	})
	p, now := n.server.presence, time.Now().Add(moveGap)
	if p.attach(now, a.NodeID, told) || !p.attach(now, a.NodeID, nil) || p.attach(now, "nobody", told) {
		t.Error("what is a change of a's relays, and what is not")
	}
}

// TestAttachedTooOften: a node that changes its mind all the time keeps nobody
// busy, not even by a new stream each time, and its last word counts in the end.
func TestAttachedTooOften(t *testing.T) {
	p, now := newPresence(), time.Unix(1e9, 0)
	p.join("a", 1, now)
	words := [][]Attachment{{{Relay: "1"}}, {{Relay: "2"}}}
	taken := 0
	for i := range 1000 {
		p.join("a", 1, now)
		if p.attach(now, "a", words[i%2]) {
			taken++
		}
		now = now.Add(10 * time.Millisecond)
	}
	if most := int(10*time.Second/moveGap) + 1; taken > most || taken < 2 {
		t.Errorf("%d changes in ten seconds, want at most %d", taken, most)
	}
	now = now.Add(moveGap)
	p.attach(now, "a", words[0])
	if got := p.sighting("a").attached; !slices.Equal(got, words[0]) {
		t.Errorf("%v", got)
	}
	if now = now.Add(-time.Hour); !p.attach(now, "a", words[1]) {
		t.Error("the clock was set back, and nothing is taken any more")
	}
}

// The relay's secret is in the store, and in nobody's map.
func TestRelaySecretIsNotTold(t *testing.T) {
	n := newNetwork(t)
	n.first()
	_, offer := n.joinRelay("vps2", "198.51.100.10:443")
	f := n.follow(n.join(Invite{}, "a"), FollowOptions{})
	m := f.await("two relays", func(m *Map) bool { return len(m.Relays) == 2 })
	if bytes.Contains(m.Append(nil), offer.Secret.Expose()) {
		t.Error("a member's map holds a relay's secret")
	}
	if bytes.Contains([]byte(n.log.String()), offer.Secret.Expose()) {
		t.Error("the log holds a relay's secret")
	}
}

// TestRevocations: what is revoked is remembered for as long as a pass lives,
// the last of each label, and told once.
func TestRevocations(t *testing.T) {
	p, now := newPresence(), time.Unix(1e9, 0)
	first := p.revoke("", 5, now)
	before, at := p.revocations()
	p.revoke("", 6, now.Add(time.Hour))
	again := p.revoke("", 5, now.Add(2*time.Hour))
	rs, revision := p.revocations()
	if len(rs) != 2 || again.Serial <= first.Serial || revision == at || len(before) != 1 || before[0] != first {
		t.Errorf("%v, then %v", before, rs)
	}
	p.revoke("", 7, now.Add(passLife+90*time.Minute))
	if rs, _ := p.revocations(); len(rs) != 2 || rs[0].Label != 5 || rs[1].Label != 7 {
		t.Errorf("a week later %v", rs)
	}
}
