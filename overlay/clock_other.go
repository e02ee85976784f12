//go:build !linux

package overlay

import "time"

// started has a reading of the monotonic clock.
var started = time.Now()

// readClocks takes the wall clock for the one that goes on during sleep. That it
// was set looks like a sleep, which costs a look at what there is.
func readClocks() clocks {
	now := time.Now()
	return clocks{mono: now.Sub(started), boot: time.Duration(now.UnixNano())}
}
