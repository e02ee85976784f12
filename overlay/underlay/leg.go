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
	Label    relay.Label      // of the relay's own node; what peers call the relay
	Pin      key.Pin          // of its TLS key, for who dials; zero: ordinary certificate checks
	Endpoint string           // host:port, which TLS checks; "": the first of Addrs
	Addrs    []netip.AddrPort // in order of preference
	Ticket   []byte           // empty: none yet, so no session
	Key      key.Secret
	Crowd    int // nodes that would lose it together with this one
}

const (
	// triesPerAddr is how many messages go unanswered before another of the
	// relay's addresses is tried: one may be lost.
	triesPerAddr = 2
	// shortestNap bounds how fast anything can drive Run.
	shortestNap = time.Millisecond
)

// Marks that traffic leaves on a leg.
const (
	sentMark  = 1 << iota // something was sent through the relay
	heardMark             // something came through it
)

// leg is this node's end of one relay.
type leg struct {
	id     string // set by newLeg, then read-only
	wake   func() // makes Run look
	count  *counters
	port   *relay.Port
	noTLS  bool // there is no way to dial
	marks  atomic.Uint32
	wanted atomic.Int64 // when a peer was last to be reached here, Unix ns

	label    relay.Label // of the relay's node; guarded by the Bind's mu, as standing
	standing standing

	mu      sync.Mutex     // guards the rest
	name    string         // for logs and status
	session *relay.Session // nil: no ticket, or the relay is in this process
	ticket  []byte
	addrs   []netip.AddrPort
	at      int  // index of the address in use
	tries   int  // messages sent to it since it last answered
	asked   int  // messages sent to all of them since any answered
	up      bool // there is a session at addrs[at], by UDP
	resting bool // there is to be no session
	closely bool // see Bind.Watch
	several bool // there are other relays

	race  race
	key   key.Secret
	crowd int
	host  string  // the relay's endpoint
	pin   key.Pin // of its TLS key
	tls   tlsSide

	questions []*question   // of a Check; nil: none runs
	heard     chan struct{} // gets a token when one is answered
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
	l.name, l.host, l.pin, l.key, l.crowd = r.Name, r.Endpoint, r.Pin, r.Key, r.Crowd
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
		l.hangUp()
	case l.session == nil && !l.resting:
		l.session = l.newSession(r.Ticket, r.Key)
	case l.session == nil:
	case !bytes.Equal(l.ticket, r.Ticket):
		l.session.Renew(r.Ticket, r.Key)
		if l.tls.session != nil {
			l.tls.session.Renew(r.Ticket, r.Key)
		}
	}
	l.ticket = slices.Clone(r.Ticket)
	for _, s := range []*relay.Session{l.session, l.tls.session} {
		if s != nil {
			s.Crowd(r.Crowd)
		}
	}
}

// newSession makes a session that is looked after as the leg is; the caller holds
// mu.
func (l *leg) newSession(ticket []byte, k key.Secret) *relay.Session {
	s := relay.NewSession(relay.SessionOptions{Ticket: ticket, Key: k, Rand: rand.Reader})
	s.Watch(time.Now(), l.closely)
	s.Hurry(l.several)
	s.Crowd(l.crowd)
	return s
}

// addr returns the address in use; the caller holds mu.
func (l *leg) addr() netip.AddrPort {
	if l.at < 0 || l.at >= len(l.addrs) {
		return netip.AddrPort{}
	}
	return l.addrs[l.at]
}

// turn is what came of a leg's tick.
type turn struct {
	next    time.Time // when to come again; zero: not by itself
	changed bool      // the session came up or went down, or has another transport
	dial    bool      // a TLS connection is to be made
}

// tick does what is due.
func (l *leg) tick(now time.Time, ls *lines) (t turn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.session == nil {
		return t
	}
	before := l.state()
	l.gather(now)
	v := l.race.step(now, l.facts(ls), random)
	if v.hangUp {
		l.hangUp()
	}
	if v.fresh {
		l.session = l.newSession(l.ticket, l.key)
		l.up = false
	}
	t.next, t.dial = v.next, v.dial
	if v.udp {
		frame, next := l.session.Tick(now)
		t.next = sooner(t.next, next)
		l.look(l.at)
		if frame != nil && len(l.addrs) > 0 {
			l.transmit(frame, ls)
		}
	}
	if v.attach {
		t.next = sooner(t.next, l.tls.tick(now))
	}
	l.tls.dialing = l.tls.dialing || t.dial
	if floor := now.Add(shortestNap); !t.next.IsZero() && t.next.Before(floor) {
		t.next = floor
	}
	t.changed = l.state() != before
	return t
}

// gather tells the session what traffic there was.
func (l *leg) gather(now time.Time) {
	marks := l.marks.Swap(0)
	session := l.active()
	if marks&sentMark != 0 {
		session.Sent(now)
	}
	if marks&heardMark != 0 {
		session.Heard(now)
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
			l.asked++
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
	if l.answers(now, src, frame) { // also while there is to be no session
		return false
	}
	at := slices.Index(l.addrs, src)
	if l.session == nil || at < 0 {
		return false
	}
	if l.up && at != l.at {
		l.count.add(dropControl, 1) // late, from an address tried before
		return false
	}
	l.asked = 0
	reply := l.feed(l.session, now, frame)
	if reply != nil {
		_ = from.sock.Send(src, reply) // counted there; the session repeats itself
	}
	before := l.state()
	l.look(at)
	l.wake() // the session may have a new deadline, and the race a winner
	return l.state() != before
}

// feed gives a session a control message, and counts what it does not take.
func (l *leg) feed(s *relay.Session, now time.Time, frame []byte) (reply []byte) {
	before := s.Ignored()
	reply = s.Handle(now, frame)
	l.count.add(dropControl, int(s.Ignored()-before))
	return reply
}

// look takes note of the session's state after an event at one of the
// addresses; the caller holds mu.
func (l *leg) look(at int) {
	if l.up = l.session.Status().State == relay.Up; l.up {
		l.at, l.tries = at, 0
	}
}

// kick makes the session prove itself now.
func (l *leg) kick(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.session == nil {
		return
	}
	l.race.kick(now)
	l.session.Kick(now)
	if l.tls.session != nil {
		l.tls.session.Kick(now)
	}
}

// check asks the relay whether it has the session.
func (l *leg) check(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.session != nil {
		l.active().Check(now)
	}
}

// watch says whether to look after the session closely, and whether there are
// other relays.
func (l *leg) watch(now time.Time, closely, several bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closely, l.several = closely, several
	for _, s := range []*relay.Session{l.session, l.tls.session} {
		if s != nil {
			s.Watch(now, closely)
			s.Hurry(several)
		}
	}
}

// rest says whether the leg is to do without a session, and reports whether that
// is new.
func (l *leg) rest(resting bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.resting == resting || l.port != nil {
		return false
	}
	l.resting = resting
	if resting {
		l.session, l.up, l.race = nil, false, race{}
		l.hangUp()
	} else if len(l.ticket) > 0 {
		l.session = l.newSession(l.ticket, l.key)
	}
	return true
}

// report says how the session does.
func (l *leg) report() report {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.port != nil {
		return report{rtt: ownCost}
	}
	if l.session == nil {
		return report{}
	}
	st := l.active().Status()
	return report{doubted: st.Doubted, rtt: st.RTT, tls: l.race.tls}
}

// ownCost is the round trip to the relay in this process.
const ownCost = time.Microsecond

// reach returns how the relay is reached.
func (l *leg) reach(ls *lines) reach {
	if l.port != nil {
		return reach{id: l.id, transport: TransportLocal, carrier: &portCarrier{l.port}}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.race.tls {
		return l.tlsReach()
	}
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
	State     string        // "attaching", "up", "lost", "no_ticket", "idle"
	Transport string        // TransportUDP, TransportTLS, TransportLocal
	Reason    string        // why it is not UDP, or not up: ReasonUDPBlocked, or a relay.Obstacle; "": nothing is known
	Detail    string        // the same in words
	RTT       time.Duration // 0: unknown
	LastEcho  time.Time     // last proof that the relay answers; zero: none yet
	Attached  bool          // peers may send by this relay
	Nearest   bool          // of those that answer
	Cost      time.Duration // see Place
}

// States of a relay beside those of its session.
const (
	stateNoTicket = "no_ticket" // we may not attach to it yet
	stateIdle     = "idle"      // others are nearer
)

func (l *leg) status() RelayStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := RelayStatus{ID: l.id, Name: l.name, Transport: TransportUDP, State: stateNoTicket}
	if l.port != nil {
		s.Transport, s.State, s.Endpoint = TransportLocal, relay.Up.String(), l.host
		return s
	}
	if addr := l.addr(); addr.IsValid() {
		s.Endpoint = addr.String()
	}
	if l.resting && len(l.ticket) > 0 {
		s.State = stateIdle
	}
	if l.session != nil {
		l.explain(&s)
		st := l.active().Status()
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
	return l.state().up
}
