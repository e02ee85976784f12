package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Verdict says whether somebody reaches a target.
type Verdict struct {
	Allowed bool     // all of it
	Partly  bool     // some of it
	Rule    string   // the first rule that allows; "" when none does
	Nodes   []string // that receive for the target: the node itself, or the gateways with the longest route
	Why     string   // in words, when something stands in the way
	Nowhere bool     // the target is one address, which no node has nor has a route to
}

// ParseSource reads who a question is about: a user, or user:NAME, node:NAME,
// tag:NAME.
func ParseSource(s string) (Term, error) {
	t, err := parseTerm(s, false)
	if err != nil {
		return Term{}, err
	}
	return t, nil
}

// Reaches says whether a user, a node or what has a tag reaches the target at
// that time. The zero time leaves the times of rules out of account.
func (r *Resolved) Reaches(who Term, to Target, at time.Time) Verdict {
	v := Verdict{}
	targets := r.destination(r.policy.resolve(to.Dst)).prefixes
	if len(targets) == 0 {
		v.Why = fmt.Sprintf("%s stands for no address", to.Dst)
		return v
	}
	if len(targets) == 1 && targets[0].IsSingleIP() {
		if seat := r.seat(targets[0].Addr()); seat != "" {
			v.Why = fmt.Sprintf("%s is where %s begins connections; nothing is reached there", targets[0].Addr(), seat)
			return v
		}
		if v.Nodes = r.receivers(targets[0].Addr()); len(v.Nodes) == 0 {
			v.Nowhere, v.Why = true, fmt.Sprintf("no node has %s or a route to it", targets[0].Addr())
		}
	}
	if why := r.absent(who); why != "" {
		v.Why = why
		return v
	}
	v.Allowed = true
	for _, p := range targets {
		for _, s := range to.Services {
			rule, whole := r.first(who, p, s, at)
			if rule != nil && v.Rule == "" {
				v.Rule = rule.name
			}
			v.Partly = v.Partly || rule != nil
			v.Allowed = v.Allowed && whole
		}
	}
	if !v.Partly && v.Why == "" {
		v.Why = fmt.Sprintf("no rule lets %s reach %s", who, to)
	}
	return v
}

// absent says why somebody is nobody.
func (r *Resolved) absent(who Term) string {
	switch who.Kind {
	case KindUser:
		u := r.users[who.Name]
		if u == nil {
			return "there is no user " + who.Name
		}
		if u.Disabled {
			return "user " + who.Name + " is disabled"
		}
	case KindNode:
		if _, ok := r.find(who.Name); !ok {
			return "there is no node " + who.Name + ", or it is disabled"
		}
	}
	return ""
}

// first returns the first rule that allows any of it, and whether one of them
// allows all.
func (r *Resolved) first(who Term, p netip.Prefix, s Service, at time.Time) (found *resolvedRule, whole bool) {
	for i := range r.rules {
		rule := &r.rules[i]
		if on, _ := rule.when.Active(at); !on && !at.IsZero() {
			continue
		}
		if !slices.ContainsFunc(rule.services, s.meets) || !slices.ContainsFunc(rule.from, func(f *fromSet) bool { return r.within(who, f) }) {
			continue
		}
		meets, covers := false, false
		for _, t := range rule.to {
			for _, q := range t.prefixes {
				meets = meets || q.Overlaps(p)
				covers = covers || q.Overlaps(p) && q.Bits() <= p.Bits()
			}
		}
		if !meets {
			continue
		}
		all := covers && slices.ContainsFunc(rule.services, func(x Service) bool { return x.covers(s) })
		if found == nil || all {
			found = rule
		}
		if all {
			return found, true
		}
	}
	return found, false
}

// within reports whether somebody belongs to a source: a user also by what any
// of their nodes is.
func (r *Resolved) within(who Term, f *fromSet) bool {
	if f.id == "*" || f.id == who.String() {
		return true
	}
	switch who.Kind {
	case KindNode:
		i, ok := r.find(who.Name)
		return ok && f.nodes.has(i)
	case KindUser:
		for i := range r.nodes {
			if r.nodes[i].User == who.Name && f.nodes.has(i) {
				return true
			}
		}
		kind, name, _ := strings.Cut(f.id, ":")
		return r.userIs(Term{Kind: prefixed[kind], Name: name}, who.Name)
	}
	return false
}

// seat returns the name of the seat that has an address; "": none has.
func (r *Resolved) seat(a netip.Addr) string {
	for _, n := range r.nodes {
		if n.Seat && slices.Contains(n.Addresses, a) {
			return n.Name
		}
	}
	return ""
}

// receivers returns the nodes that a packet to an address goes to.
func (r *Resolved) receivers(a netip.Addr) (names []string) {
	best := -1
	for _, list := range [][]owned{r.owned, r.routes} {
		for _, o := range list {
			if !o.prefix.Contains(a) || o.prefix.Bits() < best {
				continue
			}
			if o.prefix.Bits() > best {
				best, names = o.prefix.Bits(), nil
			}
			names = append(names, r.nodes[o.node].Name)
		}
		if len(names) > 0 {
			break // an address of a node is nobody else's
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Access is one line of who can reach something.
type Access struct {
	Who     Term // a user, or a node that is nobody's
	Verdict Verdict
}

// WhoReaches lists everybody who reaches any of the target at that time.
func (r *Resolved) WhoReaches(to Target, at time.Time) (list []Access) {
	try := func(who Term) {
		if v := r.Reaches(who, to, at); v.Partly {
			list = append(list, Access{Who: who, Verdict: v})
		}
	}
	for _, name := range sortedKeys(r.users) {
		try(Term{Kind: KindUser, Name: name})
	}
	for _, n := range r.nodes {
		if n.User == "" {
			try(Term{Kind: KindNode, Name: n.Name})
		}
	}
	return list
}

// RunTests runs the policy's own tests, without grants, and as if nobody were
// disabled: they are about the policy, which has to be right when everybody is
// back. What it returns as error is Problems.
func (p *Policy) RunTests(w World) error {
	r := Resolve(p, w.enabled(), nil)
	var failed Problems
	for _, t := range p.Tests {
		for _, to := range t.Accept {
			if v := r.Reaches(t.Who, to, t.At); !v.Allowed {
				why := v.Why
				if v.Partly {
					why = "rule " + v.Rule + " allows a part of it only"
				}
				failed = append(failed, &Problem{Line: to.Dst.line, Text: fmt.Sprintf("test: %s must reach %s and does not: %s", t.Who, to, why),
					Hint: "add a rule that allows it, or correct the test"})
			}
		}
		for _, to := range t.Deny {
			if v := r.Reaches(t.Who, to, t.At); v.Partly {
				failed = append(failed, &Problem{Line: to.Dst.line, Text: fmt.Sprintf("test: %s must not reach %s, but rule %s allows it", t.Who, to, v.Rule),
					Hint: "narrow the rule " + v.Rule + ", or correct the test"})
			}
		}
	}
	return failed.sorted()
}
