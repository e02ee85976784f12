package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Policy says who may reach what. Parse makes one; it is read-only from then on.
type Policy struct {
	Groups []Group // by name
	Hosts  []Host  // by name
	Rules  []Rule  // as in the file
	Tests  []Test  // as in the file
}

// Group is a name for users. A group of the file and one of the network that
// have the same name are one group, of all their members.
type Group struct {
	Name    string
	Members []string // users, in order
	line    int
}

// Host is a name for addresses and prefixes.
type Host struct {
	Name     string
	Prefixes []netip.Prefix // in order
	line     int
}

// Rule lets its sources reach its destinations. There is nothing that forbids:
// what no rule allows is refused.
type Rule struct {
	Name     string // as given, or made from the content
	Named    bool   // given in the file
	Src, Dst []Term
	Services []Service // in order; never empty
	When     Schedule
	line     int
}

// Test says what one user or node must reach and what not.
type Test struct {
	Who          Term // KindUser, KindNode, or KindTag for a machine that is nobody's
	At           time.Time
	Accept, Deny []Target
	line         int
}

// Kind says what a Term names.
type Kind uint8

// The kinds of terms.
const (
	KindAll      Kind = iota // "*": every member; as a destination, every node and every route
	KindUser                 // the nodes of a user
	KindGroup                // the nodes of a group's users
	KindTag                  // the nodes with a tag, and those of users with it
	KindNode                 // one node
	KindHost                 // a name from hosts
	KindPrefix               // an address or a prefix
	KindRoutes               // everything that gateways advertise and may
	KindNodes                // the overlay addresses of all nodes
	KindGateways             // those of the gateways
	KindRelays               // those of the relays
)

// words are the destinations that are neither names nor addresses.
var words = map[string]Kind{
	"*": KindAll, "routes": KindRoutes, "nodes": KindNodes, "gateways": KindGateways, "relays": KindRelays,
}

// prefixed are the kinds that may be written with their kind before the name.
var prefixed = map[string]Kind{
	"user": KindUser, "group": KindGroup, "tag": KindTag, "node": KindNode, "host": KindHost,
}

// Term is one source or destination of a rule.
type Term struct {
	Kind   Kind
	Name   string       // of a user, group, tag, node or host
	Prefix netip.Prefix // of KindPrefix
	bare   bool         // written without its kind
	line   int
}

// String returns the term as a policy file may have it, with its kind.
func (t Term) String() string {
	if t.Kind == KindPrefix {
		if t.Prefix.IsSingleIP() {
			return t.Prefix.Addr().String()
		}
		return t.Prefix.String()
	}
	for word, kind := range words {
		if kind == t.Kind {
			return word
		}
	}
	for word, kind := range prefixed {
		if kind == t.Kind {
			return word + ":" + t.Name
		}
	}
	return "?"
}

// content returns what a rule says, without its name, in one line.
func (r Rule) content() string {
	s := terms(r.Src) + " -> " + terms(r.Dst) + " " + services(r.Services)
	if !r.When.Always() {
		s += " " + r.When.String()
	}
	return s
}

// derivedName names a rule without a name after its content, so that it keeps
// the name when other rules come and go.
func (r Rule) derivedName() string {
	h := sha256.Sum256([]byte(r.content()))
	return "rule-" + hex.EncodeToString(h[:4])
}

func terms(list []Term) string {
	names := make([]string, len(list))
	for i, t := range list {
		names[i] = t.String()
	}
	return strings.Join(names, ", ")
}

func services(list []Service) string {
	names := make([]string, len(list))
	for i, s := range list {
		names[i] = s.String()
	}
	return strings.Join(names, ", ")
}

// sortTerms puts terms in order, each once.
func sortTerms(list []Term) []Term {
	slices.SortStableFunc(list, func(a, b Term) int { return strings.Compare(a.String(), b.String()) })
	return slices.CompactFunc(list, func(a, b Term) bool { return a.String() == b.String() })
}

// String returns the policy in its canonical form: a YAML text that parses to
// the same policy, and is the same for all texts that mean the same.
func (p *Policy) String() string {
	var b strings.Builder
	if len(p.Groups) > 0 {
		b.WriteString("groups:\n")
		for _, g := range p.Groups {
			fmt.Fprintf(&b, "  %s: [%s]\n", quote(g.Name), quoted(g.Members))
		}
	}
	if len(p.Hosts) > 0 {
		b.WriteString("hosts:\n")
		for _, h := range p.Hosts {
			list := make([]string, len(h.Prefixes))
			for i, x := range h.Prefixes {
				list[i] = Term{Kind: KindPrefix, Prefix: x}.String()
			}
			fmt.Fprintf(&b, "  %s: [%s]\n", quote(h.Name), quoted(list))
		}
	}
	if len(p.Rules) == 0 {
		b.WriteString("rules: []\n")
	} else {
		b.WriteString("rules:\n")
	}
	for _, r := range p.Rules {
		r.write(&b)
	}
	if len(p.Tests) > 0 {
		b.WriteString("tests:\n")
		for _, t := range p.Tests {
			t.write(&b)
		}
	}
	return b.String()
}

func (r Rule) write(b *strings.Builder) {
	dash := "  - "
	if r.Named {
		fmt.Fprintf(b, "  - name: %s\n", quote(r.Name))
		dash = "    "
	}
	fmt.Fprintf(b, "%ssrc: [%s]\n    dst: [%s]\n", dash, quotedTerms(r.Src), quotedTerms(r.Dst))
	if !(len(r.Services) == 1 && r.Services[0] == AnyService) {
		list := make([]string, len(r.Services))
		for i, s := range r.Services {
			list[i] = s.String()
		}
		fmt.Fprintf(b, "    ports: [%s]\n", quoted(list))
	}
	if !r.When.Always() {
		fmt.Fprintf(b, "    times: %s\n", r.When.yaml())
	}
}

func (t Test) write(b *strings.Builder) {
	fmt.Fprintf(b, "  - who: %s\n", quote(t.Who.String()))
	if !t.At.IsZero() {
		fmt.Fprintf(b, "    at: %s\n", quote(t.At.Format(time.RFC3339)))
	}
	for _, l := range []struct {
		key  string
		list []Target
	}{{"accept", t.Accept}, {"deny", t.Deny}} {
		if len(l.list) == 0 {
			continue
		}
		names := make([]string, len(l.list))
		for i, x := range l.list {
			names[i] = x.String()
		}
		fmt.Fprintf(b, "    %s: [%s]\n", l.key, quoted(names))
	}
}

func quote(s string) string { return `"` + s + `"` } // nothing in a policy holds a quote or a backslash

func quoted(list []string) string {
	q := make([]string, len(list))
	for i, s := range list {
		q[i] = quote(s)
	}
	return strings.Join(q, ", ")
}

func quotedTerms(list []Term) string {
	names := make([]string, len(list))
	for i, t := range list {
		names[i] = t.String()
	}
	return quoted(names)
}
