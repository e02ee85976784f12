package coord

import (
	"context"
	"time"

	"overlayd/overlay/key"
)

// rekeyGap is the least time between two keys of a node: each goes to everybody
// who may talk to it.
const rekeyGap = 10 * time.Second

// keyed returns since when a node has its WireGuard key.
func (n *nodeRecord) keyed() time.Time {
	if n.Keyed.IsZero() {
		return n.Joined
	}
	return n.Keyed
}

// rekey decides what a node's other WireGuard key changes.
func (s *snapshot) rekey(id string, k key.Public, now time.Time) ([]Record, error) {
	n := s.nodes[id]
	if n == nil {
		return nil, errNotMember
	}
	if n.WireGuard == k {
		return nil, nil
	}
	if other := s.byWireGuard[k]; other != nil {
		return nil, problem(KindConflict, "a state directory was copied: delete the copy and join again", "the WireGuard key belongs to the node %s", other.Name)
	}
	if since := now.Sub(n.Keyed); since >= 0 && since < rekeyGap {
		return nil, problem(KindConflict, "wait "+(rekeyGap-since).Round(time.Second).String(), "%s has had its key for %s only", n.Name, since.Round(time.Second))
	}
	next := *n
	next.WireGuard, next.Keyed = k, now
	return []Record{putNode(next)}, nil
}

// rekey takes the WireGuard key that a node reports.
func (s *Server) rekey(ctx context.Context, id string, b []byte) error {
	k, err := key.PublicFromBytes(b)
	if err != nil || k.IsZero() {
		return problem(KindInvalid, "", "the WireGuard key is malformed")
	}
	if changes, err := s.ledger.now().rekey(id, k, s.o.Now().UTC()); err != nil || len(changes) == 0 {
		return err // most reports change nothing
	}
	return s.ledger.change(ctx, func(snap *snapshot) ([]Record, error) { return snap.rekey(id, k, s.o.Now().UTC()) })
}
