package overlay

import (
	"time"

	"golang.org/x/sys/unix"
)

func readClocks() clocks {
	read := func(id int32) time.Duration {
		var ts unix.Timespec
		if unix.ClockGettime(id, &ts) != nil { // every kernel that Go runs on has both
			return 0
		}
		return time.Duration(ts.Nano())
	}
	return clocks{mono: read(unix.CLOCK_MONOTONIC), boot: read(unix.CLOCK_BOOTTIME)}
}
