package underlay

import (
	"slices"
	"testing"
	"time"
)

// Who pings without ever answering gets a handful and then a pause, however the
// moments lie: the pause is counted from the last of the handful.
func TestFavourPauses(t *testing.T) {
	late := []time.Duration{0} // one, and the others when a pause from the first is about to end
	for i := range 40 {
		late = append(late, quietFirst-4*time.Second+time.Duration(i)*echoGap)
	}
	steady := func(every time.Duration) []time.Duration {
		return slices.Collect(func(yield func(time.Duration) bool) {
			for at := time.Duration(0); at < time.Hour && yield(at); at += every {
			}
		})
	}
	tests := []struct {
		name  string
		asked []time.Duration
		give  func(*favour, time.Time) bool
		most  int
		again bool // it is asked long enough for more than one handful
	}{
		{"echoes, late", late, (*favour).echo, mostEchoes, false},
		{"pongs, late", late, (*favour).pong, mostPongs, false},
		{"echoes, many", steady(100 * time.Millisecond), (*favour).echo, mostEchoes, true},
		{"echoes, some", steady(3700 * time.Millisecond), (*favour).echo, mostEchoes, true},
		{"pongs, many", steady(100 * time.Millisecond), (*favour).pong, mostPongs, true},
		{"pongs, some", steady(2300 * time.Millisecond), (*favour).pong, mostPongs, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var v favour
			var given []time.Duration // within quietFirst
			total := 0
			for _, at := range test.asked {
				if !test.give(&v, simStart.Add(at)) {
					continue
				}
				total++
				given = slices.DeleteFunc(append(given, at), func(t time.Duration) bool { return at-t >= quietFirst })
				if len(given) > test.most {
					t.Fatalf("%v after the start: %d within %v, most %d", at, len(given), quietFirst, test.most)
				}
			}
			if test.again && total < 3*test.most {
				t.Errorf("%d in an hour: the pause does not end", total)
			}
		})
	}
}
