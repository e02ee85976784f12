package coord

import (
	"context"
	"time"

	"overlayd/overlay/key"
)

// rekeyGap is the least time between two keys of a node: each goes to everybody
// who may talk to it.
const rekeyGap = 10 * time.Second

const (
	// churnBurst is how often a node may change its own entry at once: its key,
	// what it advertises, where it relays. A gateway's network comes and goes a few
	// times while somebody works on it.
	churnBurst = 30
	// churnEvery gives one of these back. Each change is a commit, news for every
	// peer and about a kilobyte of the record: at this pace it takes one node two
	// years to drive out what the record has room for.
	churnEvery = 10 * time.Minute
)

// changeOwn is a change that a node makes of its own entry. What changes nothing
// costs no lock, and nobody has to wait for it.
func (s *Server) changeOwn(ctx context.Context, n *nodeRecord, decide func(*snapshot) ([]Record, error)) error {
	snap := s.ledger.now()
	if changes, err := decide(snap); err != nil || len(changes) == 0 {
		return err
	}
	at, now := addrOf(snap.network.Overlay, n.Label), s.o.Now()
	if wait := s.churn.Wait(at, now); wait > 0 {
		return problem(KindConflict, "wait "+wait.Round(time.Second).String(), "%s has changed too often of late", n.Name)
	}
	s.churn.Add(at, now)
	return s.ledger.change(ctx, decide)
}

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
func (s *Server) rekey(ctx context.Context, n *nodeRecord, b []byte) error {
	k, err := key.PublicFromBytes(b)
	if err != nil || k.IsZero() {
		return problem(KindInvalid, "", "the WireGuard key is malformed")
	}
	return s.changeOwn(ctx, n, func(snap *snapshot) ([]Record, error) { return snap.rekey(n.ID, k, s.o.Now().UTC()) })
}
