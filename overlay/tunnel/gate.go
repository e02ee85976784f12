package tunnel

import (
	"sync/atomic"
	"time"
)

const (
	// outLimit packets of 64 KiB are 16 MiB between the TUN and the Bind. It
	// takes four super-packets of 47 segments to keep two workers, the reader
	// and the sender busy at once.
	outLimit = 256
	// inLimit is the same for the way back.
	inLimit = 256
	// patience is how long nothing has to leave before those inside count as
	// dropped; a machine that is merely busy gets something out in that time.
	patience = 10 * time.Millisecond
	// memory is how far back an entry counts: what entered before the last two
	// such periods was sent or dropped, and is not inside.
	memory = 200 * time.Millisecond
)

// gate bounds how many packets are between one entry of WireGuard and the exit
// on its other side. WireGuard may drop packets between the two without a word
// (no peer, no session, not authentic), so the count is corrected in two ways:
// when nobody leaves for a while the gate opens, and old entries are forgotten.
type gate struct {
	limit   int64 // set by newGate, then read-only
	inside  atomic.Int64
	left    atomic.Uint64 // total; only its change matters
	waiting atomic.Bool
	wake    chan struct{} // holds one token, never closed

	epoch   atomic.Int64 // start of the current period, in ns
	entered atomic.Int64 // in the current period
}

func newGate(limit int64) *gate {
	return &gate{limit: limit, wake: make(chan struct{}, 1)}
}

// wait returns when there is room for a batch. The timer is the caller's own.
func (g *gate) wait(timer *time.Timer) {
	for g.inside.Load() >= g.limit {
		left := g.left.Load()
		g.waiting.Store(true)
		if g.inside.Load() < g.limit {
			break
		}
		timer.Reset(patience)
		select {
		case <-g.wake:
			timer.Stop()
		case <-timer.C:
			if g.left.Load() == left {
				g.inside.Store(0)
			}
		}
	}
	if g.waiting.Load() { // several readers may wait: pass it on
		g.signal()
	}
}

// enter counts n packets in.
func (g *gate) enter(n int, now int64) {
	if n == 0 {
		return
	}
	g.inside.Add(int64(n))
	start := g.epoch.Load()
	if now-start > int64(memory) && g.epoch.CompareAndSwap(start, now) {
		recent := g.entered.Swap(0)
		if over := g.inside.Load() - recent - int64(n); over > 0 {
			g.inside.Add(-over)
		}
	}
	g.entered.Add(int64(n))
}

// leave counts n packets out.
func (g *gate) leave(n int) {
	if n == 0 {
		return
	}
	g.left.Add(1)
	v := g.inside.Add(-int64(n))
	if v < 0 {
		g.inside.CompareAndSwap(v, 0) // they had been written off
	}
	if v < g.limit && g.waiting.Load() {
		g.signal()
	}
}

func (g *gate) signal() {
	g.waiting.Store(false)
	select {
	case g.wake <- struct{}{}:
	default:
	}
}
