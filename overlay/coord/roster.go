package coord

import (
	"net/netip"
	"slices"
	"time"
)

// rename decides what a node's new name changes.
func (s *snapshot) rename(ref, name string) (nodeRecord, []Record, error) {
	n, err := s.node(ref)
	if err != nil {
		return nodeRecord{}, nil, err
	}
	if err := checkName(name); err != nil {
		return nodeRecord{}, nil, err
	}
	if n.Name == name {
		return *n, nil, nil
	}
	if err := s.nameFree(name); err != nil {
		return nodeRecord{}, nil, err
	}
	next := *n
	next.Name = name
	return next, []Record{putNode(next)}, nil
}

// remove decides what a node's removal changes. Its label is remembered, so
// that it is the last to be given again.
func (s *snapshot) remove(ref string, now time.Time) (nodeRecord, []Record, error) {
	n, err := s.node(ref)
	if err != nil {
		return nodeRecord{}, nil, err
	}
	if n == s.ownRelay() {
		return nodeRecord{}, nil, problem(KindConflict, "to end the network, stop overlayd there and delete its state directory",
			"%s is the coordinator itself", n.Name)
	}
	return *n, s.dropped(n, now), nil
}

// dropped is what the removal of a node changes: what it carries goes too.
func (s *snapshot) dropped(n *nodeRecord, now time.Time) (changes []Record) {
	for _, x := range append([]*nodeRecord{n}, s.hostedBy(n)...) {
		changes = append(changes, drop(keyNode+x.ID), put(retiredKey(x.Label), retiredRecord{x.Label, now}))
	}
	return changes
}

// approve decides what approving a node's route changes.
func (s *snapshot) approve(ref string, p netip.Prefix) (nodeRecord, []Record, error) {
	n, err := s.router(ref, p, func(n *nodeRecord) []netip.Prefix { return n.Advertised })
	if err != nil || slices.Contains(n.Approved, p) {
		return n, nil, err
	}
	n.Approved = append(slices.Clip(n.Approved), p)
	slices.SortFunc(n.Approved, netip.Prefix.Compare)
	return n, []Record{putNode(n)}, nil
}

// withdraw decides what taking an approval back changes.
func (s *snapshot) withdraw(ref string, p netip.Prefix) (nodeRecord, []Record, error) {
	n, err := s.router(ref, p, func(n *nodeRecord) []netip.Prefix { return n.Approved })
	if err != nil {
		return n, nil, err
	}
	n.Approved = slices.DeleteFunc(slices.Clone(n.Approved), func(q netip.Prefix) bool { return p == q })
	return n, []Record{putNode(n)}, nil
}

// router finds the node that has the prefix in one of its sets; without a name
// there must be one such node.
func (s *snapshot) router(ref string, p netip.Prefix, set func(*nodeRecord) []netip.Prefix) (nodeRecord, error) {
	const hint = "list them with: overlayd routes"
	if ref != "" {
		n, err := s.node(ref)
		if err != nil {
			return nodeRecord{}, err
		}
		if !slices.Contains(set(n), p) {
			return nodeRecord{}, problem(KindNotFound, hint, "the node %s has no such route: %s", n.Name, p)
		}
		return *n, nil
	}
	var found []*nodeRecord
	for _, n := range s.nodesByLabel() {
		if slices.Contains(set(n), p) {
			found = append(found, n)
		}
	}
	switch len(found) {
	case 0:
		return nodeRecord{}, problem(KindNotFound, hint, "no node has the route %s", p)
	case 1:
		return *found[0], nil
	}
	return nodeRecord{}, problem(KindConflict, "name the node", "the nodes %s and %s both have the route %s", found[0].Name, found[1].Name, p)
}

// routes returns what the node advertises.
func (n *nodeRecord) routes() []Route {
	var rs []Route
	for _, p := range n.Advertised {
		rs = append(rs, Route{p, slices.Contains(n.Approved, p)})
	}
	return rs
}
