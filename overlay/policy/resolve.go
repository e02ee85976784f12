package policy

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// Resolved is a policy with its grants, applied to a world: every name looked
// up, every set of nodes known. It answers for all nodes. For and Peers change
// nothing and may be called by many at once; Reaches remembers what it had to
// look up, and is for one at a time. Names that the world does not know stand for
// nothing.
type Resolved struct {
	policy *Policy
	users  map[string]*User
	idle   map[string]bool // groups that stand for nobody
	nodes  []Node          // that are not disabled, by name
	hosts  []int           // by node: who carries it; -1: nobody
	owned  []owned         // but for seats, which nothing reaches
	routes []owned
	from   map[string]*fromSet
	to     map[string]*toSet
	rules  []resolvedRule // in order of precedence
}

// owned is a prefix and the index of the node it belongs to.
type owned struct {
	prefix netip.Prefix
	node   int
}

type fromSet struct {
	id    string
	nodes bits
}

type toSet struct {
	id       string
	prefixes []netip.Prefix
	nodes    bits // that have any of it
}

type resolvedRule struct {
	id, name string
	from     []*fromSet
	to       []*toSet
	services []Service
	when     *Schedule // nil: always
	src, dst bits      // the nodes of from and of to
}

// bits is a set of nodes by index.
type bits []uint64

func (b bits) set(i int)      { b[i/64] |= 1 << (i % 64) }
func (b bits) has(i int) bool { return b[i/64]&(1<<(i%64)) != 0 }

func (b bits) add(o bits) {
	for i := range o {
		b[i] |= o[i]
	}
}

// both returns what is in both.
func (b bits) both(o bits) bits {
	all := slices.Clone(b)
	for i := range all {
		all[i] &= o[i]
	}
	return all
}

// meets reports whether anything is in both.
func (b bits) meets(o bits) bool {
	for i := range b {
		if b[i]&o[i] != 0 {
			return true
		}
	}
	return false
}

// Resolve applies a policy and grants to a world.
func Resolve(p *Policy, w World, grants []Grant) *Resolved {
	r := &Resolved{policy: p, users: map[string]*User{}, idle: map[string]bool{}, from: map[string]*fromSet{}, to: map[string]*toSet{}}
	for _, g := range w.Idle {
		r.idle[g] = true
	}
	for i := range w.Users {
		r.users[w.Users[i].Name] = &w.Users[i]
	}
	for _, n := range w.Nodes {
		if u := r.users[n.User]; n.Disabled || n.User != "" && (u == nil || u.Disabled) {
			continue
		}
		r.nodes = append(r.nodes, n)
	}
	slices.SortFunc(r.nodes, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	for i, n := range r.nodes {
		host := -1
		if at, ok := r.find(n.Host); ok && n.Host != "" {
			host = at
		}
		r.hosts = append(r.hosts, host)
		for _, a := range n.Addresses {
			if !n.Seat {
				r.owned = append(r.owned, owned{netip.PrefixFrom(a, a.BitLen()), i})
			}
		}
		for _, x := range n.Routes {
			r.routes = append(r.routes, owned{x.Masked(), i})
		}
	}
	slices.SortFunc(r.owned, func(a, b owned) int { return cmp.Or(a.prefix.Compare(b.prefix), cmp.Compare(a.node, b.node)) })
	for i := range p.Rules {
		rule := &p.Rules[i]
		v := resolvedRule{id: rule.Name, name: rule.Name, services: rule.Services}
		if !rule.When.Always() {
			v.when = &rule.When
		}
		r.addRule(v, rule.Src, rule.Dst)
	}
	for _, g := range grants {
		v := resolvedRule{id: GrantPrefix + g.ID, name: GrantPrefix + g.ID, services: g.To.Services,
			when: &Schedule{NotBefore: g.NotBefore, Until: g.Until}}
		r.addRule(v, []Term{{Kind: KindUser, Name: g.User}}, []Term{p.resolve(g.To.Dst)})
	}
	slices.SortFunc(r.rules, func(a, b resolvedRule) int { return compareIDs(a.id, b.id) })
	return r
}

// GrantPrefix begins the id of a rule that is a grant; no rule's name can.
const GrantPrefix = "grant:"

// compareIDs is the order in which rules are asked: those of the policy by
// name, then grants by id.
func compareIDs(a, b string) int {
	x, y := strings.HasPrefix(a, GrantPrefix), strings.HasPrefix(b, GrantPrefix)
	switch {
	case x && !y:
		return 1
	case y && !x:
		return -1
	}
	return strings.Compare(a, b)
}

func (r *Resolved) addRule(v resolvedRule, src, dst []Term) {
	v.src, v.dst = r.newBits(), r.newBits()
	for _, t := range src {
		s := r.source(t)
		v.from = append(v.from, s)
		v.src.add(s.nodes)
	}
	for _, t := range dst {
		s := r.destination(t)
		v.to = append(v.to, s)
		v.dst.add(s.nodes)
	}
	r.rules = append(r.rules, v)
}

func (r *Resolved) newBits() bits { return make(bits, (len(r.nodes)+63)/64) }

// source returns the nodes that a term stands for as a source.
func (r *Resolved) source(t Term) *fromSet {
	id := t.String()
	if s, ok := r.from[id]; ok {
		return s
	}
	s := &fromSet{id: id, nodes: r.newBits()}
	for i := range r.nodes {
		if r.isSource(t, &r.nodes[i]) {
			s.nodes.set(i)
		}
	}
	r.from[id] = s
	return s
}

func (r *Resolved) isSource(t Term, n *Node) bool {
	switch t.Kind {
	case KindAll:
		return true
	case KindNode:
		return n.Name == t.Name
	case KindTag:
		if slices.Contains(n.Tags, t.Name) {
			return true
		}
	}
	return n.User != "" && r.userIs(t, n.User)
}

// userIs reports whether a term stands for a user.
func (r *Resolved) userIs(t Term, user string) bool {
	u := r.users[user]
	if u == nil || u.Disabled {
		return false
	}
	switch t.Kind {
	case KindAll:
		return true
	case KindUser:
		return u.Name == t.Name
	case KindGroup:
		if r.idle[t.Name] {
			return false
		}
		if slices.Contains(u.Groups, t.Name) {
			return true
		}
		g := r.policy.group(t.Name)
		if g == nil {
			return false
		}
		_, in := slices.BinarySearch(g.Members, user)
		return in
	case KindTag:
		return slices.Contains(u.Tags, t.Name)
	}
	return false
}

// destination returns the prefixes that a term stands for as a destination,
// and the nodes that have any of them.
func (r *Resolved) destination(t Term) *toSet {
	id := t.String()
	if s, ok := r.to[id]; ok {
		return s
	}
	s := &toSet{id: id, nodes: r.newBits()}
	addresses := func(match func(*Node) bool) {
		for _, o := range r.owned {
			if match(&r.nodes[o.node]) {
				s.prefixes = append(s.prefixes, o.prefix)
			}
		}
	}
	routes := func() {
		for _, o := range r.routes {
			s.prefixes = append(s.prefixes, o.prefix)
		}
	}
	switch t.Kind {
	case KindAll:
		addresses(func(*Node) bool { return true })
		routes()
	case KindRoutes:
		routes()
	case KindNodes:
		addresses(func(*Node) bool { return true })
	case KindGateways:
		addresses(func(n *Node) bool { return n.Role == Gateway })
	case KindRelays:
		addresses(func(n *Node) bool { return n.Role == Relay })
	case KindNode:
		addresses(func(n *Node) bool { return n.Name == t.Name })
	case KindTag:
		addresses(func(n *Node) bool { return slices.Contains(n.Tags, t.Name) || n.User != "" && r.userIs(t, n.User) })
	case KindHost:
		if h := r.policy.host(t.Name); h != nil {
			s.prefixes = slices.Clone(h.Prefixes)
		}
	case KindPrefix:
		s.prefixes = []netip.Prefix{t.Prefix}
	}
	s.prefixes = sortPrefixes(s.prefixes)
	for _, p := range s.prefixes {
		r.markOwners(p, s.nodes)
	}
	r.to[id] = s
	return s
}

// markOwners sets the nodes that have any address of a prefix.
func (r *Resolved) markOwners(p netip.Prefix, b bits) {
	first, _ := slices.BinarySearchFunc(r.owned, p.Addr(), func(o owned, a netip.Addr) int {
		return cmp.Or(cmp.Compare(o.prefix.Addr().BitLen(), a.BitLen()), o.prefix.Addr().Compare(a))
	})
	for _, o := range r.owned[first:] {
		if !p.Contains(o.prefix.Addr()) {
			break
		}
		b.set(o.node)
	}
	for _, o := range r.routes {
		if o.prefix.Overlaps(p) {
			b.set(o.node)
		}
	}
}

// find returns the index of a node that is not disabled.
func (r *Resolved) find(name string) (int, bool) {
	return slices.BinarySearchFunc(r.nodes, name, func(n Node, name string) int { return strings.Compare(n.Name, name) })
}

// spot is a node, and the others that it carries.
type spot struct {
	node    int
	carried bits // nil: nobody, as with most
}

func (r *Resolved) spot(node int) spot {
	s := spot{node: node}
	for i, host := range r.hosts {
		if host != node {
			continue
		}
		if s.carried == nil {
			s.carried = r.newBits()
		}
		s.carried.set(i)
	}
	return s
}

// has reports whether a node is there.
func (s spot) has(i int) bool { return i == s.node || s.carried != nil && s.carried.has(i) }

// in reports whether any who is there is in a set.
func (s spot) in(b bits) bool {
	return b.has(s.node) || s.carried != nil && b.meets(s.carried)
}

// peers returns the nodes that any at a spot may talk to, in either direction.
func (r *Resolved) peers(s spot) bits {
	b := r.newBits()
	for i := range r.rules {
		rule := &r.rules[i]
		if s.in(rule.dst) {
			b.add(rule.src)
		}
		if s.in(rule.src) {
			b.add(rule.dst)
		}
	}
	return b
}

// Peers returns the names of the nodes that belong on one's map, in order: those
// that it, or a node that it carries, may talk to at all, in either direction and
// at any time, and who carries them, and those that it carries. A relay forwards
// for those who are not its peers.
func (r *Resolved) Peers(node string) []string {
	i, ok := r.find(node)
	if !ok {
		return nil
	}
	at := r.spot(i)
	peers := r.peers(at)
	peers.add(at.carried)
	for j, host := range r.hosts {
		if host >= 0 && (j == i || peers.has(j)) {
			peers.set(host)
		}
	}
	var names []string
	for j := range r.nodes {
		if j != i && peers.has(j) {
			names = append(names, r.nodes[j].Name)
		}
	}
	return names
}
