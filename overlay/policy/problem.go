package policy

import (
	"fmt"
	"slices"
	"strings"
)

// Problem is one thing wrong with a policy, where, and what to do about it.
type Problem struct {
	Line int // of the file, from 1; 0 when it is about no line
	Text string
	Hint string // may be empty
}

// Error returns the text after the line. The hint is for whoever prints it.
func (p *Problem) Error() string {
	if p.Line == 0 {
		return p.Text
	}
	return fmt.Sprintf("line %d: %s", p.Line, p.Text)
}

// Problems is everything that is wrong with a policy, in the order of lines.
type Problems []*Problem

// manyProblems is how many are listed: somebody who sees so many has given the
// wrong file.
const manyProblems = 20

// Error returns one line for each problem, and one for its hint.
func (p Problems) Error() string {
	var b strings.Builder
	for i, one := range p {
		if i == manyProblems {
			fmt.Fprintf(&b, "\nand %d more", len(p)-i)
			break
		}
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(one.Error())
		if one.Hint != "" {
			b.WriteString("\nhint: " + one.Hint)
		}
	}
	return b.String()
}

func hinted(hint, format string, args ...any) *Problem {
	return &Problem{Text: fmt.Sprintf(format, args...), Hint: hint}
}

// sorted returns the problems in the order of lines, or nil.
func (p Problems) sorted() error {
	if len(p) == 0 {
		return nil
	}
	slices.SortStableFunc(p, func(a, b *Problem) int { return a.Line - b.Line })
	return p
}

// DidYouMean returns "did you mean X?" for the name that is at most two changes
// away, else what else may help.
func DidYouMean(name string, known []string, other string) string {
	best, at := "", 3
	for _, k := range known {
		if d := distance(name, k, at); d < at {
			best, at = k, d
		}
	}
	if best != "" && at < max(len(name), 2) {
		return "did you mean " + best + "?"
	}
	return other
}

// distance returns how many letters differ, or at least limit.
func distance(a, b string, limit int) int {
	if len(a) > 64 || len(b) > 64 || max(len(a), len(b))-min(len(a), len(b)) >= limit {
		return limit
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := before
			if a[i] != b[j] {
				cost++
			}
			before = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
