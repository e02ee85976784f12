package nat

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Operations of a step, as iptables calls them.
const (
	newChain    = "-N"
	insertRule  = "-I"
	appendRule  = "-A"
	deleteRule  = "-D" // by its text
	deleteAt    = "-D#"
	flushChain  = "-F"
	deleteChain = "-X"
)

// step is one command.
type step struct {
	table, op, chain string
	pos              int // of insertRule and deleteAt, counted from 1
	rule             string
}

// String is the command as one would type it.
func (s step) String() string {
	c := fmt.Sprintf("iptables -t %s %s %s", s.table, strings.TrimSuffix(s.op, "#"), s.chain)
	if s.pos > 0 {
		c += fmt.Sprintf(" %d", s.pos)
	}
	if s.rule != "" {
		c += " " + s.rule
	}
	return c
}

// diff returns the steps that lead from have to want, and none where all is as
// it should be. A chain is filled before anything leads to it. Steps in chains
// that are not ours name the rule by its text, because others may change those
// chains at any time; in our own chains they name it by its place.
func diff(have saved, want []chain) []step {
	var steps []step
	for _, c := range want {
		if !have.has(c.table, c.name) {
			steps = append(steps, step{table: c.table, op: newChain, chain: c.name})
		}
		steps = append(steps, fill(c, have[c.table][c.name])...)
		steps = append(steps, lead(c, have[c.table][c.from])...)
	}
	return append(steps, remove(have, func(table, name string) bool {
		return !slices.ContainsFunc(want, func(c chain) bool { return c.table == table && c.name == name })
	})...)
}

// fill leads from the rules a chain has to those it should have: what differs in
// the middle is put in first and taken out after.
func fill(c chain, have []string) []step {
	want := c.rules
	first := 0
	for first < len(have) && first < len(want) && have[first] == want[first] {
		first++
	}
	last := 0
	for last < len(have)-first && last < len(want)-first && have[len(have)-1-last] == want[len(want)-1-last] {
		last++
	}
	var steps []step
	added := want[first : len(want)-last]
	for i, rule := range added {
		if len(have) == 0 {
			steps = append(steps, step{table: c.table, op: appendRule, chain: c.name, rule: rule})
			continue
		}
		steps = append(steps, step{table: c.table, op: insertRule, chain: c.name, pos: first + i + 1, rule: rule})
	}
	for range have[first : len(have)-last] {
		steps = append(steps, step{table: c.table, op: deleteAt, chain: c.name, pos: first + len(added) + 1})
	}
	return steps
}

// lead makes the first rule of the chain c.from, and no other, jump to c.
func lead(c chain, have []string) []step {
	count := map[string]int{}
	for _, rule := range have {
		if target(rule) == c.name {
			count[rule]++
		}
	}
	jumps := c.jumps()
	keep, insert := "", true
	for _, j := range jumps {
		if len(have) > 0 && have[0] == j && count[j] == 1 {
			keep, insert = j, false
		}
	}
	var steps []step
	if insert {
		keep = jumps[0]
		if count[jumps[0]] > count[jumps[1]] {
			keep = jumps[1]
		}
		for range count[keep] { // both are there: the other one leads on meanwhile
			steps = append(steps, step{table: c.table, op: deleteRule, chain: c.from, rule: keep})
		}
		steps = append(steps, step{table: c.table, op: insertRule, chain: c.from, pos: 1, rule: keep})
	}
	for _, rule := range slices.Sorted(maps.Keys(count)) {
		for n := count[rule]; n > 0 && rule != keep; n-- {
			steps = append(steps, step{table: c.table, op: deleteRule, chain: c.from, rule: rule})
		}
	}
	return steps
}

// remove takes away those of our chains that gone names, first what leads there.
func remove(have saved, gone func(table, name string) bool) []step {
	var jumps, flushes, deletes []step
	for _, table := range slices.Sorted(maps.Keys(have)) {
		dead := func(name string) bool { return isOurs(name) && have.has(table, name) && gone(table, name) }
		for _, name := range slices.Sorted(maps.Keys(have[table])) {
			if dead(name) {
				flushes = append(flushes, step{table: table, op: flushChain, chain: name})
				deletes = append(deletes, step{table: table, op: deleteChain, chain: name})
				continue
			}
			for _, rule := range have[table][name] {
				if dead(target(rule)) {
					jumps = append(jumps, step{table: table, op: deleteRule, chain: name, rule: rule})
				}
			}
		}
	}
	return slices.Concat(jumps, flushes, deletes)
}
