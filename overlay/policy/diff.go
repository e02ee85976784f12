package policy

import (
	"strings"
)

// Diff returns what changes from one policy to the next, for people: a line
// each, beginning with "-" or "+".
func Diff(old, next *Policy) []string {
	var lines []string
	compare := func(was, now map[string]string) {
		for _, name := range sortedKeys(union(was, now)) {
			a, before := was[name]
			b, after := now[name]
			if before && after && a == b {
				continue
			}
			if before {
				lines = append(lines, "- "+name+a)
			}
			if after {
				lines = append(lines, "+ "+name+b)
			}
		}
	}
	for _, list := range []func(*Policy) map[string]string{groupLines, hostLines, ruleLines, testLines} {
		compare(list(old), list(next))
	}
	return lines
}

func union(a, b map[string]string) map[string]string {
	all := make(map[string]string, len(a)+len(b))
	for _, m := range []map[string]string{a, b} {
		for k := range m {
			all[k] = ""
		}
	}
	return all
}

func groupLines(p *Policy) map[string]string {
	m := map[string]string{}
	for _, g := range p.Groups {
		m["group "+g.Name] = ": " + strings.Join(g.Members, ", ")
	}
	return m
}

func hostLines(p *Policy) map[string]string {
	m := map[string]string{}
	for _, h := range p.Hosts {
		list := make([]Term, len(h.Prefixes))
		for i, x := range h.Prefixes {
			list[i] = Term{Kind: KindPrefix, Prefix: x}
		}
		m["host "+h.Name] = ": " + terms(list)
	}
	return m
}

func ruleLines(p *Policy) map[string]string {
	m := map[string]string{}
	for _, r := range p.Rules {
		m["rule "+r.Name] = ": " + r.content()
	}
	return m
}

func testLines(p *Policy) map[string]string {
	m := map[string]string{}
	for _, t := range p.Tests {
		for word, list := range map[string][]Target{" must reach ": t.Accept, " must not reach ": t.Deny} {
			for _, to := range list {
				line := "test " + t.Who.String() + word + to.String()
				if !t.At.IsZero() {
					line += " at " + t.At.Format("2006-01-02T15:04:05Z07:00")
				}
				m[line] = ""
			}
		}
	}
	return m
}

// Equal reports whether two policies mean the same, tests included.
func (p *Policy) Equal(o *Policy) bool {
	return p.String() == o.String()
}
