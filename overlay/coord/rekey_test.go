package coord

import (
	"fmt"
	"testing"
	"time"

	"overlayd/overlay/key"
)

// A node that reports another key gets it, in the eyes of all: the old one means
// nobody. Two keys in a moment, and another's key, are refused.
func TestRekey(t *testing.T) {
	n := newNetwork(t)
	gw, a := n.join(Invite{Role: RoleGateway}, "gw"), n.join(Invite{}, "a")
	current := gw.private.Public()
	told := make(chan key.Public, 10)
	wish := make(chan key.Public, 1)
	report := make(chan struct{}, 1)
	n.follow(gw, FollowOptions{
		Report: report,
		Key: func() key.Public {
			select {
			case k := <-wish:
				current = k
			default:
			}
			return current
		},
		Keyed: func(k key.Public) { told <- k },
	})
	fa := n.follow(a, FollowOptions{})
	sees := func(k key.Public) {
		t.Helper()
		fa.await("the gateway's key", func(m *Map) bool { return len(m.Peers) == 1 && m.Peers[0].WireGuard == k })
	}
	sees(current)
	next := key.NewPrivate().Public()
	before := n.server.ledger.now().nodes[gw.NodeID].keyed()
	wish <- next
	report <- struct{}{}
	for k := range told {
		if k == next {
			break
		}
	}
	sees(next)
	snap := n.server.ledger.now()
	if r := snap.nodes[gw.NodeID]; !r.keyed().After(before) || snap.byWireGuard[gw.private.Public()] != nil || snap.byWireGuard[next] != r {
		t.Errorf("the record is %+v", r)
	}
	now := n.now.Now()
	_, err := snap.rekey(gw.NodeID, key.NewPrivate().Public(), now)
	wantKind(t, err, KindConflict, "only")
	_, err = snap.rekey(gw.NodeID, a.private.Public(), now.Add(time.Hour))
	wantKind(t, err, KindConflict, "belongs to the node a")
	if changes, err := snap.rekey(gw.NodeID, next, now); len(changes) != 0 || err != nil {
		t.Errorf("the same key: %v, %v", changes, err)
	}
	wantKind(t, n.server.rekey(t.Context(), snap.nodes[gw.NodeID], []byte("short")), KindInvalid, "malformed")
}

// A node that changes its own entry all the time is kept waiting: each change is a
// line of the record, which has an end.
func TestChurn(t *testing.T) {
	n := newNetwork(t)
	gw := n.join(Invite{Role: RoleGateway}, "gw")
	own := func() *nodeRecord { return n.server.ledger.now().nodes[gw.NodeID] }
	service := nodeService{n.server}
	advertise := func(i int) error {
		return service.advertise(t.Context(), own(), []string{fmt.Sprintf("10.%d.0.0/16", i)})
	}
	for i := range churnBurst {
		if err := advertise(i); err != nil {
			t.Fatalf("change %d: %v", i, err)
		}
	}
	wantKind(t, advertise(churnBurst), KindConflict, "too often")
	wantKind(t, n.server.rekey(t.Context(), own(), key.NewPrivate().Public().Bytes()), KindConflict, "too often")
	if err := advertise(churnBurst - 1); err != nil {
		t.Errorf("what changes nothing: %v", err)
	}
	_, err := gw.c.Enroll(t.Context(), EnrollRequest{Name: "gw", WireGuard: key.NewPrivate().Public()})
	wantKind(t, err, KindConflict, "too often")
	n.now.add(churnEvery)
	if err := advertise(churnBurst); err != nil {
		t.Errorf("later: %v", err)
	}
}
