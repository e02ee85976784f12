package underlay

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestStorm lets ten thousand nodes find UDP unanswered in one moment, because
// their relay is restarted: until it answers they dial TLS, and not all at once.
func TestStorm(t *testing.T) {
	const nodes = 10_000
	for _, down := range []time.Duration{time.Second, 20 * time.Second} {
		rng := rand.New(rand.NewPCG(1, 1))
		random := func(d time.Duration) time.Duration { return time.Duration(rng.Int64N(int64(d))) }
		start := time.Unix(1000, 0)
		perSec := map[int]int{}
		for range nodes {
			r := race{wasUp: true, udpSince: start.Add(-time.Hour)}
			answered := start.Add(down + random(4*time.Second)) // see relay's TestStorm
			for now := start; now.Before(answered); now = now.Add(100 * time.Millisecond) {
				v := r.step(now, facts{udp: now.Sub(start) < 2500*time.Millisecond, doubted: start, crowd: nodes}, random)
				if v.dial {
					perSec[int(now.Sub(start)/time.Second)]++
				}
			}
		}
		peak := 0
		for _, n := range perSec {
			peak = max(peak, n)
		}
		t.Logf("down for %v: at most %d TLS dials in a second", down, peak)
		if peak > 3*nodes/10 {
			t.Errorf("down for %v: %d TLS dials in a second", down, peak)
		}
	}
}
