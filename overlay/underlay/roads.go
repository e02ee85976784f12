package underlay

import (
	"slices"
	"time"

	"overlayd/overlay/relay"
)

// roads are the ways by relays that there are now: what choices rest on, and
// what they lead to. They are immutable, and swapped whole. The slices go by the
// same index.
type roads struct {
	sights  []sight
	reaches []reach
	legs    []*leg

	own     []presence // where peers may find us
	version uint64     // changes with own
}

// several reports whether there is anything to choose.
func (r *roads) several() bool { return len(r.sights) > 1 }

// reach is how a relay is reached.
type reach struct {
	id        string
	transport string
	endpoint  string
	carrier   carrier // nil: no session
	reason    string  // why the transport is not better
}

// way returns the way to a peer by the chosen relays.
func (r *roads) way(label relay.Label, c route) *way {
	switch {
	case len(r.reaches) == 0:
		return &way{label: label, reason: reasonNoRelay}
	case c.first < 0:
		return &way{label: label, reason: reasonRelayDown, path: Path{RelayID: r.reaches[0].id}}
	}
	first := r.reaches[c.first]
	w := &way{carrier: first.carrier, label: label, path: Path{
		Kind: KindRelay, Transport: first.transport, Endpoint: first.endpoint, RelayID: first.id, Reason: first.reason,
	}}
	if c.second >= 0 {
		w.carrier = &pairCarrier{first.carrier, r.reaches[c.second].carrier}
	}
	return w
}

// survey looks at all legs, decides which of them are to have sessions, and
// returns what there is now, whether that is news, and when to come again; zero:
// when something happens. The caller holds mu.
func (b *Bind) survey(now time.Time) (r *roads, changed bool, next time.Time) {
	ls, old := b.lines.Load(), b.roads.Load()
	r = &roads{legs: b.legs, version: old.version}
	var wanted []time.Time
	for _, l := range b.legs {
		reach, report := l.reach(ls), l.report()
		report.up = reach.carrier != nil
		next = sooner(next, l.standing.look(now, report))
		s := l.standing.sight
		s.id, s.label = l.id, l.label
		r.sights, r.reaches = append(r.sights, s), append(r.reaches, reach)
		wanted = append(wanted, time.Unix(0, l.wanted.Load()))
		if s.up {
			r.own = append(r.own, presence{Place{s.label, s.cost}, s.doubted})
		}
	}
	keep, at := b.keeper.step(now, r.sights, wanted)
	for i, l := range b.legs {
		if l.rest(!keep[i]) {
			b.wake()
		}
	}
	if !slices.Equal(r.own, old.own) {
		r.version++
	}
	changed = r.version != old.version || !slices.Equal(r.sights, old.sights)
	return r, changed, sooner(next, at)
}

// resurvey surveys, and chooses anew for all peers if that is called for.
func (b *Bind) resurvey(now time.Time) (next time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, changed, next := b.survey(now)
	if changed {
		b.rebuild()
	}
	return next
}

// choose gives the peer its way by the relays; the caller holds the peer's mu.
func (p *peer) choose(now time.Time, r *roads) {
	c := p.via.choose(now, r.sights, p.presence)
	p.again = c.next
	if c.missed >= 0 {
		r.legs[c.missed].wanted.Store(now.UnixNano())
	}
	next := c
	next.next = time.Time{}
	if p.roads == r && p.route == next {
		return
	}
	w := r.way(p.label, c)
	p.rerouted(w)
	p.roads, p.route, p.relayed = r, next, w
	if p.finder != nil {
		p.finder.Relay(now, w.carrier != nil)
	}
}

// find takes over what the map says of where the peer is, when it says
// something new; the caller holds the peer's mu.
func (p *peer) find(at []Place) {
	if len(at) == 0 || slices.Equal(at, p.mapped) {
		return
	}
	p.mapped = at
	p.presence = nil
	for _, a := range at {
		p.presence = append(p.presence, presence{Place: a})
	}
}

// routePeers chooses anew for the peers for which it is time, and tells those
// that we talk to where we are. It returns when to come again, or next if that
// is earlier.
func (b *Bind) routePeers(now time.Time, next time.Time) time.Time {
	r := b.roads.Load()
	if !r.several() {
		return next
	}
	for _, p := range b.table.Load().peers {
		if at := b.routePeer(now, p, r); !at.IsZero() {
			next = earlier(next, at)
		}
	}
	if floor := now.Add(shortestNap); next.Before(floor) {
		return floor
	}
	return next
}

func (b *Bind) routePeer(now time.Time, p *peer, r *roads) (next time.Time) {
	p.mu.Lock()
	if p.relayed == nil || p.roads == nil { // gone meanwhile, or not arranged yet
		p.mu.Unlock()
		return time.Time{}
	}
	if p.roads != r || !p.again.IsZero() && !now.Before(p.again) {
		p.choose(now, r)
		b.settle(now, p, b.lines.Load())
	}
	talking := now.Sub(p.talkedAt) < activeFor
	tell, ask, at := p.teller.step(now, r.version, talking, p.presence != nil, p.way.Load().direct().IsValid())
	next = sooner(p.again, at)
	if talking && p.route.first >= 0 {
		r.legs[p.route.first].wanted.Store(now.UnixNano())
	}
	b.unlockAndTell(p, r, tell, ask)
	return next
}

// unlockAndTell gives the peer's mu back and tells it where we are, by every
// relay at which it may be.
func (b *Bind) unlockAndTell(p *peer, r *roads, tell, ask bool) {
	s, label := p.sealed(b), p.label
	where := candidates(r.sights, p.presence)
	p.mu.Unlock()
	if !tell || s == nil {
		return
	}
	if len(where) == 0 {
		where = candidates(r.sights, nil)
	}
	m := newNotice(time.Now(), r.own, ask)
	for _, c := range where {
		if to := r.reaches[c.at].carrier; to != nil {
			to.send(label, [][]byte{s.close(0, m)})
		}
	}
}

// told takes a peer's word of where it is. The caller holds the peer's mu, which
// is given back.
func (b *Bind) told(now time.Time, p *peer, m probe) {
	r := b.roads.Load()
	if p.roads == nil || !p.teller.fresh(now, m) { // gone meanwhile, or old
		p.mu.Unlock()
		b.count.add(dropProbeStale, 1)
		return
	}
	p.presence = m.places
	if p.presence == nil {
		p.presence = []presence{}
	}
	p.choose(now, r)
	b.settle(now, p, b.lines.Load())
	b.unlockAndTell(p, r, m.ask && p.teller.answer(now, r.version), false)
	b.wake() // p.again may be sooner
}

// pairCarrier goes by two relays. What arrives twice, WireGuard drops.
type pairCarrier struct{ first, second carrier }

func (c *pairCarrier) send(label relay.Label, bufs [][]byte) (dropped int) {
	dropped = c.first.send(label, bufs)
	c.second.send(label, bufs) // in case: what it loses is not lost
	return dropped
}

// sendWhole measures the way that counts.
func (c *pairCarrier) sendWhole(label relay.Label, d []byte) {
	if w, ok := c.first.(wholeCarrier); ok {
		w.sendWhole(label, d)
		return
	}
	c.first.send(label, [][]byte{d})
}
