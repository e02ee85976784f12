package coord

import (
	"encoding/json"
	"fmt"
	"slices"

	"overlayd/overlay/coord/api"
	"overlayd/overlay/policy"
)

// apply returns the map after a delta. The map itself stays as it is; the two
// share what did not change.
func (m *Map) apply(d *api.Delta) (*Map, error) {
	next := *m
	next.Version = d.Version
	var err error
	if d.Self != nil {
		if next.Self, err = nodeIn(d.Self, m.Overlay); err != nil {
			return nil, err
		}
		if next.Self.Label != m.Self.Label {
			return nil, fmt.Errorf("the label of this node changed from %d to %d", m.Self.Label, next.Self.Label)
		}
	}
	if len(d.Peers) > 0 || len(d.Removed) > 0 {
		next.Peers = slices.Clone(m.Peers)
	}
	if len(d.Hosted) > 0 || len(d.Removed) > 0 {
		next.Hosted = slices.Clone(m.Hosted)
	}
	for _, l := range d.Removed {
		next.Peers, next.Hosted = without(next.Peers, l), without(next.Hosted, l)
	}
	for _, p := range d.Peers {
		n, err := nodeIn(p, m.Overlay)
		if err != nil {
			return nil, err
		}
		if n.Label == m.Self.Label {
			return nil, fmt.Errorf("a peer has the label %d of this node", n.Label)
		}
		if _, was := find(next.Hosted, n.Label); was {
			next.Hosted = without(slices.Clone(next.Hosted), n.Label)
		}
		next.Peers = with(next.Peers, n)
	}
	for _, h := range d.Hosted {
		n, err := hostedIn(h, m.Overlay)
		if err != nil {
			return nil, err
		}
		if n.Label == m.Self.Label {
			return nil, fmt.Errorf("a hosted member has the label %d of this node", n.Label)
		}
		if _, was := find(next.Peers, n.Label); was {
			next.Peers = without(slices.Clone(next.Peers), n.Label)
		}
		next.Hosted = with(next.Hosted, n)
	}
	if d.Relays != nil {
		if next.Relays, err = relaysFromWire(d.Relays.Relays); err != nil {
			return nil, err
		}
	}
	if d.Revoked != nil {
		next.Revoked = revokedFromWire(d.Revoked.Revoked)
	}
	if d.Roll != nil {
		next.Roll = rollFromWire(d.Roll)
	}
	if d.Closed != nil {
		if next.Closed, err = closedIn(d.Closed.Prefixes, m.Overlay); err != nil {
			return nil, err
		}
	}
	if d.Passes != nil {
		if next.Passes, err = passesFromWire(d.Passes.Passes); err != nil {
			return nil, err
		}
	}
	next.Ruleset, err = nextRuleset(m.Ruleset, d)
	if err != nil {
		return nil, err
	}
	return &next, nil
}

// nextRuleset returns the ruleset after a delta. When it fails, the node follows
// anew and gets a whole map.
func nextRuleset(have *policy.Ruleset, d *api.Delta) (*policy.Ruleset, error) {
	switch {
	case len(d.Ruleset) > 0:
		return rulesetFromWire(d.Ruleset)
	case len(d.RulesetDelta) == 0:
		return have, nil
	case have == nil:
		return nil, policy.ErrBase
	}
	var change policy.Delta
	if err := json.Unmarshal(d.RulesetDelta, &change); err != nil {
		return nil, fmt.Errorf("the change of the ruleset is malformed: %w", err)
	}
	next, err := have.Apply(change)
	if err != nil {
		return nil, err
	}
	return &next, nil
}

// find returns where the node with a label is among nodes by label, or belongs.
func find(nodes []Node, label uint32) (int, bool) {
	return slices.BinarySearchFunc(nodes, label, func(n Node, l uint32) int { return int(n.Label) - int(l) })
}

// with puts a node into its place among nodes by label.
func with(nodes []Node, n Node) []Node {
	i, ok := find(nodes, n.Label)
	if ok {
		nodes[i] = n
		return nodes
	}
	return slices.Insert(nodes, i, n)
}

// without takes the node with a label out.
func without(nodes []Node, label uint32) []Node {
	if i, ok := find(nodes, label); ok {
		return slices.Delete(nodes, i, i+1)
	}
	return nodes
}
