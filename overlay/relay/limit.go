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

// refund takes back what allow counted.
func (l *limiter) refund(source uint64) {
	l.cells[source&uint64(len(l.cells)-1)].Add(-int64(l.gap))
}

// memory knows sources that have shown something lately, in a table of fixed
// size. One may be forgotten for another, and none is taken for another: a cell
// holds a hash of its source besides the time.
type memory struct {
	seed  maphash.Seed
	life  time.Duration
	cells []atomic.Uint64 // the upper half: a hash; the lower: seconds since the start, plus one
}

func newMemory(cells int, life time.Duration) *memory {
	return &memory{seed: maphash.MakeSeed(), life: life, cells: make([]atomic.Uint64, cells)}
}

func (m *memory) add(source uint64, now time.Duration) {
	m.cell(source).Store(source&^(1<<32-1) | uint64(uint32(now/time.Second)+1))
}

func (m *memory) has(source uint64, now time.Duration) bool {
	v := m.cell(source).Load()
	at := time.Duration(uint32(v)) * time.Second
	return v != 0 && v>>32 == source>>32 && now+time.Second-at <= m.life
}

func (m *memory) cell(source uint64) *atomic.Uint64 { return &m.cells[source&uint64(len(m.cells)-1)] }

// host hashes what a source cannot change at will: an IPv4 address, or an IPv6
// /64, which is what one customer gets.
func (l *limiter) host(a netip.Addr) uint64 { return hashHost(l.seed, a) }

func (m *memory) host(a netip.Addr) uint64 { return hashHost(m.seed, a) }

func hashHost(seed maphash.Seed, a netip.Addr) uint64 {
	b := a.As16()
	if a.Is4() || a.Is4In6() {
		return maphash.Bytes(seed, b[:])
	}
	return maphash.Bytes(seed, b[:8])
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
