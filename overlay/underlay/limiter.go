package underlay

import (
	"hash/maphash"
	"net/netip"
	"sync/atomic"
	"time"
)

const (
	// probeGap and probeBurst are how many probes a source may send: a search of
	// two nodes behind one NAT, with guesses, is some 40 in two seconds.
	probeGap   = 50 * time.Millisecond
	probeBurst = 100
	// probeCells bounds what is remembered of sources: 8 KiB.
	probeCells = 1 << 10
)

// limiter limits the probes that are opened per source, so that nobody can keep
// the processor busy. Sources that share a cell share its allowance; which do
// is secret.
type limiter struct {
	seed  maphash.Seed
	start time.Time
	cells [probeCells]atomic.Int64 // when the source's debt is paid, since start
}

func newLimiter() *limiter { return &limiter{seed: maphash.MakeSeed(), start: time.Now()} }

// allow reports whether the source may have another probe opened, and counts it
// if so (the generic cell rate algorithm).
func (l *limiter) allow(source netip.Addr, now time.Time) bool {
	ip := source.As16()
	cell := &l.cells[maphash.Bytes(l.seed, ip[:])%probeCells]
	at := int64(now.Sub(l.start))
	for {
		old := cell.Load()
		paid := max(old, at)
		if paid-at > int64(probeBurst*probeGap) {
			return false
		}
		if cell.CompareAndSwap(old, paid+int64(probeGap)) {
			return true
		}
	}
}
