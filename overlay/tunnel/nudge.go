package tunnel

import (
	"bytes"
	"sync"
	"time"

	"overlayd/overlay/key"
)

const (
	// yieldFor is how long one side leaves the move to the other: some round
	// trips of a bad line, and still well below what a user notices.
	yieldFor = 300 * time.Millisecond
	// breath is how long a handshake that a packet begins by itself in this very
	// moment, as right after a start, is given to leave: making an initiation takes
	// less than a millisecond of a processor that others want too.
	breath = 20 * time.Millisecond
	// newsDelay is how much earlier than the news of a peer's start its handshake
	// may have come.
	newsDelay = time.Second
	// checkAfter is when a handshake that was begun must have led to something.
	checkAfter = time.Second
	// nudgeTries bounds what one call of Handshake can cause. WireGuard's own
	// retries go on after that.
	nudgeTries = 3
)

// nudger begins handshakes that were asked for, so that the two sides do not
// begin at once, and again when nothing came of it.
type nudger struct {
	begin func(key.Public) (busy time.Time) // these are set by newNudger, then read-only
	stats func() (map[key.Public]Stat, error)
	poke  chan struct{}

	mu    sync.Mutex // guards the rest
	self  key.Public
	wants map[key.Public]nudge
}

// nudge is one session that is wanted.
type nudge struct {
	since time.Time // a handshake after this fulfils it
	next  time.Time // when to look again
	tries int       // initiations so far
}

// newNudger makes a nudger. begin begins a handshake, unless there is one under
// way: then it returns since when.
func newNudger(self key.Public, begin func(key.Public) (busy time.Time), stats func() (map[key.Public]Stat, error)) *nudger {
	return &nudger{self: self, begin: begin, stats: stats, poke: make(chan struct{}, 1), wants: map[key.Public]nudge{}}
}

// want asks for a session with k: the move is ours, or the peer's first.
func (n *nudger) want(k key.Public, yield bool) {
	now := time.Now()
	next, since := now.Add(breath), now
	if yield {
		next, since = now.Add(yieldFor), now.Add(-newsDelay)
	}
	n.mu.Lock()
	if w, waits := n.wants[k]; waits && w.tries == 0 && w.next.Before(next) {
		next = w.next // asked twice, it is no later
	}
	n.wants[k] = nudge{since: since, next: next}
	n.mu.Unlock()
	select {
	case n.poke <- struct{}{}:
	default:
	}
}

// rekey says that this side's key is another.
func (n *nudger) rekey(self key.Public) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.self = self
}

// run begins what is due until stop is closed.
func (n *nudger) run(stop <-chan struct{}) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		due, next := n.step(time.Now())
		for _, k := range due {
			// A packet for the peer may have begun one just now. A second would
			// spoil it: the answer to the first comes to nothing then, and the
			// peer takes no two within 20 ms.
			if busy := n.begin(k); !busy.IsZero() {
				next = min(next, n.await(k, busy))
			}
		}
		timer.Reset(next)
		select {
		case <-stop:
			return
		case <-n.poke:
		case <-timer.C:
		}
	}
}

// step drops the wants that are fulfilled or given up, returns the peers to
// begin with now, and when to come again.
func (n *nudger) step(now time.Time) (due []key.Public, next time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	next = time.Hour
	if len(n.wants) == 0 {
		return nil, next
	}
	stats, _ := n.stats() // on an error nothing counts as done, and tries are bounded
	for k, w := range n.wants {
		if stats[k].LastHandshake.After(w.since) {
			delete(n.wants, k)
			continue
		}
		if !now.Before(w.next) {
			if w.tries == nudgeTries {
				delete(n.wants, k)
				continue
			}
			w.tries++
			w.next = now.Add(checkAfter + n.patience(k))
			n.wants[k] = w
			due = append(due, k)
		}
		next = min(next, w.next.Sub(now))
	}
	return due, next
}

// await leaves the move to the handshake that is under way since busy, and returns
// how long.
func (n *nudger) await(k key.Public, busy time.Time) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	at := busy.Add(checkAfter + n.patience(k))
	if w, waits := n.wants[k]; waits && w.tries > 0 {
		w.next = at
		n.wants[k] = w
	}
	return time.Until(at)
}

// patience sets the next tries of two sides apart that both began at once.
func (n *nudger) patience(k key.Public) time.Duration {
	if bytes.Compare(n.self.Bytes(), k.Bytes()) > 0 {
		return yieldFor
	}
	return 0
}
