package relay

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"overlayd/overlay/key"
)

const (
	// defaultMaxSessions at about 1 KiB each is 64 MiB.
	defaultMaxSessions           = 1 << 16
	defaultMaxSessionsPerNetwork = 1 << 14
	// maxRevoked is how many removed nodes are remembered; the oldest are
	// forgotten first.
	maxRevoked = 1 << 12
	// leaseTime is how long a session lives without an authenticated PING: five
	// of the longest keepalives, less a bit.
	leaseTime = defaultLease
	// ticketGrace is how long a session outlives its ticket, so that a
	// coordinator that is down for a moment cuts nobody off.
	ticketGrace = time.Hour
)

// seat is a node's session as the relay has it.
type seat struct {
	network *network // set once, as label
	label   Label

	leg atomic.Pointer[leg] // where its datagrams go; nil: the seat is closed

	// The rest is guarded by table.mu.
	key     key.Secret
	ticket  Ticket
	nonce   nonce         // of the ATTACH that made or moved it
	movedAt time.Duration // when the token of that ATTACH was made
	count   uint64        // of the last PING
	heard   time.Duration // when the last authentic control message came
}

// leg is where a seat's datagrams go: to where they come from, or to the relay's
// own node.
type leg struct {
	origin
	port *Port // nil: by origin
}

// network holds the seats of one network.
type network struct {
	id     Network
	labels *index[Label, seat]
	own    atomic.Pointer[seat] // the relay's own node; nil: none
}

// table holds all seats. Look-ups take no lock; changes take mu.
type table struct {
	maxSeats, maxPerNetwork int // set by newTable, then read-only
	places                  *index[place, seat]
	host                    atomic.Pointer[Port] // who takes what comes from no node; nil: nobody

	mu       sync.Mutex // guards all below, and writing to the indexes
	networks map[Network]*network
	revoked  map[revokedKey]uint64 // the highest serial that is refused
	oldest   []revokedKey          // the keys of revoked in order of their making
}

type revokedKey struct {
	network Network
	label   Label
}

func newTable(maxSeats, maxPerNetwork int) *table {
	seed := maphash.MakeSeed()
	return &table{
		maxSeats:      maxSeats,
		maxPerNetwork: maxPerNetwork,
		places:        newIndex[place, seat](func(p place) uint64 { return maphash.Bytes(seed, p[:]) }),
		networks:      map[Network]*network{},
		revoked:       map[revokedKey]uint64{},
	}
}

// hashLabel spreads labels, which are small numbers in a row, over buckets.
func hashLabel(l Label) uint64 {
	return uint64(l) * 0x9E3779B97F4A7C15 >> 32 // Knuth's multiplicative hash
}

// at returns the seat whose node sends from src, or nil.
func (t *table) at(src netip.AddrPort) *seat {
	s := t.places.get(placeOf(src))
	if s == nil {
		return nil
	}
	if l := s.leg.Load(); l == nil || l.addr != src || l.call != nil {
		return nil
	}
	return s
}

// from is at for any origin.
func (t *table) from(o origin) *seat {
	if o.call == nil {
		return t.at(o.addr)
	}
	s := t.places.get(o.place())
	if s == nil {
		return nil
	}
	if l := s.leg.Load(); l == nil || l.call != o.call {
		return nil
	}
	return s
}

// network returns a network, made when need be. mu is held.
func (t *table) network(id Network) *network {
	n := t.networks[id]
	if n == nil {
		n = &network{id: id, labels: newIndex[Label, seat](hashLabel)}
		t.networks[id] = n
	}
	return n
}

// admission is an ATTACH whose MAC and token were checked.
type admission struct {
	src     origin
	key     key.Secret
	ticket  Ticket
	nonce   nonce
	tokenAt time.Duration
}

// admit makes a seat, or moves the one that the ticket's node has. It returns
// what happened, and why in the case of a refusal.
func (t *table) admit(now time.Duration, wall time.Time, a admission) (event, Reason) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.isRevoked(a.ticket) {
		return refused, ReasonRemoved
	}
	if wall.After(a.ticket.NotAfter) {
		return refused, ReasonExpired
	}
	var s *seat
	if n := t.networks[a.ticket.Network]; n != nil {
		s = n.labels.get(a.ticket.Label)
	}
	if s == nil {
		return t.open(now, a)
	}
	l := s.leg.Load()
	switch {
	case l.port != nil:
		return dropOwnLabel, ReasonNone
	case a.tokenAt == s.movedAt && a.nonce == s.nonce && a.src == l.origin: // READY was lost
		return repeated, ReasonNone
	case a.tokenAt <= s.movedAt:
		return dropReplay, ReasonNone
	}
	what := attached
	if l.origin != a.src {
		what = moved
		t.places.drop(l.place())
		l.left()
	}
	t.sit(now, s, a)
	return what, ReasonNone
}

// open makes a new seat. mu is held.
func (t *table) open(now time.Duration, a admission) (event, Reason) {
	if t.places.len() >= t.maxSeats {
		return refused, ReasonFull
	}
	if n := t.networks[a.ticket.Network]; n != nil && n.labels.len() >= t.maxPerNetwork {
		return refused, ReasonFull
	}
	n := t.network(a.ticket.Network)
	s := &seat{network: n, label: a.ticket.Label}
	n.labels.put(s.label, s) // first: sit may end another seat, and a network ends with its last
	t.sit(now, s, a)
	return attached, ReasonNone
}

// sit puts a seat at the place of an admission. Whoever sat there before has
// lost the address. mu is held.
func (t *table) sit(now time.Duration, s *seat, a admission) {
	p := a.src.place()
	if other := t.places.get(p); other != nil && other != s {
		t.close(other)
	}
	if s.nonce != a.nonce { // a repeated one must not let old PINGs in again
		s.count = 0
	}
	s.key, s.ticket, s.nonce, s.movedAt, s.heard = a.key, a.ticket, a.nonce, a.tokenAt, now
	s.leg.Store(&leg{origin: a.src})
	t.places.put(p, s)
}

// ping checks a PING that came from src, and returns the answer's key.
func (t *table) ping(now time.Duration, src origin, frame []byte) (event, key.Secret) {
	s := t.from(src)
	if s == nil {
		return dropNoSession, key.Secret{}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	f := parsePing(frame)
	switch {
	case !authentic(s.key, frame):
		return dropForged, key.Secret{}
	case f.session != s.nonce.session():
		return dropStale, key.Secret{}
	case f.count <= s.count:
		return dropReplay, key.Secret{}
	}
	s.count, s.heard = f.count, now
	return ponged, s.key
}

// close ends a seat. mu is held.
func (t *table) close(s *seat) {
	l := s.leg.Swap(nil)
	if l == nil {
		return
	}
	if l.port == nil {
		if p := l.place(); t.places.get(p) == s {
			t.places.drop(p)
		}
		l.left()
	}
	s.network.own.CompareAndSwap(s, nil)
	if s.network.labels.get(s.label) == s {
		s.network.labels.drop(s.label)
	}
	if s.network.labels.len() == 0 {
		delete(t.networks, s.network.id)
	}
}

// farewell is a GOAWAY to be sent.
type farewell struct {
	dst   origin
	frame []byte
}

// end closes a seat and returns what to tell its node. mu is held.
func (t *table) end(s *seat, why Reason) (farewell, bool) {
	l := s.leg.Load()
	t.close(s)
	if l == nil || l.port != nil {
		return farewell{}, false
	}
	return farewell{l.origin, goAway{s.nonce.session(), why}.Append(nil, s.key)}, true
}

// sweep ends the seats whose lease or ticket has run out.
func (t *table) sweep(now time.Duration, wall time.Time) (silent int, out []farewell) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.places.all(func(s *seat) {
		switch {
		case now-s.heard > leaseTime:
			silent++
			t.close(s)
		case wall.Sub(s.ticket.NotAfter) > ticketGrace:
			if f, ok := t.end(s, ReasonExpired); ok {
				out = append(out, f)
			}
		}
	})
	return silent, out
}

// endAll ends every seat.
func (t *table) endAll(why Reason) (out []farewell) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.places.all(func(s *seat) {
		if f, ok := t.end(s, why); ok {
			out = append(out, f)
		}
	})
	return out
}

// revoke refuses the tickets for a label up to the serial last, and ends the
// seat that was taken with one of them. The label's next node has a ticket with
// a higher serial.
func (t *table) revoke(id Network, l Label, last uint64) (farewell, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := revokedKey{id, l}
	if _, known := t.revoked[k]; !known {
		if len(t.oldest) >= maxRevoked {
			delete(t.revoked, t.oldest[0])
			t.oldest = append(t.oldest[:0], t.oldest[1:]...)
		}
		t.oldest = append(t.oldest, k)
	}
	t.revoked[k] = max(t.revoked[k], last)
	n := t.networks[id]
	if n == nil {
		return farewell{}, false
	}
	s := n.labels.get(l)
	if s == nil || s.ticket.Serial > last || s.leg.Load().port != nil {
		return farewell{}, false
	}
	return t.end(s, ReasonRemoved)
}

// isRevoked reports whether a ticket was made for a node that has since been
// removed. mu is held.
func (t *table) isRevoked(k Ticket) bool {
	last, ok := t.revoked[revokedKey{k.Network, k.Label}]
	return ok && k.Serial <= last
}

// seatOwn gives the relay's own node its seat. Whoever has the label loses it.
func (t *table) seatOwn(id Network, l Label, p *Port) *seat {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.network(id)
	for _, old := range []*seat{n.labels.get(l), n.own.Load()} {
		if old != nil {
			t.close(old)
		}
	}
	n = t.network(id) // closing the last seat removed it
	s := &seat{network: n, label: l}
	s.leg.Store(&leg{port: p})
	n.labels.put(l, s)
	n.own.Store(s)
	return s
}

// hangUp closes the seat of a call that has ended.
func (t *table) hangUp(c *call) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.from(c.origin()); s != nil {
		t.close(s)
	}
}

// left tells a call, if that is where the leg went, that it has no seat now.
func (l *leg) left() {
	if l.call != nil {
		l.call.idle.Reset(l.call.patience)
	}
}

// leave closes a seat.
func (t *table) leave(s *seat) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.close(s)
}
