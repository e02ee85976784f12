package nat

import "strings"

// saved is what iptables-save prints: the rules by chain by table. A table that
// is not there does not exist or holds nothing.
type saved map[string]map[string][]string

// parseSaved reads the output of iptables-save. It passes over what it does not
// know: that is somebody else's.
func parseSaved(text string) saved {
	s := saved{}
	var table map[string][]string
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		switch {
		case strings.HasPrefix(line, "*"):
			table = map[string][]string{}
			s[line[1:]] = table
		case line == "COMMIT":
			table = nil
		case table == nil:
		case strings.HasPrefix(line, ":"):
			name, _, _ := strings.Cut(line[1:], " ")
			if _, ok := table[name]; !ok {
				table[name] = nil
			}
		case strings.HasPrefix(line, "-A "):
			name, rule, _ := strings.Cut(line[len("-A "):], " ")
			table[name] = append(table[name], rule)
		}
	}
	return s
}

// has says that a chain exists.
func (s saved) has(table, name string) bool {
	_, ok := s[table][name]
	return ok
}

// target returns the chain or verdict that a rule jumps to.
func target(rule string) string {
	words := strings.Fields(rule)
	for i, w := range words {
		if (w == "-j" || w == "-g") && i+1 < len(words) {
			return words[i+1]
		}
	}
	return ""
}

// isOurs says that a chain has a name of ours.
func isOurs(name string) bool { return strings.HasPrefix(name, "OVL-") }
