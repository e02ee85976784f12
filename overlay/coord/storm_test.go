package coord

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestStorm lets ten thousand nodes lose their coordinator in one moment, and
// follows their tries to reach it again: how many come in a second, and when all
// are back.
func TestStorm(t *testing.T) {
	const nodes = 10_000
	for _, down := range []time.Duration{100 * time.Millisecond, 10 * time.Second, 5 * time.Minute} {
		t.Run(down.String(), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(1, 1))
			perSec := map[time.Duration]int{}
			var all time.Duration
			late := 0
			for range nodes {
				at := time.Duration(0)
				for failures := 1; ; failures++ {
					at += retryAfter(failures, nodes, rng.Float64())
					perSec[at/time.Second]++
					if at >= down {
						break
					}
				}
				all = max(all, at-down)
				if at-down > 10*time.Second {
					late++
				}
			}
			peak := 0
			for _, n := range perSec {
				peak = max(peak, n)
			}
			t.Logf("down for %v: at most %d dials in a second, all back after %v", down, peak, all.Round(time.Millisecond))
			// Full jitter over ten seconds is a thousand a second, two when the
			// waits of two tries meet.
			if peak > 3*nodes/10 || late > nodes/100 {
				t.Errorf("%d dials in a second, %d nodes back after more than ten seconds", peak, late)
			}
		})
	}
}
