package underlay

import (
	"time"

	"overlayd/overlay/relay"
)

const (
	// overlap is how long the relay that was left is used beside the new one:
	// what the peer said of the new one may be old.
	overlap = 2 * time.Second
	// costUnknown stands for the round trip to a relay that has not been
	// measured yet: any that was is preferred.
	costUnknown = time.Second
)

// presence is a relay at which a peer says that it is.
type presence struct {
	Place
	doubted bool // it has its doubts about it
}

// via chooses the relay by which a peer's datagrams go: of those where both are,
// that with the lowest sum of their round trips. It does no I/O.
type via struct {
	use   string    // the relay's ID; "": none yet
	left  string    // the one before
	moved time.Time // when left was
	doubt time.Time // when use came to be doubted; zero: it is not
}

// route is where datagrams go: indexes of relays, -1 for none.
type route struct {
	first  int
	second int       // as well
	missed int       // the peer's best relay, where we would have to be
	next   time.Time // when to choose again; zero: not by itself
}

// candidate is a relay that may lead to the peer.
type candidate struct {
	at      int // its index; -1: none
	doubted bool
	cost    time.Duration
}

// choose says where to send now. The relays come in order of preference; peer is
// nil when it is not known where the peer is.
func (v *via) choose(now time.Time, relays []sight, peer []presence) route {
	all := candidates(relays, peer)
	r := route{first: -1, second: -1, missed: -1}
	sure := len(all) > 0 && peer != nil
	if len(all) == 0 { // we are nowhere where it said to be
		r.missed = nearest(relays, peer)
		all = candidates(relays, nil)
	}
	best := pick(all, -1)
	if best.at < 0 {
		return r
	}
	use := find(all, relays, v.use)
	switch {
	case use.at < 0:
		v.move(now, relays[best.at].id)
	case use.doubted:
		r.next = v.endure(now, relays, best)
	default:
		v.doubt = time.Time{}
		if relays[best.at].settled && nearer(best.cost, use.cost) {
			v.move(now, relays[best.at].id)
		}
	}
	use = find(all, relays, v.use)
	r.first = use.at
	old := find(all, relays, v.left)
	end := v.moved.Add(overlap)
	switch {
	case use.doubted || !sure:
		r.second = pick(all, use.at).at
	case old.at >= 0 && old.at != use.at && now.Before(end):
		r.second = old.at
		r.next = sooner(r.next, end)
	}
	return r
}

// endure leaves a relay that is doubted, after a while, if there is one that is
// not.
func (v *via) endure(now time.Time, relays []sight, best candidate) (next time.Time) {
	if v.doubt.IsZero() {
		v.doubt = now
	}
	at := v.doubt.Add(doubtMost)
	switch {
	case best.doubted:
		return time.Time{}
	case now.Before(at):
		return at
	}
	v.move(now, relays[best.at].id)
	return time.Time{}
}

func (v *via) move(now time.Time, to string) {
	if to == v.use {
		return
	}
	*v = via{use: to, left: v.use, moved: now}
}

// candidates are the relays where we are, and the peer as far as is known.
func candidates(relays []sight, peer []presence) []candidate {
	all := make([]candidate, 0, len(relays))
	for i, s := range relays {
		if !s.up {
			continue
		}
		c := candidate{at: i, doubted: s.doubted, cost: s.cost}
		if s.cost == 0 {
			c.cost = costUnknown
		}
		if peer != nil {
			p, there := presenceAt(peer, s.label)
			if !there {
				continue
			}
			c.doubted = c.doubted || p.doubted
			c.cost += p.Cost
		}
		all = append(all, c)
	}
	return all
}

func presenceAt(peer []presence, l relay.Label) (presence, bool) {
	for _, p := range peer {
		if p.Relay == l && l != 0 {
			return p, true
		}
	}
	return presence{}, false
}

// pick returns the best candidate but one.
func pick(all []candidate, but int) candidate {
	best := candidate{at: -1}
	for _, c := range all {
		if c.at == but {
			continue
		}
		if best.at < 0 || best.doubted && !c.doubted || best.doubted == c.doubted && c.cost < best.cost {
			best = c
		}
	}
	return best
}

func find(all []candidate, relays []sight, id string) candidate {
	for _, c := range all {
		if relays[c.at].id == id {
			return c
		}
	}
	return candidate{at: -1}
}

// nearest returns the relay that costs the peer least, of those that we know.
func nearest(relays []sight, peer []presence) int {
	best, cost := -1, time.Duration(0)
	for i, s := range relays {
		if p, there := presenceAt(peer, s.label); there && (best < 0 || p.Cost < cost) {
			best, cost = i, p.Cost
		}
	}
	return best
}
