package nat

import (
	"testing"
	"time"
)

// TestApplyTime says how long applying takes; it fails only where nothing is to
// be done and that is not quick.
func TestApplyTime(t *testing.T) {
	eachBackend(t, func(t *testing.T, ipt string) {
		tables := newTables(t, ipt, &memory{})
		start := time.Now()
		apply(t, tables, gateway)
		fresh := time.Since(start)
		best := time.Hour
		for range 5 {
			start = time.Now()
			apply(t, tables, gateway)
			best = min(best, time.Since(start))
		}
		start = time.Now()
		clear(t, tables)
		t.Logf("apply %v, again %v, clear %v", fresh, best, time.Since(start))
		if best > 100*time.Millisecond {
			t.Errorf("with nothing to do: %v", best)
		}
	})
}
