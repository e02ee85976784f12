package policy

import (
	"net/netip"
	"slices"
	"strings"
)

// Ruleset is what one node enforces on the packets it receives: plain data, in
// order, so that two that mean the same are the same.
type Ruleset struct {
	Node    string         `json:"node"`
	Self    []netip.Addr   `json:"self"`             // its own addresses in the overlay
	Hosted  []netip.Addr   `json:"hosted,omitempty"` // those that it carries for others
	Routes  []netip.Prefix `json:"routes"`           // what it receives for besides
	Sources []Source       `json:"sources"`          // everybody it may talk to, by address
	From    []Set          `json:"from"`             // by id
	To      []Set          `json:"to"`               // by id; only what this node receives
	Rules   []NodeRule     `json:"rules"`            // the first that matches names the flow
}

// Source says who is behind an address.
type Source struct {
	Address netip.Addr `json:"address"`
	Node    string     `json:"node"`
	User    string     `json:"user"` // "" when the node is nobody's
}

// Set is a named list of addresses or prefixes. The name is the policy's term,
// so that a change in a group changes one set and no rule.
type Set struct {
	ID       string         `json:"id"`
	Prefixes []netip.Prefix `json:"prefixes"` // in order
}

// NodeRule lets the sources of some sets reach the destinations of others.
type NodeRule struct {
	ID       string    `json:"id"`   // "grant:…" for a grant
	Name     string    `json:"name"` // for the record
	From     []string  `json:"from"`
	To       []string  `json:"to"`
	Services []Service `json:"services"`
	When     *Schedule `json:"when,omitempty"` // nil: always
}

// Compile returns what one node enforces. For all nodes of a world, Resolve
// once and call For.
func Compile(p *Policy, w World, node string, grants []Grant) Ruleset {
	return Resolve(p, w, grants).For(node)
}

// For returns what one node enforces. A node that is disabled or unknown gets
// a ruleset that allows nothing.
func (r *Resolved) For(node string) Ruleset {
	set := Ruleset{Node: node}
	me, ok := r.find(node)
	if !ok {
		return set
	}
	for _, p := range r.nodes[me].Routes {
		set.Routes = append(set.Routes, p.Masked())
	}
	set.Routes = sortPrefixes(set.Routes)
	at := r.spot(me)
	peers := r.peers(at)
	var reached []netip.Addr // all of them but the seats
	for i, n := range r.nodes {
		mine := at.has(i)
		if i == me {
			set.Self = append(set.Self, n.Addresses...)
		} else if mine {
			set.Hosted = append(set.Hosted, n.Addresses...)
		}
		if mine && !n.Seat {
			reached = append(reached, n.Addresses...)
		}
		// What it carries comes by the tunnel as a peer does; but for the seats,
		// which are here.
		if i == me || mine && n.Seat || !mine && !peers.has(i) {
			continue
		}
		for _, a := range n.Addresses {
			set.Sources = append(set.Sources, Source{Address: a, Node: n.Name, User: n.User})
		}
	}
	slices.SortFunc(set.Self, netip.Addr.Compare)
	slices.SortFunc(set.Hosted, netip.Addr.Compare)
	slices.SortFunc(set.Sources, func(a, b Source) int { return a.Address.Compare(b.Address) })

	from, to := map[*fromSet]bool{}, map[*toSet]bool{}
	for i := range r.rules {
		rule := &r.rules[i]
		if !at.in(rule.dst) {
			continue
		}
		set.Rules = append(set.Rules, r.nodeRule(rule, at, from, to))
	}
	for s := range from {
		set.From = append(set.From, Set{ID: s.id, Prefixes: r.addresses(s.nodes, me)})
	}
	for s := range to {
		set.To = append(set.To, Set{ID: s.id, Prefixes: intersect(s.prefixes, reached, set.Routes)})
	}
	r.addOnward(&set, r.devices(at))
	sortSets(set.From)
	sortSets(set.To)
	return set
}

// onward ends the ids of what a node enforces on what it carries begins elsewhere.
// No id of a policy's has a space.
const onward = " onward"

// devices returns those at a spot that are carried and begin by the tunnel.
func (r *Resolved) devices(at spot) bits {
	b := r.newBits()
	for i, n := range r.nodes {
		if i != at.node && at.has(i) && !n.Seat {
			b.set(i)
		}
	}
	return b
}

// addOnward adds to a ruleset what devices may begin elsewhere. Whoever receives
// has rules of its own; but a node that may hear nothing of a device does not know
// it, and would leave it without an answer.
func (r *Resolved) addOnward(set *Ruleset, devices bits) {
	from, to := map[*fromSet]bool{}, map[*toSet]bool{}
	for i := range r.rules {
		rule := &r.rules[i]
		if !rule.src.meets(devices) {
			continue
		}
		v := NodeRule{ID: rule.id + onward, Name: rule.name, Services: rule.services, When: rule.when}
		for _, s := range rule.from {
			if s.nodes.meets(devices) {
				from[s] = true
				v.From = append(v.From, s.id+onward)
			}
		}
		for _, s := range rule.to {
			to[s] = true
			v.To = append(v.To, s.id+onward)
		}
		set.Rules = append(set.Rules, v)
	}
	for s := range from {
		set.From = append(set.From, Set{ID: s.id + onward, Prefixes: r.addresses(s.nodes.both(devices), -1)})
	}
	for s := range to {
		set.To = append(set.To, Set{ID: s.id + onward, Prefixes: s.prefixes})
	}
	slices.SortFunc(set.Rules, func(a, b NodeRule) int { return compareIDs(a.ID, b.ID) })
}

// nodeRule notes which sets it needs.
func (r *Resolved) nodeRule(rule *resolvedRule, at spot, from map[*fromSet]bool, to map[*toSet]bool) NodeRule {
	v := NodeRule{ID: rule.id, Name: rule.name, Services: rule.services, When: rule.when,
		From: make([]string, 0, len(rule.from)), To: make([]string, 0, len(rule.to))}
	for _, s := range rule.from {
		from[s] = true
		v.From = append(v.From, s.id)
	}
	for _, s := range rule.to {
		if at.in(s.nodes) {
			to[s] = true
			v.To = append(v.To, s.id)
		}
	}
	return v
}

// addresses returns those of a set of nodes but one.
func (r *Resolved) addresses(b bits, but int) (list []netip.Prefix) {
	for i, n := range r.nodes {
		if i == but || !b.has(i) {
			continue
		}
		for _, a := range n.Addresses {
			list = append(list, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return sortPrefixes(list)
}

func sortSets(list []Set) {
	slices.SortFunc(list, func(a, b Set) int { return strings.Compare(a.ID, b.ID) })
}

// intersect returns what of the prefixes lies in the addresses or routes.
func intersect(list []netip.Prefix, self []netip.Addr, routes []netip.Prefix) (out []netip.Prefix) {
	for _, p := range list {
		for _, a := range self {
			if p.Contains(a) {
				out = append(out, netip.PrefixFrom(a, a.BitLen()))
			}
		}
		for _, x := range routes {
			switch {
			case !p.Overlaps(x):
			case p.Bits() >= x.Bits():
				out = append(out, p)
			default:
				out = append(out, x)
			}
		}
	}
	return sortPrefixes(out)
}
