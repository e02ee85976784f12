package coord

import "time"

const (
	// beatEvery is how often each side says that it is there.
	beatEvery = 5 * time.Second
	// checkTime is how long a connection in doubt may take to answer.
	checkTime = time.Second
	// silence is two lost beats and some delay: then the other side is gone.
	silence = 15 * time.Second
)

// pulse knows when each side of a stream was last active.
type pulse struct {
	heard time.Time // the other side
	sent  time.Time // this side
}

func newPulse(now time.Time) pulse { return pulse{heard: now, sent: now} }

// dead reports whether the other side has been silent for too long.
func (p pulse) dead(now time.Time) bool { return now.Sub(p.heard) >= silence }

// due reports whether this side has to say something.
func (p pulse) due(now time.Time) bool { return now.Sub(p.sent) >= beatEvery }

// next returns when dead or due may first become true.
func (p pulse) next() time.Time {
	dead, due := p.heard.Add(silence), p.sent.Add(beatEvery)
	if dead.Before(due) {
		return dead
	}
	return due
}

const (
	// settle lets the changes of one act be sent together.
	settle = 5 * time.Millisecond
	// pace is the least time between two deltas to one watcher.
	pace = 50 * time.Millisecond
)

// sendAt returns when a change that was first seen at one time should be sent
// to a watcher that was last sent changes at another.
func sendAt(first, last time.Time) time.Time {
	at := first.Add(settle)
	if paced := last.Add(pace); paced.After(at) {
		return paced
	}
	return at
}

const (
	retryFirst = 50 * time.Millisecond
	retrySpan  = 150 * time.Millisecond
	retryMost  = 10 * time.Second
	// retryEach is the share of the least span that each node of the network
	// has: a coordinator takes a thousand connections a second easily.
	retryEach = time.Millisecond
	// steady is how long a connection has to hold to count as a success.
	steady = 10 * time.Second
)

// retryAfter returns how long to wait after a number of failures in a row: with
// full jitter, and the longer the more nodes lost their coordinator together, so
// that they do not come back together. rnd is between 0 and 1.
func retryAfter(failures, nodes int, rnd float64) time.Duration {
	span := retryMost - retryFirst
	if doublings := max(failures, 1) - 1; doublings < 7 { // 150 ms << 7 is above the most
		span = min(span, retrySpan<<doublings)
	}
	span = max(span, time.Duration(nodes)*retryEach)
	return retryFirst + time.Duration(rnd*float64(span))
}
