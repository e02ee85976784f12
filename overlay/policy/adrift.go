package policy

import (
	"fmt"
	"net/netip"
	"slices"
)

// places are the addresses of a world's nodes and the prefixes behind them, also
// of those that are disabled and may be back.
type places struct {
	addrs  map[netip.Addr]bool
	routes []netip.Prefix
}

func (w World) places() places {
	at := places{addrs: map[netip.Addr]bool{}}
	for _, n := range w.Nodes {
		for _, a := range n.Addresses {
			at.addrs[a] = true
		}
		at.routes = append(at.routes, n.Routes...)
	}
	return at
}

// somewhere reports whether any of a prefix is a node's, or behind one.
func (at places) somewhere(p netip.Prefix) bool {
	if slices.ContainsFunc(at.routes, p.Overlaps) || p.IsSingleIP() && at.addrs[p.Addr()] {
		return true
	}
	if !p.IsSingleIP() {
		for a := range at.addrs {
			if p.Contains(a) {
				return true
			}
		}
	}
	return false
}

// adrift says which addresses of a destination nobody has; nil: none.
func (at places) adrift(p *Policy, t Term) *Problem {
	list := []netip.Prefix{t.Prefix}
	if t.Kind == KindHost {
		h := p.host(t.Name)
		if h == nil {
			return nil
		}
		list = h.Prefixes
	} else if t.Kind != KindPrefix {
		return nil
	}
	for _, x := range list {
		if at.somewhere(x) {
			continue
		}
		one := Term{Kind: KindPrefix, Prefix: x}.String()
		if t.Kind == KindHost {
			one += ", which is " + t.Name + ","
		}
		pr := hinted("it opens nothing until a gateway carries it: overlayd routes lists what they do", "no gateway carries %s and no machine of the network has it", one)
		pr.Line = t.line
		return pr
	}
	return nil
}

// Warnings lists the destinations of rules that nobody has: nothing is wrong with
// that, as a gateway may come later, but it may be a slip. Each is named once.
func (p *Policy) Warnings(w World) Problems {
	at, seen := w.places(), map[string]bool{}
	var found Problems
	for _, r := range p.Rules {
		for _, t := range r.Dst {
			if id := t.String(); !seen[id] {
				seen[id] = true
				if pr := at.adrift(p, t); pr != nil {
					found = append(found, pr)
				}
			}
		}
	}
	slices.SortStableFunc(found, func(a, b *Problem) int { return a.Line - b.Line })
	return found
}

// Warning returns what says the same of the target of a grant, "" when there is
// nothing to say.
func (p *Policy) Warning(w World) func(Target) string {
	at := w.places()
	return func(to Target) string {
		if pr := at.adrift(p, p.resolve(to.Dst)); pr != nil {
			return pr.Text + "; " + pr.Hint
		}
		return ""
	}
}

// Lines returns a line for each problem, up to so many that somebody reads them.
func (p Problems) Lines() (lines []string) {
	for i, one := range p {
		if i == manyProblems {
			return append(lines, fmt.Sprintf("and %d more", len(p)-i))
		}
		lines = append(lines, one.Error())
	}
	return lines
}
