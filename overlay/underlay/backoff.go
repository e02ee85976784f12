package underlay

import "time"

// backOff returns a pause, drawn from all between the least and the most. It is
// the most that doubles where something fails again: then those that fail
// together, be they thousands, do not try again together. random returns a
// duration below its argument.
func backOff(least, most time.Duration, random func(time.Duration) time.Duration) time.Duration {
	return least + random(most-least)
}
