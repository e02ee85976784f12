//go:build linux

package lab

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Snapshot returns what overlayd may change on a machine, as text: links,
// rules, routes of all tables, iptables and sysctls. Two snapshots are equal
// when the machine is as it was.
func (m *Machine) Snapshot(ctx context.Context) (string, error) {
	var all strings.Builder
	for _, c := range []struct {
		args  []string
		clean func(string) string
	}{
		{[]string{"ip", "-o", "link"}, nil},
		{[]string{"ip", "-o", "addr"}, nil},
		{[]string{"ip", "rule"}, nil},
		{[]string{"ip", "-6", "rule"}, nil},
		{[]string{"ip", "route", "show", "table", "all"}, sortLines},
		{[]string{"ip", "-6", "route", "show", "table", "all"}, sortLines},
		{[]string{"iptables-save"}, cleanTables},
		{[]string{"ip6tables-save"}, cleanTables},
		{[]string{"sysctl", "-a", "-r", `^net\.ipv[46]\.(ip_forward|conf\.)`}, sortLines},
	} {
		// Only stdout: sysctl complains about secrets that it cannot read.
		out, err := m.Command(ctx, c.args[0], c.args[1:]...).Output()
		if err != nil {
			return "", fmt.Errorf("%s: %s: %w", m.Name, strings.Join(c.args, " "), err)
		}
		text := string(out)
		if c.clean != nil {
			text = c.clean(text)
		}
		fmt.Fprintf(&all, "$ %s\n%s\n", strings.Join(c.args, " "), strings.TrimSpace(text))
	}
	return all.String(), nil
}

// Differences lists the lines that only one of two snapshots has; nothing when
// they are equal.
func Differences(before, after string) string {
	var all strings.Builder
	for _, side := range []struct{ sign, lines, others string }{{"- ", before, after}, {"+ ", after, before}} {
		others := map[string]int{}
		for line := range strings.Lines(side.others) {
			others[line]++
		}
		for line := range strings.Lines(side.lines) {
			if others[line]--; others[line] < 0 {
				all.WriteString(side.sign + line)
			}
		}
	}
	if all.Len() == 0 && before != after {
		return "the same lines in another order\n"
	}
	return all.String()
}

func sortLines(s string) string {
	lines := slices.Collect(strings.Lines(s))
	slices.Sort(lines)
	return strings.Join(lines, "")
}

var (
	saveComment = regexp.MustCompile(`(?m)^#.*\n`)                                // holds the time
	saveCounter = regexp.MustCompile(`(?m)^(:.*) \[\d+:\d+\]$`)                   // packets and bytes so far
	saveEmpty   = regexp.MustCompile(`(?m)^\*\w+\n(?::[A-Z]+ ACCEPT\n)*COMMIT\n`) // same as no table: it cannot be unloaded
)

// cleanTables leaves of iptables-save what rules do.
func cleanTables(s string) string {
	s = saveComment.ReplaceAllString(s, "")
	s = saveCounter.ReplaceAllString(s, "$1")
	return saveEmpty.ReplaceAllString(s, "")
}
