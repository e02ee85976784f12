package overlay

import (
	"log/slog"
	"testing"
	"time"

	"overlayd/overlay/coord"
	"overlayd/overlay/key"
	"overlayd/overlay/tunnel"
)

// Gateways and relays make a new key of themselves when the old one is a month
// old, and people's machines when they are renewed.
func TestRotationDue(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	old, young := now.Add(-rotateEvery), now.Add(-rotateEvery+time.Second)
	for _, tt := range []struct {
		name string
		self coord.Node
		want bool
	}{
		{"an old gateway", coord.Node{Role: coord.RoleGateway, State: coord.NodeActive, Keyed: old}, true},
		{"a young gateway", coord.Node{Role: coord.RoleGateway, State: coord.NodeActive, Keyed: young}, false},
		{"an old relay", coord.Node{Role: coord.RoleRelay, State: coord.NodeActive, Keyed: old}, true},
		{"a gateway that is disabled", coord.Node{Role: coord.RoleGateway, State: coord.NodeDisabled, Keyed: old}, false},
		{"a coordinator that knows of no such thing", coord.Node{Role: coord.RoleGateway, State: coord.NodeActive}, false},
		{"an old laptop", coord.Node{Role: coord.RoleMember, State: coord.NodeActive, Keyed: old}, false},
		{"a renewed laptop", coord.Node{Role: coord.RoleMember, State: coord.NodeActive, Keyed: young, Renewed: now}, true},
		{"a laptop with a key from after", coord.Node{Role: coord.RoleMember, State: coord.NodeActive, Keyed: now, Renewed: young}, false},
		{"a laptop that has just joined", coord.Node{Role: coord.RoleMember, State: coord.NodeActive, Keyed: now, Renewed: now}, false},
	} {
		if got := rotationDue(tt.self, now); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

// Who talks to this node and would not hear of its new key is waited for.
func TestStrands(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	peers := []coord.Node{peerNode("a", true), peerNode("b", false), peerNode("c", false), peerNode("d", false)}
	got := strands(peers, map[key.Public]tunnel.Stat{
		peers[0].WireGuard: {LastHandshake: now},
		peers[1].WireGuard: {LastHandshake: now.Add(-time.Minute)},
		peers[2].WireGuard: {LastHandshake: now.Add(-time.Hour)},
	}, now)
	if len(got) != 1 || got[0] != "b" {
		t.Errorf("%v", got)
	}
}

func peerNode(id string, online bool) coord.Node {
	return coord.Node{ID: id, Name: id, Online: online, WireGuard: key.NewPrivate().Public()}
}

func TestKeyring(t *testing.T) {
	a, b, c := peerNode("a", true), peerNode("b", true), peerNode("c", false)
	r := keyring{}
	if got := r.rotated([]coord.Node{a, b, c}); got != nil {
		t.Errorf("new peers rotated: %v", got)
	}
	if got := r.rotated([]coord.Node{a, b, c}); got != nil {
		t.Errorf("nobody rotated, and %v", got)
	}
	a.WireGuard, c.WireGuard = key.NewPrivate().Public(), key.NewPrivate().Public()
	if got := r.rotated([]coord.Node{a, c}); len(got) != 1 || got[0].ID != "a" {
		t.Errorf("%v", got)
	}
	if len(r) != 2 {
		t.Errorf("%d keys are remembered", len(r))
	}
}

// Whatever moment a rotation is cut short at, the key in use after the next start
// is one that the peers have.
func TestRotationIsKept(t *testing.T) {
	dir := stateDir{t.TempDir()}
	id := &identity{Machine: key.NewMachine(), WireGuard: key.NewPrivate(), NodeID: "n1", Name: "gw", Role: coord.RoleGateway}
	if err := dir.saveIdentity(id); err != nil {
		t.Fatal(err)
	}
	k := newOwnKeys(slog.New(slog.DiscardHandler), dir, id)
	old := id.WireGuard
	if err := k.renew(); err != nil {
		t.Fatal(err)
	}
	next := id.Next
	if !id.rotates() || k.wished() != next.Public() || !k.current().Equal(old) {
		t.Fatalf("it wishes %v and has %v", k.wished(), k.current().Public())
	}
	if err := k.renew(); err != nil || !id.Next.Equal(next) {
		t.Errorf("asked twice, it has two new keys (%v)", err)
	}
	load := func() *identity {
		t.Helper()
		again, err := dir.identity()
		if err != nil {
			t.Fatal(err)
		}
		return again
	}
	for name, tt := range map[string]struct {
		m    *coord.Map
		want key.Private
	}{
		"no map":                           {nil, old},
		"a map with the old key":           {&coord.Map{Self: coord.Node{WireGuard: old.Public()}}, old},
		"a map with the new key":           {&coord.Map{Self: coord.Node{WireGuard: next.Public()}}, next},
		"a map with a key that it has not": {&coord.Map{Self: coord.Node{WireGuard: key.NewPrivate().Public()}}, old},
	} {
		i := load()
		if i.promote(tt.m); !i.WireGuard.Equal(tt.want) {
			t.Errorf("%s: another key", name)
		}
	}
	k.told(old.Public()) // an answer to a report from before
	if !k.current().Equal(old) {
		t.Error("the new key is used before the coordinator has it")
	}
	k.told(next.Public())
	if i := load(); !k.current().Equal(next) || !i.WireGuard.Equal(next) || i.rotates() || k.wished() != next.Public() {
		t.Error("the new key is not in use, or not kept")
	}
}
