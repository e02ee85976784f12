package tunnel

import (
	"sync"
	"sync/atomic"
	"time"

	"overlayd/overlay/filter"
)

// SetFilter says what may pass the TUN; nil: everything. Its answers to refused
// packets go back where those came from.
func (d *Device) SetFilter(f *filter.Filter) { d.tun.guard.filter.Store(f) }

// Tell sends both ends of cut flows what ends them. A peer that the next
// SetPeers takes away is sent its part before.
func (d *Device) Tell(c filter.Cut) {
	d.tun.guard.back.putAll(c.ToTunnel)
	d.tun.guard.wake()
	d.tun.writeAll(c.ToLocal)
}

// AnswersLost counts what should have gone back into the tunnel and did not
// fit.
func (d *Device) AnswersLost() uint64 { return d.tun.guard.back.lost.Load() }

// guard holds what passes the TUN to a filter.
type guard struct {
	filter atomic.Pointer[filter.Filter] // nil: everything passes
	back   returns
	wake   func() // makes a Read that waits return
	sieves sync.Pool
}

func newGuard(wake func()) *guard {
	g := &guard{wake: wake}
	g.back.drained = make(chan struct{}, 1)
	g.sieves.New = func() any { return &sieve{} }
	return g
}

// sieve is what it takes to look at one batch.
type sieve struct {
	packets [][]byte
	kept    [][]byte
	rest    [][]byte // what does not go through
	through [][]byte // what does
	batch   filter.Batch
	answer  []byte // room for one, behind tellOffset bytes
}

func (s *sieve) reset() {
	clear(s.packets) // or it would keep WireGuard's buffers alive
	clear(s.kept)
	clear(s.rest)
	clear(s.through)
	s.packets, s.kept, s.rest, s.through = s.packets[:0], s.kept[:0], s.rest[:0], s.through[:0]
}

// in returns those of bufs that pass to this side; they are the sieve's until
// its reset.
func (g *guard) in(now time.Time, f *filter.Filter, s *sieve, bufs [][]byte, offset int) [][]byte {
	for _, b := range bufs {
		s.packets = append(s.packets, b[offset:])
	}
	f.In(now, s.packets, &s.batch)
	for i, v := range s.batch.Verdicts {
		if v == filter.Pass {
			s.kept = append(s.kept, bufs[i])
		}
	}
	if len(s.batch.Answers) > 0 {
		for _, a := range s.batch.Answers {
			g.back.put(a)
		}
		g.wake()
	}
	return s.kept
}

// out makes those of the n packets empty that do not pass into the tunnel; tell
// takes the answers, each behind tellOffset bytes.
func (g *guard) out(now time.Time, f *filter.Filter, s *sieve, bufs [][]byte, sizes []int, n, offset int, tell func([]byte)) {
	for i := range n {
		s.packets = append(s.packets, bufs[i][offset:offset+sizes[i]])
	}
	f.Out(now, s.packets, &s.batch)
	for i, v := range s.batch.Verdicts {
		if v != filter.Pass {
			sizes[i] = 0
		}
	}
	for _, a := range s.batch.Answers {
		s.answer = append(append(s.answer[:0], room[:]...), a...)
		tell(s.answer)
	}
	s.reset()
}

const (
	// returnSlots is how many answers wait for the reader: those of four
	// sources that the filter allows each its burst.
	returnSlots = 256
	// returnResets is how many resets of cut flows wait besides: as many as a
	// filter has flows.
	returnResets = 1 << 17
)

// returns are packets for the tunnel that the kernel did not send. The TUN's
// reader gives them to WireGuard before anything else.
type returns struct {
	waiting atomic.Int64
	lost    atomic.Uint64
	drained chan struct{} // holds one token: nothing waits any more

	mu     sync.Mutex // guards what follows
	slots  [returnSlots][]byte
	first  int
	n      int
	resets [][]byte
}

// put copies an answer.
func (r *returns) put(p []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.n == returnSlots {
		r.lost.Add(1)
		return
	}
	at := &r.slots[(r.first+r.n)%returnSlots]
	*at = append((*at)[:0], p...)
	r.n++
	r.waiting.Add(1)
}

// putAll takes resets over.
func (r *returns) putAll(list [][]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fits := min(len(list), returnResets-len(r.resets))
	r.lost.Add(uint64(len(list) - fits))
	r.resets = append(r.resets, list[:fits]...)
	r.waiting.Add(int64(fits))
}

// take moves what waits into bufs, as a TUN's Read does.
func (r *returns) take(bufs [][]byte, sizes []int, offset int) (n int) {
	if r.waiting.Load() == 0 {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for ; n < len(bufs) && r.n > 0; n++ {
		sizes[n] = copy(bufs[n][offset:], r.slots[r.first])
		r.first, r.n = (r.first+1)%returnSlots, r.n-1
	}
	for ; n < len(bufs) && len(r.resets) > 0; n++ {
		sizes[n] = copy(bufs[n][offset:], r.resets[0])
		r.resets[0], r.resets = nil, r.resets[1:]
	}
	if len(r.resets) == 0 {
		r.resets = nil
	}
	if r.waiting.Add(-int64(n)) == 0 {
		select {
		case r.drained <- struct{}{}:
		default:
		}
	}
	return n
}

const (
	// farewell bounds how long SetPeers waits until resets have gone to peers
	// that it takes away.
	farewell = 100 * time.Millisecond
	// encryption is how long what the reader gave to WireGuard may take to leave.
	encryption = 20 * time.Millisecond
)

// flush returns when what waits has left, or could have.
func (r *returns) flush() {
	if r.waiting.Load() == 0 {
		return
	}
	timer := time.NewTimer(farewell)
	defer timer.Stop()
	for r.waiting.Load() > 0 {
		select {
		case <-r.drained:
		case <-timer.C:
			return
		}
	}
	timer.Reset(encryption)
	<-timer.C
}
