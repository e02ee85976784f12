package filter

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// EventKind says what an Event tells.
type EventKind uint8

// The kinds of events.
const (
	FlowBegan EventKind = iota
	FlowEnded
	FlowDenied
)

func (k EventKind) String() string { return [...]string{"began", "ended", "denied"}[k] }

// Why a flow ended, or was denied.
const (
	WhyClosed   = "closed"         // both sides said so
	WhyIdle     = "idle"           // nothing came for long
	WhyCut      = "cut"            // no rule allows it any more
	WhyEvicted  = "evicted"        // for another one, as the table was full
	WhyReplaced = "replaced"       // the same addresses and ports began anew
	WhyPolicy   = "policy"         // no rule allows it
	WhyFull     = "too many flows" // of this source, or in all
)

// Event tells that a flow from the tunnel began, ended or was denied. Flows
// that this side begins are the other side's to tell.
type Event struct {
	Kind          EventKind
	At, Began     time.Time     // Began is At for denied ones
	Silent        time.Duration // of one that ended by itself: how long before At its last packet came
	User, Node    string        // behind the remote address
	Remote, Local netip.AddrPort
	Proto         uint8
	In, Out       uint64 // bytes of IP packets from and to the tunnel
	Rule          string // that allowed it
	Why           string
}

// ring keeps events until they are taken; what does not fit is lost and
// counted.
type ring struct {
	wake chan struct{} // holds one token, never closed
	lost atomic.Uint64

	mu    sync.Mutex // guards what follows
	items []Event
	first int
	n     int
}

func newRing(size int) *ring {
	return &ring{wake: make(chan struct{}, 1), items: make([]Event, size)}
}

func (r *ring) put(e Event) {
	r.mu.Lock()
	if r.n == len(r.items) {
		r.mu.Unlock()
		r.lost.Add(1)
		return
	}
	r.items[(r.first+r.n)%len(r.items)] = e
	r.n++
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *ring) take(to []Event) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := min(len(to), r.n)
	for i := range n {
		at := (r.first + i) % len(r.items)
		to[i] = r.items[at]
		r.items[at] = Event{}
	}
	r.first, r.n = (r.first+n)%len(r.items), r.n-n
	return n
}

const (
	// repeatAfter is how long the same denied flow is told only once, in s: a
	// SYN is sent again after 1, 3, 7 and 15 s.
	repeatAfter = 20
	// repeatSlots is how many denied flows are remembered for that.
	repeatSlots = 1024
)

// repeats remembers denied flows: in each place the hash's upper half and the
// second.
type repeats [repeatSlots]atomic.Uint64

// first reports whether a denied flow was not told lately.
func (r *repeats) first(h uint64, mono int64) bool {
	at, second := &r[h%repeatSlots], uint64(mono/1e9)&0xffffffff
	v := at.Load()
	if v != 0 && v>>32 == h>>32 && second-(v&0xffffffff) < repeatAfter {
		return false
	}
	at.Store(h>>32<<32 | second)
	return true
}

// bucket allows some answers at once and then one each while. It needs no lock.
type bucket struct{ next atomic.Int64 }

const (
	// answerEvery and answerBurst bound the answers to one source: a browser
	// opens some dozens of connections at once, and a person reads one.
	answerEvery = int64(10 * time.Millisecond)
	answerBurst = 64
)

func (b *bucket) allow(mono int64) bool {
	for {
		v := b.next.Load()
		from := max(v, mono-answerBurst*answerEvery)
		if from > mono {
			return false
		}
		if b.next.CompareAndSwap(v, from+answerEvery) {
			return true
		}
	}
}
