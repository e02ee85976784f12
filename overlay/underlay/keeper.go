package underlay

import (
	"cmp"
	"slices"
	"time"
)

const (
	// kept is with how many relays a node keeps sessions: the nearest, and the
	// next for when that fails.
	kept = 2
	// surveyTime is how long all relays are tried to learn how near they are.
	surveyTime = 5 * time.Second
	// surveyEvery is the pause between two surveys; surveyAgain that while one
	// of the kept relays is down.
	surveyEvery = 10 * time.Minute
	surveyAgain = 30 * time.Second
	// missedFor is how long a session is kept beside those because a peer is to
	// be reached there only.
	missedFor = time.Minute
)

// keeper decides with which relays there are to be sessions. Of up to two it
// keeps all. It does no I/O.
type keeper struct {
	home   []string  // the kept relays' IDs, the nearest first
	until  time.Time // the survey's end; zero: there is none
	again  time.Time // when the next one begins
	downAt time.Time // when one of home was first seen to be down; zero: it is not
}

// step says for each relay whether there is to be a session with it. wanted are
// when they were last needed for a peer. It returns when to come again; zero:
// when something happens.
func (k *keeper) step(now time.Time, relays []sight, wanted []time.Time) (keep []bool, next time.Time) {
	keep = make([]bool, len(relays))
	if len(relays) <= kept {
		k.home = ids(ranked(relays))
		for i := range keep {
			keep[i] = true
		}
		return keep, time.Time{}
	}
	k.watch(now, relays)
	if k.until.IsZero() && !now.Before(k.again) { // the first time, again is zero
		k.until = now.Add(surveyTime)
	}
	if !k.until.IsZero() && (!now.Before(k.until) || surveyed(relays)) {
		k.settle(now, relays)
	}
	next = k.again
	if !k.until.IsZero() {
		next = k.until
	}
	for i, s := range relays {
		keep[i] = !k.until.IsZero() || slices.Contains(k.home, s.id)
		if end := wanted[i].Add(missedFor); !keep[i] && now.Before(end) {
			keep[i] = true
			next = sooner(next, end)
		}
	}
	return keep, next
}

// watch begins a survey when a kept relay has been down for a while.
func (k *keeper) watch(now time.Time, relays []sight) {
	known, up := 0, true
	for _, s := range relays {
		if slices.Contains(k.home, s.id) {
			known++
			up = up && s.up && !s.doubted
		}
	}
	switch {
	case known < len(k.home): // one is no longer in the map
		k.again = now
	case up:
		k.downAt = time.Time{}
	case k.downAt.IsZero():
		k.downAt = now
		k.again = now
	case k.again.Sub(now) > surveyAgain:
		k.again = now.Add(surveyAgain)
	}
}

// settle ends a survey: the nearest relays that answered are kept, and of two
// that are about as near the one that was.
func (k *keeper) settle(now time.Time, relays []sight) {
	all := ranked(relays)
	home := ids(all[:min(kept, len(all))])
	for i, old := range k.home {
		at := slices.IndexFunc(all, func(s sight) bool { return s.id == old && s.up })
		if i < len(home) && at >= 0 && !slices.Contains(home, old) && !nearer(all[len(home)-1].cost, all[at].cost) {
			home[len(home)-1] = old
		}
	}
	k.home, k.until = home, time.Time{}
	k.again = now.Add(surveyEvery)
	if !k.downAt.IsZero() {
		k.again = now.Add(surveyAgain)
	}
}

// surveyed reports whether every relay has answered.
func surveyed(relays []sight) bool {
	return !slices.ContainsFunc(relays, func(s sight) bool { return !s.up || s.cost == 0 })
}

// ranked returns the relays that are up, the nearest first, then the others.
func ranked(relays []sight) []sight {
	all := slices.Clone(relays)
	slices.SortStableFunc(all, func(a, b sight) int {
		if a.up != b.up {
			if a.up {
				return -1
			}
			return 1
		}
		return cmp.Compare(price(a), price(b))
	})
	return all
}

func price(s sight) time.Duration {
	if s.cost == 0 {
		return costUnknown
	}
	return s.cost
}

func ids(all []sight) []string {
	names := make([]string, 0, len(all))
	for _, s := range all {
		names = append(names, s.id)
	}
	return names
}
