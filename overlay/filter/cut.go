package filter

import "time"

// Cut is what was cut, and the resets that tell both ends of it.
type Cut struct {
	Flows    int
	ToTunnel [][]byte // packets to send into the tunnel
	ToLocal  [][]byte // and to this side
}

// Swap puts rules into force. When it returns, no flow goes on that they do not
// allow; flows that another rule allows go on under that one. A rule that names
// a set which is not there is an error, and the old rules stay.
func (f *Filter) Swap(now time.Time, r Rules) (Cut, error) {
	f.swap.Lock()
	defer f.swap.Unlock()
	wall := now.UnixNano()
	x, err := newIndex(r, f.index.Load(), wall)
	if err != nil {
		return Cut{}, err
	}
	// Whoever makes a flow reads the index with its shard locked: once the
	// sweep has had that lock, no flow is left from the old one.
	f.index.Store(x)
	return f.review(x, wall, f.mono(now)), nil
}

// Cut ends the flows that match says, whatever the rules. It must not call the
// filter.
func (f *Filter) Cut(now time.Time, match func(Flow) bool) Cut {
	mono := f.mono(now)
	return f.cutWhere(now.UnixNano(), mono, func(_ *shard, fl *flow, _ uint32) bool { return fl.phase != cut && match(fl.view(mono)) })
}

// sweepParts is in how many Ticks the whole table is looked through for flows
// that are over. With one Tick a second, a flow ends at most so many seconds
// late.
const sweepParts = 16

// Tick ends what time ends; it is to be called at least once a second. Flows
// whose rule's time is over are cut, and come back as in Swap.
func (f *Filter) Tick(now time.Time) Cut {
	f.swap.Lock()
	defer f.swap.Unlock()
	wall, mono, x := now.UnixNano(), f.mono(now), f.index.Load()
	changed := false
	for _, r := range x.scheduled {
		changed = r.changed(wall) || changed
	}
	for i := range f.shards {
		f.expire(&f.shards[i], wall, mono)
	}
	f.sweep = (f.sweep + 1) % sweepParts
	if !changed {
		return Cut{}
	}
	return f.review(x, wall, mono)
}

// expire ends the flows of one part of a shard that have been silent for too
// long.
func (f *Filter) expire(s *shard, wall, mono int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	from, to := len(s.flows)*f.sweep/sweepParts, len(s.flows)*(f.sweep+1)/sweepParts
	for slot := from; slot < to; slot++ {
		fl := &s.flows[slot]
		if !fl.used || mono-fl.seen < int64(fl.timeout()) {
			continue
		}
		why := WhyIdle
		if fl.phase == ended {
			why = WhyClosed
		}
		f.end(s, uint32(slot), wall, why)
	}
}

// review holds every flow against the rules.
func (f *Filter) review(x *index, wall, mono int64) Cut {
	return f.cutWhere(wall, mono, func(s *shard, fl *flow, slot uint32) bool {
		who := x.sources[fl.key.remote]
		var r *rule
		if who != nil && (!fl.outward || fl.phase == cut) {
			r = x.find(who, fl.key.local, fl.key.protocol(), fl.key.localPort(), wall)
		}
		if fl.phase == cut {
			if r != nil || fl.outward && who != nil {
				s.remove(slot) // it may begin again
			}
			return false
		}
		if fl.who != nil && (who == nil || who.Node != fl.who.Node || who.User != fl.who.User) {
			return true // whoever this was, it is not anymore
		}
		if !fl.outward && r == nil {
			return true
		}
		if who != nil && fl.who == nil {
			who.load.flows.Add(1)
		}
		fl.who, fl.rule = who, r
		return false
	})
}

// toldWithin is how long before us the other end may have been told of a cut: it
// reaches everybody within a second.
const toldWithin = time.Second

// closed reports whether a flow was over before it was cut. One that has just been
// reset was not: who is told of the cut before us resets its end, and that comes
// here first.
func (f *flow) closed(mono int64) bool {
	return f.phase == ended && !f.goesOn() && (f.finished == 3 || mono-f.seen > int64(toldWithin))
}

func (f *Filter) cutWhere(wall, mono int64, match func(*shard, *flow, uint32) bool) Cut {
	var c Cut
	for i := range f.shards {
		s := &f.shards[i]
		s.mu.Lock()
		for slot := range s.flows {
			fl := &s.flows[slot]
			if !fl.used || !match(s, fl, uint32(slot)) {
				continue
			}
			if fl.closed(mono) { // nothing is left to cut, but the place is kept all the same
				f.finish(fl, wall, WhyClosed)
			} else {
				f.finish(fl, wall, WhyCut)
				c.Flows++
				if fl.key.protocol() == tcp && (fl.phase != ended || fl.goesOn()) {
					c.ToTunnel = append(c.ToTunnel, fl.reset(true))
					c.ToLocal = append(c.ToLocal, fl.reset(false))
				}
			}
			s.move(fl, uint32(slot), cut)
			fl.who, fl.rule, fl.seen = nil, nil, mono
		}
		s.mu.Unlock()
	}
	f.cuts.Add(uint64(c.Flows))
	return c
}
