package tunnel

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"overlayd/overlay/key"
)

// TestNudger runs both sides' nudgers and records who begins when.
func TestNudger(t *testing.T) {
	low, high := key.NewPrivate().Public(), key.NewPrivate().Public()
	if bytes.Compare(low.Bytes(), high.Bytes()) > 0 {
		low, high = high, low
	}
	for name, c := range map[string]struct {
		self, peer key.Public
		yield      bool
		initiated  time.Duration // before the start; 0: never
		done       time.Duration // when a handshake completes by itself; 0: never
		want       []time.Duration
	}{
		"answered":                       {low, high, false, 0, 2 * breath, []time.Duration{breath}},
		"a packet begins one meanwhile":  {low, high, false, 0, breath / 2, nil},
		"the peer begins":                {high, low, true, 0, 10 * time.Millisecond, nil},
		"no answer, smaller key":         {low, high, false, 0, 0, []time.Duration{breath, breath + time.Second, breath + 2*time.Second}},
		"no answer, greater key":         {high, low, false, 0, 0, []time.Duration{breath, breath + 1300*time.Millisecond, breath + 2600*time.Millisecond}},
		"the peer does not, smaller key": {low, high, true, 0, 0, []time.Duration{300 * time.Millisecond, 1300 * time.Millisecond, 2300 * time.Millisecond}},
		"the peer does not, greater key": {high, low, true, 0, 0, []time.Duration{300 * time.Millisecond, 1600 * time.Millisecond, 2900 * time.Millisecond}},
		"a packet began one just before": {low, high, false, 5 * time.Millisecond, 0, []time.Duration{995 * time.Millisecond, 1995 * time.Millisecond}},
		"the same, greater key":          {high, low, false, 5 * time.Millisecond, 0, []time.Duration{1295 * time.Millisecond, 2595 * time.Millisecond}},
		"a packet began one long before": {low, high, false, time.Second, 0, []time.Duration{breath, breath + time.Second, breath + 2*time.Second}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				var begun []time.Duration
				begin := func(k key.Public) (busy time.Time) {
					if k != c.peer {
						t.Errorf("began with %s", k.Short())
					}
					at := start.Add(-c.initiated)
					if c.initiated != 0 && time.Since(at) < yieldFor {
						return at
					}
					begun = append(begun, time.Since(start))
					return time.Time{}
				}
				stats := func() (map[key.Public]Stat, error) {
					s := Stat{LastHandshake: start.Add(-time.Minute)}
					if c.done != 0 && time.Since(start) >= c.done {
						s.LastHandshake = start.Add(c.done)
					}
					return map[key.Public]Stat{c.peer: s}, nil
				}
				n := newNudger(c.self, begin, stats)
				stop, ended := make(chan struct{}), make(chan struct{})
				go func() { n.run(stop); close(ended) }()
				n.want(c.peer, c.yield)
				time.Sleep(time.Minute)
				close(stop)
				<-ended
				if len(begun) != len(c.want) {
					t.Fatalf("began at %v, want %v", begun, c.want)
				}
				for i := range begun {
					if begun[i] != c.want[i] {
						t.Errorf("began at %v, want %v", begun, c.want)
					}
				}
				if len(n.wants) != 0 {
					t.Error("a want is left")
				}
			})
		})
	}
}
