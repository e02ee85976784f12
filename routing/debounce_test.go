package routing

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestDebounce(t *testing.T) {
	for _, tt := range []struct {
		name   string
		events []time.Duration // since the start
		want   []time.Duration // of the calls
	}{
		{"one", []time.Duration{0}, []time.Duration{0}},
		{"a burst", []time.Duration{0, 10, 20, 200}, []time.Duration{0, 250}},
		{"two apart", []time.Duration{0, 300}, []time.Duration{0, 300}},
		{"a stream", []time.Duration{0, 100, 200, 300, 400, 500, 600}, []time.Duration{0, 250, 500, 750}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				events := make(chan struct{}, 1)
				start := time.Now()
				var got []time.Duration
				go debounce(ctx, events, func() { got = append(got, time.Since(start)/time.Millisecond) })
				for _, at := range tt.events {
					time.Sleep(time.Until(start.Add(at * time.Millisecond)))
					events <- struct{}{}
					synctest.Wait()
				}
				time.Sleep(time.Second)
				cancel()
				synctest.Wait()
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}
