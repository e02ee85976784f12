package tunnel

import (
	"sync/atomic"
	"time"
)

const (
	// patience is how long nothing has to leave before those inside count as
	// dropped; a machine that is merely busy gets something out in that time.
	patience = 10 * time.Millisecond
)

// superPacket is how many packets one read of a TUN with offload gives: 64 KiB
// in segments of a 1420-byte link.
const superPacket = 48

// roomFor returns how many packets of 64 KiB may be inside one way, on a machine
// with that many processors: a super-packet for each worker, one that waits,
// and one that leaves. On two processors that is 12 MiB. More than eight
// workers share what eight get.
func roomFor(processors int) int64 {
	return superPacket * int64(min(processors, 8)+2)
}

// gate bounds how many packets are between one entry of WireGuard and the exit
// on its other side. WireGuard may drop packets between the two without a word
// (no peer, no session, not authentic), so the count is corrected wherever
// that can be known: when nothing has entered for a while, or nothing could
// because nobody left, then nothing is inside.
type gate struct {
	limit   int64 // set by newGate, then read-only
	inside  atomic.Int64
	left    atomic.Uint64 // batches in total; only its change matters
	entered atomic.Int64  // when the last batch did, in ns
	waiting atomic.Int32
	wake    chan struct{} // holds one token, never closed
}

func newGate(limit int64) *gate {
	return &gate{limit: limit, wake: make(chan struct{}, 1)}
}

// wait returns when there is room for a batch. The timer is the caller's own.
func (g *gate) wait(timer *time.Timer) {
	if g.inside.Load() < g.limit {
		return
	}
	g.waiting.Add(1)
	for left := g.left.Load(); g.inside.Load() >= g.limit; left = g.left.Load() {
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
	g.waiting.Add(-1)
	g.signal() // others may fit as well
}

// enter counts n packets in.
func (g *gate) enter(n int, now int64) {
	if n == 0 {
		return
	}
	if now-g.entered.Swap(now) > int64(patience) {
		g.inside.Store(int64(n))
		return
	}
	g.inside.Add(int64(n))
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
	if v < g.limit {
		g.signal()
	}
}

func (g *gate) signal() {
	if g.waiting.Load() == 0 {
		return
	}
	select {
	case g.wake <- struct{}{}:
	default:
	}
}
