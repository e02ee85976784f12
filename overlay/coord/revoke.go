package coord

import (
	"context"
	"slices"
	"strings"
	"time"

	"overlayd/overlay/policy"
)

// revocation is what taking something away means.
type revocation struct {
	kind, name string
	grant      string        // its id, when it is one
	nodes      []*nodeRecord // that are shut out, or had the grant
	changes    []Record
}

// revocation decides what revoking changes. A user is disabled, and keeps
// neither grants nor open invites; a node is removed.
func (s *snapshot) revocation(what string, now time.Time) (revocation, error) {
	kind, ref, explicit := strings.Cut(what, ":")
	if !explicit {
		kind, ref = "", what
	}
	var found []string
	try := func(k string, is bool) {
		if is && (kind == "" || kind == k) {
			found = append(found, k)
		}
	}
	u, noUser := s.user(ref)
	n, noNode := s.node(ref)
	try("user", noUser == nil)
	try("node", noNode == nil)
	try("invite", s.invites[ref] != nil)
	try("grant", s.grants[ref] != nil)
	try("exposure", s.exposures[ref] != nil)
	// A machine that was invited for nobody has a user of its own of the same name:
	// whoever takes one away means both, and that can be undone.
	if slices.Equal(found, []string{"user", "node"}) && slices.Equal(s.nodesOf(u.ID), []*nodeRecord{n}) {
		found = found[:1]
	}
	switch {
	case len(found) == 0:
		return revocation{}, problem(KindNotFound, "see overlayd users, nodes, grants, invite list and expose list", "there is no user, node, invite, grant or exposure %.80q", what)
	case len(found) > 1:
		return revocation{}, problem(KindConflict, "say which: "+found[0]+":"+ref+" or "+found[1]+":"+ref, "%s is a %s and a %s", ref, found[0], found[1])
	}
	r := revocation{kind: found[0], name: ref}
	switch r.kind {
	case "user":
		return s.revokeUser(r, ref, now)
	case "node":
		n, changes, err := s.remove(ref, now)
		if err != nil {
			return r, err
		}
		r.name, r.nodes, r.changes = n.Name, []*nodeRecord{s.nodes[n.ID]}, changes
	case "invite":
		changes, err := s.revoke(ref)
		if err != nil {
			return r, err
		}
		r.changes = changes
	case "grant":
		r.grant, r.nodes = ref, s.nodesOf(s.grants[ref].User)
		r.changes = []Record{drop(keyGrant + ref)}
	case "exposure":
		r.changes = []Record{drop(keyExposure + ref)}
	}
	return r, nil
}

func (s *snapshot) revokeUser(r revocation, ref string, now time.Time) (revocation, error) {
	u, err := s.user(ref)
	if err != nil {
		return r, err
	}
	disabled := true
	_, changes, err := s.updateUser(u.ID, userUpdate{disabled: &disabled}, now)
	if err != nil {
		return r, err
	}
	r.name, r.nodes = u.Name, s.nodesOf(u.ID)
	r.changes = append(changes, s.endUser(u, now)...)
	return r, nil
}

// beforeRevocation is the snapshot with whom was revoked before let in again:
// who asks twice wants to know who has still not heard of it.
func (s *snapshot) beforeRevocation(r revocation) (*snapshot, error) {
	u := s.userByName[r.name]
	if r.kind != "user" || u == nil || !u.Disabled {
		return s, nil
	}
	enabled := *u
	enabled.Disabled = false
	return s.with(s.rev, []Record{putUser(enabled)})
}

// witnesses returns the nodes that have to apply a revocation: those that let
// the nodes in, or carried them.
func (s *snapshot) witnesses(r revocation) (list []*nodeRecord) {
	seen := map[string]bool{}
	for _, n := range r.nodes {
		seen[n.ID] = r.grant == ""
	}
	add := func(n *nodeRecord) {
		if !seen[n.ID] {
			seen[n.ID] = true
			list = append(list, n)
		}
	}
	for _, n := range r.nodes {
		for _, p := range s.peersOf(n) {
			if r.grant == "" || s.enforces(p, r.grant) {
				add(p)
			}
		}
	}
	if r.grant == "" && len(r.nodes) > 0 {
		for _, n := range s.joinedRelays() {
			add(n)
		}
	}
	slices.SortFunc(list, func(a, b *nodeRecord) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// enforces reports whether a node has a grant among its rules.
func (s *snapshot) enforces(n *nodeRecord, grant string) bool {
	for _, rule := range s.rulesetOf(n).Rules {
		if rule.ID == policy.GrantPrefix+grant {
			return true
		}
	}
	return false
}

// Ack says whether a node enforces a revocation.
type Ack struct {
	Node     string
	Online   bool
	Applied  bool
	FlowsCut int
}

// ackWait is how long a revocation waits for the nodes: an order of magnitude
// above what a slow line and a busy machine need.
const ackWait = 5 * time.Second

// Revoked is what a revocation did.
type Revoked struct {
	Kind  string // user, node, invite, grant, exposure
	Name  string
	Nodes []Ack // that had let it in, or carried it; by name
	Took  time.Duration
}

// revokeNow makes a revocation, and waits for those who enforce it.
func (s *Server) revokeNow(ctx context.Context, what string) (Revoked, error) {
	began := time.Now()
	ctx, ended := withTally(ctx)
	var r revocation
	var witnesses []*nodeRecord
	err := s.ledger.change(ctx, func(snap *snapshot) (_ []Record, err error) {
		if r, err = snap.revocation(what, s.o.Now().UTC()); err != nil {
			return nil, err
		}
		before, err := snap.beforeRevocation(r)
		if err != nil {
			return nil, err
		}
		witnesses = before.witnesses(r)
		return r.changes, nil
	})
	if err != nil {
		return Revoked{}, err
	}
	s.presence.mark(s.o.Now(), false, nil) // for everybody to say which map it has, also when nothing changed
	s.o.Log.Info("revoked", r.kind, r.name)
	acks := s.presence.await(ctx, witnesses, s.ledger.now().rev, ackWait)
	if len(r.changes) == 0 { // what was cut, was cut when it was revoked before
		for i := range acks {
			acks[i].FlowsCut = 0
		}
	}
	acks = ended.join(acks, s.ledger.now().ownRelay())
	return Revoked{Kind: r.kind, Name: r.name, Nodes: acks, Took: time.Since(began)}, nil
}

// await returns when all of the nodes that are here enforce a version of the
// map, or after some time.
func (p *presence) await(ctx context.Context, nodes []*nodeRecord, version uint64, patience time.Duration) []Ack {
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		p.mu.Lock()
		acks, waiting, heard := make([]Ack, 0, len(nodes)), false, p.heard
		for _, n := range nodes {
			seen := p.seen[n.ID]
			a := Ack{Node: n.Name, Online: seen.online, Applied: seen.applied.MapVersion >= version}
			if a.Applied {
				a.FlowsCut = seen.applied.FlowsCut
			}
			waiting = waiting || a.Online && !a.Applied
			acks = append(acks, a)
		}
		p.mu.Unlock()
		if !waiting {
			return acks
		}
		select {
		case <-heard:
		case <-timeout.C:
			return acks
		case <-ctx.Done():
			return acks
		}
	}
}
