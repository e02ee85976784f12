package netstack

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// How long a flow may be silent. They are those of package filter, which forgets
// a flow then: nothing of it would pass any more.
const (
	idleTCP     = 2*time.Hour + 4*time.Minute
	idleHalf    = 4 * time.Minute // one side has said that it is done
	idleUDP     = 3 * time.Minute
	idleUDPOnce = 30 * time.Second // one side was heard only
	idleEcho    = 30 * time.Second
	// sweepEvery is how late an idle flow ends at most.
	sweepEvery = 5 * time.Second
	// shrinkAfter is how long a flow is silent before it gives room back.
	shrinkAfter = 10 * time.Second
	// fullFor is how long a refusal for want of room is worth a word in status.
	fullFor = time.Minute
)

// flowKey names a flow from the overlay. Echoes have their identifier as the
// source's port.
type flowKey struct {
	proto    uint8
	src, dst netip.AddrPort
}

// flow is what goes on between the overlay and the host's side.
type flow struct {
	key     flowKey
	abort   func()                         // ends it now, telling both sides; may be called at any time and again
	account *account                       // what it may hold; nil: it is no connection
	take    func([]byte)                   // passes an echo request on; nil: it is none
	local   atomic.Pointer[netip.AddrPort] // the host's end; nil until it is known
	heard   atomic.Int64                   // when something last passed, Unix ns
	idle    atomic.Int64                   // how long it may be silent, in ns
}

func (f *flow) touch(now time.Time) { f.heard.Store(now.UnixNano()) }

func (f *flow) over(now time.Time) bool {
	return now.UnixNano()-f.heard.Load() > f.idle.Load()
}

// class is a kind of flow with a bound of its own.
type class struct {
	limit  int
	n      int
	source map[netip.Addr]int
}

// table holds the flows of a stack, and bounds them.
type table struct {
	full atomic.Int64 // when a flow last found no room, Unix ns

	mu     sync.Mutex // guards the rest
	flows  map[flowKey]*flow
	kinds  map[uint8]*class
	ended  map[flowKey]netip.AddrPort // what flows that are over were at the host's side
	recent [mostEnded]flowKey         // in ended, the oldest at next
	next   int
}

// mostEnded is how many flows that are over are remembered, for who asks a moment
// later whose they were.
const mostEnded = 4096

const (
	protoICMP = 1
	protoTCP  = 6
	protoUDP  = 17

	// mostEchoes is how many echo requests' identifiers are remembered at once.
	mostEchoes = 1024
)

func newTable(o Options) *table {
	t := &table{flows: map[flowKey]*flow{}, kinds: map[uint8]*class{}, ended: map[flowKey]netip.AddrPort{}}
	for proto, limit := range map[uint8]int{protoTCP: o.TCPFlows, protoUDP: o.UDPFlows, protoICMP: mostEchoes} {
		t.kinds[proto] = &class{limit: limit, source: map[netip.Addr]int{}}
	}
	return t
}

// add makes room for a flow; false: there is none, or there is such a flow.
func (t *table) add(f *flow, idle time.Duration, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	c, src := t.kinds[f.key.proto], f.key.src.Addr()
	if t.flows[f.key] != nil {
		return false
	}
	if c.n >= c.limit || c.source[src] >= (c.limit+1)/2 {
		t.full.Store(now.UnixNano())
		return false
	}
	f.touch(now)
	f.idle.Store(int64(idle))
	t.flows[f.key] = f
	c.n++
	c.source[src]++
	return true
}

// remove forgets a flow that has ended.
func (t *table) remove(f *flow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.flows[f.key] != f {
		return
	}
	delete(t.flows, f.key)
	if at := f.local.Load(); at != nil {
		delete(t.ended, t.recent[t.next])
		t.ended[f.key] = *at
		t.recent[t.next] = f.key
		t.next = (t.next + 1) % mostEnded
	}
	c, src := t.kinds[f.key.proto], f.key.src.Addr()
	c.n--
	if c.source[src]--; c.source[src] == 0 {
		delete(c.source, src)
	}
}

func (t *table) get(k flowKey) *flow {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.flows[k]
}

// end aborts the flows that match.
func (t *table) end(match func(flowKey) bool) {
	t.abort(func(f *flow) bool { return match(f.key) })
}

func (t *table) abort(match func(*flow) bool) {
	t.mu.Lock()
	var list []*flow
	for _, f := range t.flows {
		if match(f) {
			list = append(list, f)
		}
	}
	t.mu.Unlock()
	for _, f := range list {
		f.abort()
	}
}

// number returns how many flows of a protocol there are.
func (t *table) number(proto uint8) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.kinds[proto].n
}

// sweep ends what has been silent for too long.
func (s *Stack) sweep() {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case now := <-tick.C:
			s.flows.abort(func(f *flow) bool { return f.over(now) })
			s.flows.settle(now)
		}
	}
}

// settle takes back what silent flows had room for.
func (t *table) settle(now time.Time) {
	t.mu.Lock()
	var list []*flow
	for _, f := range t.flows {
		if f.account != nil && now.UnixNano()-f.heard.Load() > int64(shrinkAfter) {
			list = append(list, f)
		}
	}
	t.mu.Unlock()
	for _, f := range list {
		f.account.shrink()
	}
}

// Outside returns the address that a flow from the overlay has on the host's
// side, or had a moment ago; the zero value: there is none, or it is not known
// yet.
func (s *Stack) Outside(proto uint8, src, dst netip.AddrPort) netip.AddrPort {
	return s.flows.outside(flowKey{proto, src, dst})
}

func (t *table) outside(k flowKey) netip.AddrPort {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.flows[k]; f != nil {
		if at := f.local.Load(); at != nil {
			return *at
		}
	}
	return t.ended[k]
}

// counters are what a stack counts besides its flows.
type counters struct {
	unsound     atomic.Uint64
	dials       atomic.Uint64
	refused     atomic.Uint64
	unreachable atomic.Uint64
	unanswered  atomic.Uint64
	forbidden   atomic.Uint64
	full        atomic.Uint64
}

// Counter is a number with a name.
type Counter struct {
	Name  string
	Value uint64
}

// Counters returns what is there and what happened, by name.
func (s *Stack) Counters() []Counter {
	return []Counter{
		{"flows_tcp", uint64(s.flows.number(protoTCP))},
		{"flows_udp", uint64(s.flows.number(protoUDP))},
		{"flows_echo", uint64(s.flows.number(protoICMP))},
		{"dials", s.count.dials.Load()},
		{"dials_refused", s.count.refused.Load()},
		{"dials_unreachable", s.count.unreachable.Load()},
		{"dials_unanswered", s.count.unanswered.Load()},
		{"forbidden", s.count.forbidden.Load()},
		{"no_room", s.count.full.Load()},
		{"memory_bytes", uint64(s.budget.now())},
		{"bad_checksum", s.count.unsound.Load()},
		{"queue_lost", s.link.lost.Load()},
	}
}

// Full reports whether flows were lately refused for want of room.
func (s *Stack) Full(now time.Time) bool {
	at := s.flows.full.Load()
	return at != 0 && now.UnixNano()-at < int64(fullFor)
}
