package coord

import (
	"strconv"
	"strings"
)

// maxName is the longest DNS label (RFC 1035 section 2.3.4).
const maxName = 63

// checkName refuses what is not a DNS label in lower case.
func checkName(s string) error {
	if s != "" && s == dnsLabel(s) {
		return nil
	}
	hint := "a name has letters, digits and hyphens, at most 63"
	if l := dnsLabel(s); l != "" {
		hint += ": for example " + l
	}
	return problem(KindInvalid, hint, "%.80q is not a name for a node", s)
}

// dnsLabel makes the first label of a host name into one of lower-case
// letters, digits and hyphens (RFC 1123 section 2.1). It may be left empty.
func dnsLabel(s string) string {
	s, _, _ = strings.Cut(s, ".")
	var b strings.Builder
	for _, r := range s {
		switch {
		case r >= 'A' && r <= 'Z':
			b.WriteRune(r - 'A' + 'a')
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			b.WriteRune(r)
		case r == '\'' || r == '’': // mike's → mikes
		default:
			b.WriteByte('-')
		}
		if b.Len() >= 4*maxName { // no host name is longer
			break
		}
	}
	s = strings.Trim(b.String(), "-")
	for strings.Contains(s, "--") {
		s = strings.ReplaceAll(s, "--", "-")
	}
	return strings.Trim(s[:min(len(s), maxName)], "-")
}

// uniqueName returns the wished name, or the first of name-2, name-3 ... that is
// not taken.
func uniqueName(wish string, taken func(string) bool) string {
	base := dnsLabel(wish)
	if base == "" {
		base = "node"
	}
	name := base
	for n := 2; taken(name); n++ {
		tail := "-" + strconv.Itoa(n)
		name = strings.TrimRight(base[:min(len(base), maxName-len(tail))], "-") + tail
	}
	return name
}
