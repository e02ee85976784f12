package overlay

import (
	"context"
	"time"
)

// every acts once in each period until ctx ends. It returns nil, for an errgroup.
func every(ctx context.Context, period time.Duration, act func(now time.Time)) error {
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			act(now)
		}
	}
}
