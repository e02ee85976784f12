package overlay

import (
	"context"
	"time"

	"overlayd/overlay/coord"
)

// expireLook is how late a key expires at most when the clock was set or the
// machine slept meanwhile, as a timer knows nothing of either.
const expireLook = time.Second

// watchExpiry takes off the map whose key expires, at its moment by this
// machine's own clock, whether the coordinator is there to say so or not. It works
// until ctx ends.
func (n *Node) watchExpiry(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		v, moved := n.lookMoved()
		var due <-chan time.Time // nil: nothing is
		if v.whole != nil && (!v.until.IsZero() || v.m != v.whole) {
			wait := expireLook
			if !v.until.IsZero() {
				wait = min(wait, time.Until(v.until))
			}
			timer.Reset(wait)
			due = timer.C
		}
		select {
		case <-ctx.Done():
			return nil
		case <-moved:
		case <-due:
			n.expire()
		}
	}
}

// expire puts the map into force as it is by now, if that is another one. A clock
// that is set back brings back whom it had taken off.
func (n *Node) expire() {
	n.taking.Lock()
	defer n.taking.Unlock()
	now := time.Now()
	if v := n.look(); v.whole != nil && (now.Before(v.from) || !v.until.IsZero() && !now.Before(v.until)) {
		n.hold(v.whole, now, func(*view) {})
	}
}

// hold puts a map into force as it is at a time: first its rules, then the rest.
// taking is held, or nobody else is there yet.
func (n *Node) hold(whole *coord.Map, now time.Time, also func(*view)) {
	now = now.Round(0) // the wall clock alone, which may be set
	m, before := whole.Unexpired(now), n.look().m
	if m != whole {
		m = recall(m, whole)
		switch {
		case before == nil:
		case m.Self.State == coord.NodeExpired && before.Self.State != coord.NodeExpired:
			n.log.Warn("the key of this machine has expired", "at", whole.Self.Expires)
		case len(m.Peers) < len(before.Peers):
			n.log.Info("keys have expired", "peers", len(whole.Peers)-len(m.Peers))
		}
	}
	n.heed(m)
	n.update(func(v *view) {
		v.m, v.whole, v.from, v.until = m, whole, now, whole.NextExpiry(now)
		also(v)
	})
	wake(n.changed)
}
