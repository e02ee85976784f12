package routing

import (
	"context"
	"time"
)

// quiet is how long events are gathered after one was passed on: a link that
// comes up makes a dozen within some ten milliseconds.
const quiet = 250 * time.Millisecond

// debounce calls changed for the first event at once, and for all that follow
// within quiet once, after it. It returns when ctx ends or events is closed.
func debounce(ctx context.Context, events <-chan struct{}, changed func()) {
	timer := time.NewTimer(quiet)
	timer.Stop()
	defer timer.Stop()
	waiting, more := false, false
	for {
		select {
		case <-ctx.Done():
			return
		case _, ok := <-events:
			if !ok {
				return
			}
			if waiting {
				more = true
				continue
			}
		case <-timer.C:
			waiting = false
			if !more {
				continue
			}
		}
		changed()
		waiting, more = true, false
		timer.Reset(quiet)
	}
}
