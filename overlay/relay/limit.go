package relay

import (
	"hash/maphash"
	"net/netip"
	"sync/atomic"
	"time"
)

// limiter limits how often something happens per source, in a table of fixed
// size: sources that share a cell share its allowance. The cells are picked by
// a secret hash, so that nobody can choose whose cell to fill.
type limiter struct {
	seed  maphash.Seed
	gap   time.Duration  // between two events in the long run
	burst time.Duration  // how far ahead of that a source may be: gap times the burst
	cells []atomic.Int64 // a power of two of them
}

const (
	// bySource is the size of a table with a cell per source: 128 KiB.
	bySource = 1 << 14
	// forAll is one cell for all sources together.
	forAll = 1
)

func newLimiter(cells, perSecond, burst int) *limiter {
	gap := time.Second / time.Duration(perSecond)
	return &limiter{
		seed:  maphash.MakeSeed(),
		gap:   gap,
		burst: gap * time.Duration(burst),
		cells: make([]atomic.Int64, cells),
	}
}

// allow reports whether the source may go on, and counts it if so. now is the
// time since the server's start. A cell holds the time at which its source's
// debt is paid (the generic cell rate algorithm).
func (l *limiter) allow(source uint64, now time.Duration) bool {
	cell := &l.cells[source&uint64(len(l.cells)-1)]
	for {
		old := cell.Load()
		paid := max(time.Duration(old), now)
		if paid-now > l.burst {
			return false
		}
		if cell.CompareAndSwap(old, int64(paid+l.gap)) {
			return true
		}
	}
}

// host hashes what a source cannot change at will: an IPv4 address, or an IPv6
// /64, which is what one customer gets.
func (l *limiter) host(a netip.Addr) uint64 {
	b := a.As16()
	if a.Is4() || a.Is4In6() {
		return maphash.Bytes(l.seed, b[:])
	}
	return maphash.Bytes(l.seed, b[:8])
}

// port hashes a source with its port.
func (l *limiter) port(a netip.AddrPort) uint64 {
	k := placeOf(a)
	return maphash.Bytes(l.seed, k[:])
}

// place is a network address in a form that hashes without allocating. It has
// no zone: two link-local senders with the same address on two links are
// told apart by comparing whole addresses.
type place [19]byte

// The last byte of a place says what kind it is: an address, or a call.
const (
	placeKind   = 18
	placeIsCall = 1
)

func placeOf(a netip.AddrPort) (p place) {
	ip := a.Addr().As16()
	copy(p[:], ip[:])
	p[16], p[17] = byte(a.Port()), byte(a.Port()>>8)
	return p
}
