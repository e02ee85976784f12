package policy

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// maxText is the longest policy that is read: 10,000 rules take about 1.5 MB.
const maxText = 8 << 20

// Parse reads a policy. What it returns as error is Problems, each with its
// line; names that only the network knows are left to Check.
func Parse(text []byte) (*Policy, error) {
	p := parser{policy: &Policy{}}
	if len(text) > maxText {
		return nil, Problems{hinted("a policy has at most 8 MiB", "the policy has %d bytes", len(text))}
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	var doc, more yaml.Node
	switch err := d.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, Problems{hinted("an empty policy opens nothing; if that is meant, write rules: []", "the policy is empty")}
	case err != nil:
		return nil, Problems{yamlProblem(err)}
	}
	if err := d.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, Problems{hinted("remove the line --- and what follows it", "the file holds more than one document")}
	}
	p.document(doc.Content[0])
	p.finish()
	if err := p.problems.sorted(); err != nil {
		return nil, err
	}
	return p.policy, nil
}

// yamlProblem takes the line out of the YAML reader's message.
func yamlProblem(err error) *Problem {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	pr := hinted("check the indentation, and put what begins with * or holds ': ' in quotes", "%.200s", text)
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		if n, tail, ok := strings.Cut(rest, ": "); ok {
			if line, err := strconv.Atoi(n); err == nil {
				pr.Line, pr.Text = line, tail
			}
		}
	}
	return pr
}

type parser struct {
	policy   *Policy
	problems Problems
}

func (p *parser) at(n *yaml.Node, err error) {
	var pr *Problem
	if !errors.As(err, &pr) {
		pr = &Problem{Text: err.Error()}
	}
	pr.Line = n.Line
	p.problems = append(p.problems, pr)
}

func (p *parser) fail(n *yaml.Node, hint, format string, args ...any) {
	p.at(n, hinted(hint, format, args...))
}

// pair is a key of a mapping with its value.
type pair struct{ key, value *yaml.Node }

// pairs returns a mapping's entries, each key once.
func (p *parser) pairs(n *yaml.Node, what string) (list []pair) {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return nil
	}
	if n.Kind != yaml.MappingNode {
		p.fail(n, "write keys with values, one a line: key: value", "%s is not a mapping", what)
		return nil
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		switch {
		case k.Kind != yaml.ScalarNode:
			p.fail(k, "a key is a word", "a key of %s is not a word", what)
		case seen[k.Value]:
			p.fail(k, "remove one of them", "%s is there twice in %s", clip(k.Value), what)
		default:
			seen[k.Value] = true
			list = append(list, pair{k, v})
		}
	}
	return list
}

// fields gives each key of a mapping to its reader.
func (p *parser) fields(n *yaml.Node, what string, readers map[string]func(*yaml.Node)) {
	for _, e := range p.pairs(n, what) {
		read, ok := readers[e.key.Value]
		if !ok {
			known := sortedKeys(readers)
			p.fail(e.key, DidYouMean(e.key.Value, known, "the keys of "+what+" are "+strings.Join(known, ", ")),
				"unknown key %s in %s", clip(e.key.Value), what)
			continue
		}
		read(e.value)
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (p *parser) document(n *yaml.Node) {
	p.fields(n, "the policy", map[string]func(*yaml.Node){
		"groups": p.groups, "hosts": p.hosts,
		"rules": func(n *yaml.Node) {
			for _, item := range p.items(n, "rules") {
				p.rule(item)
			}
		},
		"tests": func(n *yaml.Node) {
			for _, item := range p.items(n, "tests") {
				p.test(item)
			}
		},
	})
}

// items returns a sequence's entries.
func (p *parser) items(n *yaml.Node, what string) []*yaml.Node {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		p.fail(n, "begin each of them with a dash", "%s is not a list", what)
		return nil
	}
	return n.Content
}

// word returns a scalar's text.
func (p *parser) word(n *yaml.Node, what string) (string, bool) {
	if n.Kind == yaml.AliasNode {
		p.fail(n, "put * in quotes: \"*\"", "an alias is no %s", what)
		return "", false
	}
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" || strings.TrimSpace(n.Value) == "" {
		p.fail(n, "write one word", "this is no %s", what)
		return "", false
	}
	return strings.TrimSpace(n.Value), true
}

// list returns the scalars of a sequence, or the one that stands alone.
func (p *parser) list(n *yaml.Node, what string) (list []*yaml.Node) {
	items := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		items = n.Content
	}
	for _, item := range items {
		if _, ok := p.word(item, what); ok {
			list = append(list, item)
		}
	}
	return list
}

func (p *parser) words(n *yaml.Node, what string) (list []string) {
	for _, item := range p.list(n, what) {
		list = append(list, strings.TrimSpace(item.Value))
	}
	return list
}

func (p *parser) groups(n *yaml.Node) {
	for _, e := range p.pairs(n, "groups") {
		if err := checkName("group", e.key.Value); err != nil {
			p.at(e.key, err)
			continue
		}
		g := Group{Name: e.key.Value, line: e.key.Line}
		for _, item := range p.list(e.value, "user") {
			name := strings.TrimPrefix(strings.TrimSpace(item.Value), "user:")
			if err := checkName("user", name); err != nil {
				err.Hint = "a group lists users; a group of groups is written as several sources"
				p.at(item, err)
				continue
			}
			g.Members = append(g.Members, name)
		}
		slices.Sort(g.Members)
		g.Members = slices.Compact(g.Members)
		p.policy.Groups = append(p.policy.Groups, g)
	}
}

func (p *parser) hosts(n *yaml.Node) {
	for _, e := range p.pairs(n, "hosts") {
		if err := checkName("host", e.key.Value); err != nil {
			p.at(e.key, err)
			continue
		}
		h := Host{Name: e.key.Value, line: e.key.Line}
		for _, item := range p.list(e.value, "address or prefix") {
			x, err := parsePrefix(strings.TrimSpace(item.Value))
			if err != nil {
				p.at(item, err)
				continue
			}
			h.Prefixes = append(h.Prefixes, x)
		}
		h.Prefixes = sortPrefixes(h.Prefixes)
		p.policy.Hosts = append(p.policy.Hosts, h)
	}
}

func (p *parser) terms(n *yaml.Node, dst bool) (list []Term) {
	what := "source"
	if dst {
		what = "destination"
	}
	for _, item := range p.list(n, what) {
		t, err := parseTerm(item.Value, dst)
		if err != nil {
			p.at(item, err)
			continue
		}
		t.line = item.Line
		list = append(list, t)
	}
	return list
}

func (p *parser) rule(n *yaml.Node) {
	r := Rule{line: n.Line}
	ports := false
	p.fields(n, "a rule", map[string]func(*yaml.Node){
		"name": func(v *yaml.Node) {
			name, ok := p.word(v, "name")
			if !ok {
				return
			}
			if err := checkName("rule", name); err != nil {
				p.at(v, err)
				return
			}
			r.Name, r.Named = name, true
		},
		"src": func(v *yaml.Node) { r.Src = p.terms(v, false) },
		"dst": func(v *yaml.Node) { r.Dst = p.terms(v, true) },
		"ports": func(v *yaml.Node) {
			ports = true
			for _, item := range p.list(v, "protocol") {
				list, err := parseService(item.Value)
				if err != nil {
					p.at(item, err)
					continue
				}
				r.Services = append(r.Services, list...)
			}
		},
		"times": func(v *yaml.Node) { r.When = p.schedule(v) },
	})
	if !ports {
		r.Services = []Service{AnyService}
	}
	p.policy.Rules = append(p.policy.Rules, r)
}

func (p *parser) schedule(n *yaml.Node) (s Schedule) {
	set := func(read func([]string) error, what string) func(*yaml.Node) {
		return func(v *yaml.Node) {
			if err := read(p.words(v, what)); err != nil {
				p.at(v, err)
			}
		}
	}
	var from, until *yaml.Node
	p.fields(n, "times", map[string]func(*yaml.Node){
		"days":       set(s.setDays, "day"),
		"hours":      set(s.setHours, "hour"),
		"zone":       set(func(w []string) error { return s.setZone(strings.Join(w, " ")) }, "time zone"),
		"not-before": func(v *yaml.Node) { from = v },
		"until":      func(v *yaml.Node) { until = v },
	})
	moment := func(v *yaml.Node, end bool) (t time.Time) {
		if v == nil {
			return t
		}
		if w, ok := p.word(v, "time"); ok {
			var err error
			if t, err = parseMoment(w, s.loc, end); err != nil {
				p.at(v, err)
			}
		}
		return t
	}
	s.NotBefore, s.Until = moment(from, false), moment(until, true)
	if !s.Until.IsZero() && !s.NotBefore.Before(s.Until) {
		p.fail(n, "exchange not-before and until", "the times end before they begin")
	}
	if len(s.Days) == 0 && len(s.Hours) == 0 && s.Zone != "" && from == nil && until == nil {
		p.fail(n, "add days or hours, or remove times", "times have a zone and nothing else")
	}
	return s
}

func (p *parser) test(n *yaml.Node) {
	t := Test{line: n.Line}
	targets := func(list *[]Target) func(*yaml.Node) {
		return func(v *yaml.Node) {
			for _, item := range p.list(v, "destination") {
				target, err := parseTarget(item.Value)
				if err != nil {
					p.at(item, err)
					continue
				}
				target.Dst.line = item.Line
				*list = append(*list, target)
			}
		}
	}
	who := false
	p.fields(n, "a test", map[string]func(*yaml.Node){
		"who": func(v *yaml.Node) {
			who = true
			w, ok := p.word(v, "user")
			if !ok {
				return
			}
			term, err := parseTerm(w, false)
			if err == nil && (term.Kind == KindAll || term.Kind == KindGroup) {
				err = hinted("name one user, node:NAME or tag:NAME, and add a test for each", "a test is about one user or machine")
			}
			if err != nil {
				p.at(v, err)
				return
			}
			t.Who, t.Who.line = term, v.Line
		},
		"at": func(v *yaml.Node) {
			if w, ok := p.word(v, "time"); ok {
				at, err := time.Parse(time.RFC3339, w)
				if err != nil {
					p.fail(v, "write it like 2026-09-01T08:00:00+08:00", "%s is not a time", clip(w))
				}
				t.At = at
			}
		},
		"accept": targets(&t.Accept), "deny": targets(&t.Deny),
	})
	if !who {
		p.fail(n, "add who: alice", "the test does not say who")
	}
	if len(t.Accept)+len(t.Deny) == 0 {
		p.fail(n, "add accept: or deny: with what must or must not be reached", "the test tests nothing")
	}
	p.policy.Tests = append(p.policy.Tests, t)
}

// finish gives bare names their meaning, rules their names, and everything its
// order.
func (p *parser) finish() {
	pol := p.policy
	slices.SortFunc(pol.Groups, func(a, b Group) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(pol.Hosts, func(a, b Host) int { return strings.Compare(a.Name, b.Name) })
	for i := range pol.Rules {
		r := &pol.Rules[i]
		if len(r.Src) == 0 || len(r.Dst) == 0 || len(r.Services) == 0 {
			if len(p.problems) == 0 {
				p.problems = append(p.problems, &Problem{Line: r.line, Text: "the rule lacks src, dst or ports",
					Hint: "a rule has src: (who), dst: (what) and may have ports: (tcp/22)"})
			}
			continue
		}
		for j := range r.Src {
			r.Src[j] = pol.resolve(r.Src[j])
		}
		for j := range r.Dst {
			r.Dst[j] = pol.resolve(r.Dst[j])
		}
		r.Src, r.Dst, r.Services = sortTerms(r.Src), sortTerms(r.Dst), sortServices(r.Services)
	}
	for i := range pol.Tests {
		for _, list := range [][]Target{pol.Tests[i].Accept, pol.Tests[i].Deny} {
			for j := range list {
				list[j].Dst = pol.resolve(list[j].Dst)
			}
		}
	}
	p.nameRules()
}

// resolve turns a bare name into that of a group or host of this file, if
// there is one.
func (p *Policy) resolve(t Term) Term {
	switch {
	case t.bare && t.Kind == KindUser && p.group(t.Name) != nil:
		t.Kind = KindGroup
	case t.bare && t.Kind == KindNode && p.host(t.Name) != nil:
		t.Kind = KindHost
	}
	return t
}

func (p *Policy) group(name string) *Group {
	i, ok := slices.BinarySearchFunc(p.Groups, name, func(g Group, n string) int { return strings.Compare(g.Name, n) })
	if !ok {
		return nil
	}
	return &p.Groups[i]
}

func (p *Policy) host(name string) *Host {
	i, ok := slices.BinarySearchFunc(p.Hosts, name, func(h Host, n string) int { return strings.Compare(h.Name, n) })
	if !ok {
		return nil
	}
	return &p.Hosts[i]
}

// nameRules gives the rules without a name one, and refuses a name that is
// there twice.
func (p *parser) nameRules() {
	lines := map[string]int{}
	for i := range p.policy.Rules {
		r := &p.policy.Rules[i]
		if !r.Named {
			continue
		}
		if before, twice := lines[r.Name]; twice {
			p.problems = append(p.problems, &Problem{Line: r.line, Text: "the rule " + r.Name + " is there already, at line " + strconv.Itoa(before),
				Hint: "give it another name"})
		}
		lines[r.Name] = r.line
	}
	for i := range p.policy.Rules {
		r := &p.policy.Rules[i]
		if r.Named {
			continue
		}
		base := r.derivedName()
		r.Name = base
		for n := 2; lines[r.Name] != 0; n++ {
			r.Name = base + "-" + strconv.Itoa(n)
		}
		lines[r.Name] = r.line
	}
}

func sortPrefixes(list []netip.Prefix) []netip.Prefix {
	slices.SortFunc(list, netip.Prefix.Compare)
	return slices.Compact(list)
}
