package filter

import (
	"net/netip"
	"time"
)

// tell notes an event about a flow.
func (f *Filter) tell(fl *flow, kind EventKind, wall int64, why string) {
	e := Event{
		Kind: kind, At: time.Unix(0, wall), Began: time.Unix(0, fl.began), Proto: fl.key.protocol(), In: fl.in, Out: fl.out, Why: why,
		Remote: netip.AddrPortFrom(fl.key.remote.netip(), fl.key.remotePort()),
		Local:  netip.AddrPortFrom(fl.key.local.netip(), fl.key.localPort()),
	}
	if fl.who != nil {
		e.User, e.Node = fl.who.User, fl.who.Node
	}
	if fl.rule != nil {
		e.Rule = fl.rule.name
	}
	if kind == FlowEnded && why != WhyCut { // no more than it lived, should the wall clock have been set meanwhile
		e.Silent = min(max(e.At.Sub(f.base.Add(time.Duration(fl.seen))), 0), max(e.At.Sub(e.Began), 0))
	}
	f.events.put(e)
}

// tell notes that the packet is denied, which is who's, once for many of the same.
func (c *cursor) tell(who *source, why string) {
	if who == nil || !c.f.told.first(c.h, c.mono) {
		return
	}
	at := time.Unix(0, c.wall)
	c.f.events.put(Event{
		Kind: FlowDenied, At: at, Began: at, User: who.User, Node: who.Node, Proto: c.p.proto, In: uint64(c.p.networkBytes), Why: why,
		Remote: netip.AddrPortFrom(c.p.src.netip(), c.p.sport), Local: netip.AddrPortFrom(c.p.dst.netip(), c.p.dport),
	})
}

// Leads reports whether any rule leads from somebody in the tunnel to an address, at
// whatever time and port.
func (f *Filter) Leads(from, to netip.Addr) bool {
	x := f.index.Load()
	s := x.sources[addrOf(from)]
	return s != nil && x.leads(s, addrOf(to))
}

// Take moves waiting events into to and returns how many.
func (f *Filter) Take(to []Event) int { return f.events.take(to) }

// Wake gets a token when there may be events to take.
func (f *Filter) Wake() <-chan struct{} { return f.events.wake }

// Counter is one number of Counters.
type Counter struct {
	Name  string
	Value uint64
}

// Counters returns what was counted since the start, and how many flows and
// rules there are, always in the same order.
func (f *Filter) Counters() []Counter {
	all, waiting, bytes := 0, 0, 0
	for i := range f.shards {
		s := &f.shards[i]
		s.mu.Lock()
		all += s.n - s.cuts.n
		waiting += s.waiting.n
		bytes += s.bytes()
		s.mu.Unlock()
	}
	list := []Counter{
		{"rules", uint64(len(f.index.Load().rules))}, {"flows", uint64(all)}, {"flows_unproved", uint64(waiting)}, {"flow_table_bytes", uint64(bytes)}, {"flows_cut", f.cuts.Load()},
		{"flows_evicted", f.evicted.Load()}, {"answers_sent", f.answers.Load()}, {"answers_limited", f.limited.Load()},
		{"events_lost", f.events.lost.Load()},
	}
	for v := Pass + 1; v < verdicts; v++ {
		list = append(list, Counter{v.String(), f.counts[v].Load()})
	}
	return list
}

// Flows visits the flows that go on until visit returns false. It must not call the
// filter.
func (f *Filter) Flows(now time.Time, visit func(Flow) bool) {
	mono := f.mono(now)
	for i := range f.shards {
		if !f.shards[i].visit(mono, visit) {
			return
		}
	}
}

func (s *shard) visit(mono int64, visit func(Flow) bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for j := range s.flows {
		fl := &s.flows[j]
		if !fl.used || fl.phase == cut || fl.phase == ended && !fl.goesOn() {
			continue
		}
		if !visit(fl.view(mono)) {
			return false
		}
	}
	return true
}
