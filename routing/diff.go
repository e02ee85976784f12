package routing

import "slices"

// Change is one step from what a kernel has to what it should have.
type Change struct {
	Remove bool
	Fact   Fact
}

// String is the change in the words of ip(8) or sysctl(8).
func (c Change) String() string {
	if c.Remove {
		return c.Fact.line("del")
	}
	return c.Fact.line("add")
}

// Diff returns the changes that lead from have to want. Additions come first,
// in want's order, because an interface that loses its last address loses its
// routes too; removals come after, in have's order backwards.
func Diff(have, want []Fact) []Change {
	var changes []Change
	for _, f := range want {
		if !slices.Contains(have, f) {
			changes = append(changes, Change{Fact: f})
		}
	}
	wanted := make(map[string]bool, len(want))
	for _, f := range want {
		wanted[f.slot()] = true
	}
	for _, f := range slices.Backward(have) {
		if !f.lasting() && !wanted[f.slot()] {
			changes = append(changes, Change{Remove: true, Fact: f})
		}
	}
	return changes
}
