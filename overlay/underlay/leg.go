package underlay

import (
	"bytes"
	"crypto/rand"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"overlayd/overlay/key"
	"overlayd/overlay/relay"
)

// Relay is one relay, as the map has it.
type Relay struct {
	ID, Name string
	Addrs    []netip.AddrPort // in order of preference
	Ticket   []byte           // empty: none yet, so no session
	Key      key.Secret
}

const (
	// triesPerAddr is how many messages go unanswered before another of the
	// relay's addresses is tried: one may be lost.
	triesPerAddr = 2
	// shortestNap bounds how fast a session can drive Run.
	shortestNap = time.Millisecond
)

// Marks that traffic leaves on a leg.
const (
	sentMark  = 1 << iota // something was sent through the relay
	heardMark             // something came through it
)

// leg is this node's end of one relay.
type leg struct {
	id    string // set by newLeg, then read-only
	wake  func() // makes Run look
	port  *relay.Port
	marks atomic.Uint32

	mu      sync.Mutex     // guards the rest
	name    string         // for logs and status
	session *relay.Session // nil: no ticket, or the relay is in this process
	ticket  []byte
	addrs   []netip.AddrPort
	at      int  // index of the address in use
	tries   int  // messages sent to it since it last answered
	up      bool // there is a session at addrs[at]
}

// note leaves a mark. The session is told at its next Tick; while it is up it
// asks for one at least twice a second, and its own deadlines are seconds.
func (l *leg) note(mark uint32) {
	if l.marks.Load()&mark == 0 {
		l.marks.Or(mark)
	}
}

// set makes the leg what the map says, keeping the session if there is one.
func (l *leg) set(r Relay) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.name = r.Name
	if l.port != nil {
		return
	}
	if !slices.Equal(l.addrs, r.Addrs) {
		old := l.addr()
		l.addrs = slices.Clone(r.Addrs)
		if l.at = slices.Index(l.addrs, old); l.at < 0 {
			l.at, l.tries = 0, 0
			if l.up && l.session != nil { // at an address that is the relay's no more
				l.session = nil
				l.ticket = nil
				l.up = false
			}
		}
	}
	switch {
	case len(r.Ticket) == 0:
		l.session, l.ticket, l.up = nil, nil, false
	case l.session == nil:
		l.session = relay.NewSession(relay.SessionOptions{Ticket: r.Ticket, Key: r.Key, Rand: rand.Reader})
	case !bytes.Equal(l.ticket, r.Ticket):
		l.session.Renew(r.Ticket, r.Key)
	}
	l.ticket = slices.Clone(r.Ticket)
}

// addr returns the address in use; the caller holds mu.
func (l *leg) addr() netip.AddrPort {
	if l.at < 0 || l.at >= len(l.addrs) {
		return netip.AddrPort{}
	}
	return l.addrs[l.at]
}

// tick does what is due, and returns when to come again and whether the session
// came up or went down.
func (l *leg) tick(now time.Time, ls *lines) (next time.Time, changed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.session == nil {
		return time.Time{}, false
	}
	l.gather(now)
	frame, next := l.session.Tick(now)
	if floor := now.Add(shortestNap); next.Before(floor) {
		next = floor
	}
	changed = l.look(l.at)
	if frame != nil && len(l.addrs) > 0 {
		l.transmit(frame, ls)
	}
	return next, changed
}

// gather tells the session what traffic there was.
func (l *leg) gather(now time.Time) {
	marks := l.marks.Swap(0)
	if marks&sentMark != 0 {
		l.session.Sent(now)
	}
	if marks&heardMark != 0 {
		l.session.Heard(now)
	}
}

// transmit sends a control message to the address in use; while there is no
// session the addresses take turns, beginning with those of a family that the
// machine has.
func (l *leg) transmit(frame []byte, ls *lines) {
	if !l.up && l.tries >= triesPerAddr {
		l.at, l.tries = (l.at+1)%len(l.addrs), 0
	}
	for range l.addrs {
		dst := l.addr()
		if line := ls.to(dst.Addr()); line != nil && line.sock.Send(dst, frame) == nil {
			l.tries++
			return
		}
		if l.up {
			return // the session is bound to this address
		}
		l.at, l.tries = (l.at+1)%len(l.addrs), 0
	}
}

// handle takes a control message from one of the relay's addresses.
func (l *leg) handle(now time.Time, src netip.AddrPort, frame []byte, from *line) (changed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := slices.Index(l.addrs, src)
	if l.session == nil || at < 0 {
		return false
	}
	if l.up && at != l.at {
		return false // late, from an address tried before
	}
	reply := l.session.Handle(now, frame)
	if reply != nil {
		_ = from.sock.Send(src, reply) // counted there; the session repeats itself
	}
	changed = l.look(at)
	l.wake() // the session may have a new deadline
	return changed
}

// look takes note of the session's state after an event at one of the
// addresses; the caller holds mu.
func (l *leg) look(at int) (changed bool) {
	up := l.session.Status().State == relay.Up
	if up {
		l.at, l.tries = at, 0
	}
	changed = up != l.up
	l.up = up
	return changed
}

// kick makes the session prove itself now.
func (l *leg) kick(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.session != nil {
		l.session.Kick(now)
	}
}

// watch says whether to look after the session closely.
func (l *leg) watch(now time.Time, closely bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.session != nil {
		l.session.Watch(now, closely)
	}
}

// reach returns what choose wants to know.
func (l *leg) reach(ls *lines) reach {
	if l.port != nil {
		return reach{id: l.id, transport: TransportLocal, carrier: &portCarrier{l.port}}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	r := reach{id: l.id, transport: TransportUDP}
	addr := l.addr()
	if line := ls.to(addr.Addr()); l.up && line != nil {
		r.endpoint = addr.String()
		r.carrier = &udpCarrier{leg: l, line: line, dst: addr}
	}
	return r
}

// RelayStatus is a relay as this node sees it.
type RelayStatus struct {
	ID, Name  string
	Endpoint  string        // the address in use
	State     string        // "attaching", "up", "lost", "no_ticket"
	Transport string        // TransportUDP, TransportLocal
	RTT       time.Duration // 0: unknown
	LastEcho  time.Time     // last proof that the relay answers; zero: none yet
}

// stateNoTicket is the state of a relay that we may not attach to yet.
const stateNoTicket = "no_ticket"

func (l *leg) status() RelayStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := RelayStatus{ID: l.id, Name: l.name, Transport: TransportUDP, State: stateNoTicket}
	if l.port != nil {
		s.Transport, s.State = TransportLocal, relay.Up.String()
		return s
	}
	if addr := l.addr(); addr.IsValid() {
		s.Endpoint = addr.String()
	}
	if l.session != nil {
		st := l.session.Status()
		s.State, s.RTT, s.LastEcho = st.State.String(), st.RTT, st.LastEcho
	}
	return s
}

// addresses returns where the relay may be heard from.
func (l *leg) addresses() []netip.AddrPort {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.addrs
}

func (l *leg) isUp() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.up
}
