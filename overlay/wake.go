package overlay

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"overlayd/overlay/key"
	"overlayd/overlay/tunnel"
	"overlayd/routing"
)

const (
	// clockEvery is how often the clocks are looked at: after a sleep the timer
	// goes off within that.
	clockEvery = 500 * time.Millisecond
	// sleptLeast is how much later than due the timer has to go off to mean that
	// this process stood still. A busy machine is late by less.
	sleptLeast = 5 * time.Second
	// rejectAfter is the age at which WireGuard takes no data by a session any
	// more (its REJECT-AFTER-TIME).
	rejectAfter = 180 * time.Second
)

// clocks are two readings of the same moment: boot goes on while the machine
// sleeps, mono does not. In a process that is frozen both go on.
type clocks struct{ mono, boot time.Duration }

// slept returns how long this process stood still between two looks at the
// clocks, of which the second was due after clockEvery; zero: it did not.
func slept(before, now clocks) time.Duration {
	late := max(now.boot-before.boot, now.mono-before.mono) - clockEvery
	// A machine's sleep shows however short it was: the network may be another.
	suspended := (now.boot - before.boot) - (now.mono - before.mono)
	switch {
	case late >= sleptLeast:
		return late
	case suspended >= time.Second:
		return suspended
	}
	return 0
}

// awake returns the clocks as they would be if from c to now the machine had not
// slept: what was waited for meanwhile is no sleep, and one that fell into that
// time is still to be seen.
func (c clocks) awake(now clocks) clocks {
	return clocks{mono: now.mono, boot: c.boot + now.mono - c.mono}
}

// watchSleep calls woke after each time that this process stood still, with how
// long that was, until ctx ends.
func watchSleep(ctx context.Context, woke func(time.Duration)) error {
	before := readClocks()
	return every(ctx, clockEvery, func(time.Time) {
		now := readClocks()
		if d := slept(before, now); d > 0 {
			woke(d)
			now = now.awake(readClocks())
		}
		before = now
	})
}

// outlived returns the peers with whom there was a session when this machine
// went to sleep. By now they may refuse it, while WireGuard, whose clock stood
// still, would go on with it for fifteen seconds; or they have begun another one,
// and what they sent for it is too old to be answered now.
func outlived(stats map[key.Public]tunnel.Stat, slept time.Duration, now time.Time) (peers []key.Public) {
	for k, s := range stats {
		age := now.Sub(s.LastHandshake)
		if !s.LastHandshake.IsZero() && age >= slept && age-slept < rejectAfter {
			peers = append(peers, k)
		}
	}
	slices.SortFunc(peers, func(a, b key.Public) int { return strings.Compare(a.Hex(), b.Hex()) })
	return peers
}

// whereabouts says in a line where in the world a machine is: its addresses and
// its default routes. While it stays the same, so do the paths; links that lead
// to no others, as those of containers, are nobody's concern.
func whereabouts(h routing.Host, own string) string {
	var b strings.Builder
	for _, l := range h.Links {
		if l.Name == own || !outward(h, l) {
			continue
		}
		for _, a := range l.Addrs {
			if ip := a.Addr(); !ip.IsLoopback() && !ip.IsLinkLocalUnicast() {
				fmt.Fprintf(&b, "%s %s;", l.Name, a)
			}
		}
	}
	for _, g := range h.Default {
		fmt.Fprintf(&b, "%s via %s;", g.Link, g.Via)
	}
	return b.String()
}
