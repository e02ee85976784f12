package policy

import (
	"net/netip"
	"strings"
)

// Target is what a grant opens, and what a test or a question is about: a
// destination with its protocol and ports.
type Target struct {
	Dst      Term // KindNode, KindHost, KindTag or KindPrefix, or one of the words
	Services []Service
}

// String returns the target as ParseTarget reads it.
func (t Target) String() string {
	dst := t.Dst.String()
	if len(t.Services) == 0 || t.Services[0] == AnyService {
		return dst
	}
	proto := t.Services[0].Proto
	if t.Services[0] == allPorts(proto) {
		return dst + "/" + proto.String()
	}
	ports := make([]string, len(t.Services))
	for i, s := range t.Services {
		_, ports[i], _ = strings.Cut(s.String(), "/")
	}
	if strings.Contains(dst, ":") && t.Dst.Kind == KindPrefix {
		dst = "[" + dst + "]"
	}
	return dst + ":" + strings.Join(ports, ",") + "/" + proto.String()
}

// ParseTarget reads DST[:PORTS][/PROTO], as in "192.168.1.201:22",
// "nas:53/udp", "nas/icmp", "192.168.1.0/24:80,443", "[fd00::1]:22". Ports
// without a protocol are TCP's; neither means everything.
func ParseTarget(s string) (Target, error) {
	t, err := parseTarget(s)
	if err != nil {
		err.Text = "read target " + clip(s) + ": " + err.Text
		return Target{}, err
	}
	return t, nil
}

func parseTarget(s string) (Target, *Problem) {
	s = strings.TrimSpace(s)
	proto := ""
	if i := strings.LastIndexByte(s, '/'); i >= 0 && strings.Trim(s[i+1:], "0123456789") != "" {
		if rest := s[i+1:]; !strings.ContainsAny(rest, ":]") { // else the length of a prefix with ports after it
			s, proto = s[:i], rest
		}
	}
	dst, ports := cutPorts(s)
	term, err := parseTerm(dst, true)
	if err != nil {
		return Target{}, err
	}
	services := []Service{AnyService}
	if ports != "" || proto != "" {
		service := proto
		if proto == "" {
			service = "tcp"
		}
		if ports != "" {
			service += "/" + ports
		}
		list, perr := parseService(service)
		if perr != nil {
			return Target{}, perr.(*Problem)
		}
		services = sortServices(list)
	}
	return Target{Dst: term, Services: services}, nil
}

// cutPorts separates what follows the last colon, unless that colon belongs to
// an IPv6 address or to the kind of a name.
func cutPorts(s string) (dst, ports string) {
	if rest, ok := strings.CutPrefix(s, "["); ok {
		if in, after, ok := strings.Cut(rest, "]"); ok {
			if after == "" {
				return in, ""
			}
			if p, ok := strings.CutPrefix(after, ":"); ok && p != "" {
				return in, p
			}
		}
		return s, ""
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return s, ""
	}
	if _, err := netip.ParsePrefix(s); err == nil {
		return s, ""
	}
	i := strings.LastIndexByte(s, ':')
	if i < 0 || i == len(s)-1 {
		return s, ""
	}
	if _, kind := prefixed[s[:i]]; kind {
		return s, ""
	}
	return s[:i], s[i+1:]
}

// maxName is the longest name of anything in a policy, in bytes.
const maxName = 64

// checkName refuses what cannot be a name, so that names can be printed,
// quoted and told from addresses and words anywhere.
func checkName(what, s string) *Problem {
	ok := s != "" && len(s) <= maxName && alphanumeric(s[0])
	for i := 0; ok && i < len(s); i++ {
		ok = alphanumeric(s[i]) || strings.IndexByte("._-@", s[i]) >= 0
	}
	if !ok {
		return hinted("a name has letters, digits and . _ - @, begins with a letter or digit, and at most 64 of them",
			"%s is not a name for a %s", clip(s), what)
	}
	if _, is := words[s]; is {
		return hinted("choose another name", "%s has a meaning of its own and cannot name a %s", s, what)
	}
	if _, err := parsePrefix(s); err == nil {
		return hinted("choose another name", "%s is an address and cannot name a %s", s, what)
	}
	return nil
}

func alphanumeric(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// parseTerm reads a source or destination without knowing any names: a bare
// name is a user's as a source, and a node's as a destination.
func parseTerm(s string, dst bool) (Term, *Problem) {
	s = strings.TrimSpace(s)
	if kind, ok := words[s]; ok {
		if !dst && kind != KindAll {
			return Term{}, hinted("write *, a user, a group or a tag", "%s is not a source", s)
		}
		return Term{Kind: kind}, nil
	}
	if p, err := parsePrefix(s); err == nil {
		if !dst {
			return Term{}, hinted("packets belong to people: name the user, or the tag of a machine", "the address %s is not a source", clip(s))
		}
		return Term{Kind: KindPrefix, Prefix: p}, nil
	} else if err.Hint != "" && strings.Trim(s, "0123456789abcdefABCDEF.:/") == "" && strings.ContainsAny(s, "/") {
		return Term{}, err
	}
	kind := KindUser
	if dst {
		kind = KindNode
	}
	word, name, explicit := strings.Cut(s, ":")
	if !explicit {
		if err := checkName(kindNoun(kind), s); err != nil {
			return Term{}, err
		}
		return Term{Kind: kind, Name: s, bare: true}, nil
	}
	kind, ok := prefixed[word]
	switch {
	case !ok:
		return Term{}, hinted("the kinds are user, group, tag, node and host", "%s is not a kind of name", clip(word))
	case !dst && kind == KindHost:
		return Term{}, hinted("packets belong to people: name the user, or the tag of a machine", "a host is not a source")
	case dst && (kind == KindUser || kind == KindGroup):
		return Term{}, hinted("name the node, or give the user's machines a tag", "a %s is not a destination", word)
	}
	if err := checkName(word, name); err != nil {
		return Term{}, err
	}
	return Term{Kind: kind, Name: name}, nil
}

// kindNoun is what a name of that kind names, in words.
func kindNoun(k Kind) string {
	for word, kind := range prefixed {
		if kind == k {
			return word
		}
	}
	return "thing"
}

// parsePrefix reads an address or a prefix. A prefix with host bits is refused:
// it is as likely to mean the one host.
func parsePrefix(s string) (netip.Prefix, *Problem) {
	if a, err := netip.ParseAddr(s); err == nil {
		if a.Zone() != "" || a.Is4In6() {
			return netip.Prefix{}, hinted("write the plain address", "%s is not an address of the overlay or of a LAN", clip(s))
		}
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		return netip.Prefix{}, hinted("as in 192.168.1.201 or 192.168.1.0/24", "%s is not an address or a prefix", clip(s))
	}
	if p != p.Masked() {
		return netip.Prefix{}, hinted("write "+p.Masked().String()+" for the network, "+p.Addr().String()+" for the host",
			"%s is a host inside its network", p)
	}
	return p, nil
}

// clip returns user input in quotes, short enough for an error.
func clip(s string) string {
	if len(s) > 60 {
		s = s[:60]
	}
	return strings.ToValidUTF8(quoteInput(s), "?")
}

func quoteInput(s string) string {
	return `"` + strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '"' {
			return '?'
		}
		return r
	}, s) + `"`
}
