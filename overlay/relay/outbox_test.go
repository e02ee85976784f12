package relay

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestOutboxAwait has senders wait for room: as long as it takes somebody to
// read, or their patience lasts, or the outbox is open.
func TestOutboxAwait(t *testing.T) {
	batch := [][]byte{make([]byte, 600)}
	for _, c := range []struct {
		name  string
		after time.Duration // the event, if it comes before the patience ends
		event func(o *outbox)
		want  time.Duration
	}{
		{"room", 0, func(o *outbox) { o.take(nil, 1<<20) }, 0},
		{"read", 2 * time.Millisecond, func(o *outbox) { o.take(nil, 1<<20) }, 2 * time.Millisecond},
		{"closed", 3 * time.Millisecond, (*outbox).close, 3 * time.Millisecond},
		{"broken", 3 * time.Millisecond, (*outbox).drop, 3 * time.Millisecond},
		{"stalled", time.Hour, (*outbox).drop, 5 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			o := newOutbox(1000)
			o.pushEach(batch)
			start := time.Now()
			if c.after == 0 {
				c.event(o)
			}
			var all sync.WaitGroup
			for range 3 {
				all.Go(func() {
					o.await(batch, 5*time.Millisecond)
					if d := time.Since(start); d != c.want {
						t.Errorf("%s: waited %v, want %v", c.name, d, c.want)
					}
				})
			}
			if c.after != 0 {
				time.Sleep(c.after)
				c.event(o)
			}
			all.Wait()
		})
	}
}
