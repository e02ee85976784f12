package underlay

import (
	"math/rand/v2"
	"testing"
	"time"
)

// backOffNow is when all of them begin.
var backOffNow = time.Unix(1000, 0)

func below(r *rand.Rand) func(time.Duration) time.Duration {
	return func(d time.Duration) time.Duration { return time.Duration(r.Int64N(int64(d))) }
}

var backOffs = []struct {
	name        string
	least, most []time.Duration // of one after the other
	pauses      func(r *rand.Rand, n int) []time.Duration
}{
	{
		"searches", []time.Duration{searchTime, searchTime, searchTime, searchTime, searchTime, searchTime, searchTime},
		[]time.Duration{searchFirst, 2 * searchFirst, 4 * searchFirst, 8 * searchFirst, 16 * searchFirst, 32 * searchFirst, searchMost},
		func(r *rand.Rand, n int) (all []time.Duration) {
			f := newFinder(r, &locality{})
			for range n {
				f.search(backOffNow)
				all = append(all, f.nextSearch.Sub(backOffNow))
			}
			return all
		},
	},
	{
		"an address that is left", []time.Duration{penaltyLeast, penaltyLeast, penaltyLeast},
		[]time.Duration{penaltyFirst, 2 * penaltyFirst, 4 * penaltyFirst},
		func(r *rand.Rand, n int) (all []time.Duration) {
			f := newFinder(r, &locality{})
			s := &spot{}
			for range n {
				f.leave(backOffNow, s)
				all = append(all, s.leftUntil.Sub(backOffNow))
			}
			return all
		},
	},
	{
		"pings to a stranger: never less than is promised", []time.Duration{quietFirst, 2 * quietFirst, 4 * quietFirst, 8 * quietFirst, quietMost},
		[]time.Duration{quietFirst * 5 / 4, quietFirst * 5 / 2, quietFirst * 5, quietFirst * 10, quietMost * 5 / 4},
		func(r *rand.Rand, n int) (all []time.Duration) {
			f := newFinder(r, &locality{})
			s := &spot{}
			for range n {
				s.due, s.again = time.Time{}, time.Time{}
				f.grant(backOffNow, s)
				all = append(all, s.again.Sub(backOffNow))
			}
			return all
		},
	},
	{
		"another port", []time.Duration{moveLeast, moveLeast, moveLeast},
		[]time.Duration{moveFirst, 2 * moveFirst, 4 * moveFirst},
		func(r *rand.Rand, n int) (all []time.Duration) {
			at := backOffNow
			m := mover{silent: at, at: at}
			for range n {
				_, next := m.step(at, hearing{asked: askedBridged, bridged: true}, below(r))
				all = append(all, next.Sub(at))
				at = next
			}
			return all
		},
	},
	{
		"UDP while TLS works", []time.Duration{udpLeast}, []time.Duration{udpFirst},
		func(r *rand.Rand, _ int) []time.Duration {
			var race race
			race.takeOver(backOffNow, below(r))
			return []time.Duration{race.probe.Sub(backOffNow)}
		},
	},
}

// TestBackOff: what is tried again comes at any time between the shortest pause
// and the longest, which doubles up to a limit.
func TestBackOff(t *testing.T) {
	for _, c := range backOffs {
		t.Run(c.name, func(t *testing.T) {
			const runs = 300
			n := len(c.least)
			short, long := make([]time.Duration, n), make([]time.Duration, n)
			for seed := range uint64(runs) {
				for i, d := range c.pauses(rand.New(rand.NewPCG(1, seed)), n) {
					if d < c.least[i] || d >= c.most[i] {
						t.Fatalf("pause %d is %v, want from %v to %v", i+1, d, c.least[i], c.most[i])
					}
					if short[i] == 0 || d < short[i] {
						short[i] = d
					}
					long[i] = max(long[i], d)
				}
			}
			for i := range n {
				if edge := (c.most[i] - c.least[i]) / 20; short[i] > c.least[i]+edge || long[i] < c.most[i]-edge {
					t.Errorf("pause %d is from %v to %v in %d runs, want all from %v to %v", i+1, short[i], long[i], runs, c.least[i], c.most[i])
				}
			}
		})
	}
}
