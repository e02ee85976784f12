package relay

import (
	"crypto/rand"
	"encoding/binary"
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"overlayd/overlay/key"
)

const (
	// keepaliveMin and keepaliveMax keep a home router's UDP mapping open; the
	// shortest timeout met in the field is 30 s. The spread keeps nodes that
	// started together apart.
	keepaliveMin = 20 * time.Second
	keepaliveMax = 25 * time.Second
	// closeMin and closeMax are the gaps between PINGs while nobody else would
	// tell of the relay's end. A node that only waits for others to send would
	// not notice that a restarted relay has forgotten it.
	closeMin = 600 * time.Millisecond
	closeMax = 800 * time.Millisecond
	// silence is how long data may go unanswered before the session is
	// doubted. A peer that is away is silent too; a PONG settles it.
	silence = time.Second
	// silenceShort is that where there is another relay to go to.
	silenceShort = 500 * time.Millisecond
	// hush is how long traffic that came is followed by none before the relay
	// is asked: a conversation may be over, or this node's address be another
	// since a NAT on the way was restarted. Only a datagram of ours shows the
	// relay where we are now. It comes hushGap after the last answer at least.
	hush    = 400 * time.Millisecond
	hushGap = time.Second
	// pollEvery bounds Tick's next while a session is up: Sent does not wake
	// the caller, so Tick must look for silence by itself. hushPoll does so
	// while traffic comes.
	pollEvery = 500 * time.Millisecond
	hushPoll  = 200 * time.Millisecond

	// attachFirst to attachMost are the gaps between retries. However long the
	// relay was away, a node is back within attachMost and two round trips: it
	// cannot know whether another one waits for it. That costs 200 bytes a
	// second; the larger the network, the more seldom: see Crowd.
	attachFirst = 100 * time.Millisecond
	attachMost  = 800 * time.Millisecond
	// attachRefused is the gap while the relay says no: only a new ticket helps.
	attachRefused = 5 * time.Second
	// attachEach is the share of the gap that each node of a crowd has: together
	// they send five thousand ATTACHes a second at most.
	attachEach = 400 * time.Microsecond
	// lostAfter is how long attaching goes unanswered before the status says lost.
	lostAfter = 5 * time.Second
	// tryBeforeDoubt is how many ATTACHes an UNKNOWN may cost before the
	// session it doubted counts as gone.
	tryBeforeDoubt = 4
	// unknownEvery limits how often an UNKNOWN, which anybody can forge, makes
	// us attach.
	unknownEvery = 100 * time.Millisecond
	// tokenGood is how long a node repeats a token; the relay takes it a bit longer.
	tokenGood = tokenLife - 2*time.Second
	// defaultLease is how long the relay keeps a session without any PING.
	defaultLease = 120 * time.Second
)

// doubtPings and kickPings are the gaps after each unanswered PING; after the
// last one the session is attached again.
var (
	doubtPings = []time.Duration{500 * time.Millisecond, time.Second, time.Second}
	kickPings  = []time.Duration{100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 400 * time.Millisecond}
)

// State is what a Session knows of itself.
type State int

// The states. Data is sent through the relay while Up.
const (
	Attaching State = iota // no session yet, or a new one is being made
	Up                     // the relay has confirmed the session
	Lost                   // attaching goes unanswered, or the relay refuses; it is tried on
)

// String returns one word.
func (s State) String() string { return [...]string{"attaching", "up", "lost"}[s] }

// SessionOptions says who attaches.
type SessionOptions struct {
	Ticket []byte
	Key    key.Secret
	Rand   io.Reader // nil: crypto/rand
}

// SessionStatus is a Session's state and what proves it.
type SessionStatus struct {
	State    State
	Reason   Reason         // why the relay ended or refused the session, if it said so
	RTT      time.Duration  // smoothed; 0: unknown
	Observed netip.AddrPort // our address as the relay sees it
	LastEcho time.Time      // when the relay last proved that it has the session
	Doubted  time.Time      // when the first PING since then was sent; zero: none was
	BootID   uint64         // changes when the relay restarts
}

// Session is the node's end of a relay session: a state machine without I/O.
// Feed it what the relay sends and the time; send what it returns. Its methods
// may be called concurrently.
type Session struct {
	sentSince atomic.Int64 // when data was first sent since something was heard, Unix ns; 0: none
	heardAt   atomic.Int64 // when data last came, Unix ns; 0: not since the silence was asked about

	mu     sync.Mutex // guards all below
	rand   io.Reader
	ticket [ticketSize]byte
	key    key.Secret

	status  SessionStatus
	since   time.Time // when attaching began; zero: it has not
	closely bool      // see Watch
	silence time.Duration
	crowd   int // see Crowd
	try     try
	grant   grant
	ignored uint64
}

// try is one attempt at attaching. Its nonce stays the same over retries, or a
// round trip longer than the first gaps would never succeed.
type try struct {
	on       bool
	nonce    nonce
	token    token
	tokenAt  time.Time // zero: no token
	sentAt   time.Time
	sent     int       // ATTACHes
	next     time.Time // when to send again
	patience time.Duration
}

// grant is what READY made, and the PINGs that keep it.
type grant struct {
	id     uint64
	ticket [ticketSize]byte
	key    key.Secret
	lease  time.Duration
	count  uint64          // of the last PING
	sentAt [8]time.Time    // of the last PINGs, by count
	gaps   []time.Duration // what is left of doubtPings or kickPings; nil: no doubt
	next   time.Time       // when the next PING is due
}

// NewSession returns a session that attaches at the first Tick.
func NewSession(o SessionOptions) *Session {
	s := &Session{rand: o.Rand, key: o.Key, silence: silence}
	if s.rand == nil {
		s.rand = rand.Reader
	}
	copy(s.ticket[:], o.Ticket)
	return s
}

// Status returns the state.
func (s *Session) Status() SessionStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// Sent notes that data was sent through the relay.
func (s *Session) Sent(now time.Time) {
	if s.sentSince.Load() == 0 {
		s.sentSince.CompareAndSwap(0, now.UnixNano())
	}
}

// Heard notes that data came through the relay.
func (s *Session) Heard(now time.Time) {
	s.heardAt.Store(now.UnixNano())
	if s.sentSince.Load() != 0 {
		s.sentSince.Store(0)
	}
}

// Renew replaces the ticket. The session goes on, and is moved to the new
// ticket at once.
func (s *Session) Renew(ticket []byte, k key.Secret) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ticket = [ticketSize]byte{}
	copy(s.ticket[:], ticket)
	s.key = k
	s.begin(time.Time{}) // the next Tick sends
	if s.status.State == Lost {
		s.status.State, s.status.Reason = Attaching, ReasonNone
		s.since = time.Time{}
	}
}

// Crowd says how many nodes would lose the relay together with this one. They
// come back one by one.
func (s *Session) Crowd(nodes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.crowd = nodes
}

// Kick says that the session is in doubt: the control stream broke, or a link
// changed. It is verified at once; call Tick.
func (s *Session) Kick(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status.State != Up {
		s.since = now
		if s.try.on {
			s.try.sent, s.try.next = 0, now
			s.try.patience = 0
		}
		return
	}
	s.grant.gaps = kickPings
	s.grant.next = now
}

// Watch says whether the session is to be looked after closely, which finds out
// within a second that the relay has lost it: while the control stream is down,
// whose end would have told of the relay's. Call Tick when it has changed.
func (s *Session) Watch(now time.Time, closely bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closely == closely {
		return
	}
	s.closely = closely
	if s.status.State == Up && s.grant.gaps == nil {
		s.grant.next = s.nextPing(now)
	}
}

// Hurry says whether there is another relay to go to, so that silence is asked
// about sooner.
func (s *Session) Hurry(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silence = silence
	if on {
		s.silence = silenceShort
	}
}

// nextPing returns when a session that was confirmed just now is asked again.
func (s *Session) nextPing(now time.Time) time.Time {
	if s.closely {
		return now.Add(s.jitter(closeMin, closeMax))
	}
	return now.Add(s.jitter(keepaliveMin, keepaliveMax))
}

// begin starts a new attempt, whose first ATTACH is due now.
func (s *Session) begin(now time.Time) {
	s.try = try{on: true, next: now}
	io.ReadFull(s.rand, s.try.nonce[:])
}

// Tick returns what to send now, if anything, and when to call again.
func (s *Session) Tick(now time.Time) (frame []byte, next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status.State == Up {
		s.watch(now)
	}
	if s.status.State != Up && !s.try.on {
		s.begin(now)
	}
	if s.try.on && !s.try.next.After(now) {
		s.tired(now)
		return s.attach(now), s.wake(now)
	}
	if s.status.State == Up && !s.grant.next.After(now) {
		return s.ping(now), s.wake(now)
	}
	return nil, s.wake(now)
}

// wake returns when Tick has something to do next.
func (s *Session) wake(now time.Time) time.Time {
	next := now.Add(attachRefused)
	if s.status.State == Up {
		next = now.Add(pollEvery)
		if s.heardAt.Load() != 0 {
			next = now.Add(hushPoll)
		}
		if s.grant.next.Before(next) {
			next = s.grant.next
		}
	}
	if s.try.on && s.try.next.Before(next) {
		next = s.try.next
	}
	return next
}

// watch doubts a session whose data goes unanswered, and gives up one whose
// PINGs do.
func (s *Session) watch(now time.Time) {
	e := &s.grant
	if now.Sub(s.status.LastEcho) > e.lease {
		s.fail(now)
		return
	}
	since := s.sentSince.Load()
	if since > now.UnixNano() { // the clock was set back
		s.sentSince.CompareAndSwap(since, now.UnixNano())
	}
	if s.hushed(now) && e.gaps == nil {
		s.ask(now)
	}
	if e.gaps == nil && since != 0 && now.Sub(time.Unix(0, since)) >= s.silence {
		e.gaps = doubtPings
		e.next = now
	}
	if e.gaps != nil && len(e.gaps) == 0 && !e.next.After(now) {
		s.fail(now)
	}
}

// hushed reports, once, that the traffic which came has ended.
func (s *Session) hushed(now time.Time) bool {
	at := s.heardAt.Load()
	if at == 0 || now.UnixNano()-at < int64(hush) && now.UnixNano() >= at { // else the clock was set back
		return false
	}
	return s.heardAt.CompareAndSwap(at, 0)
}

// ask makes a PING due soon.
func (s *Session) ask(now time.Time) {
	at := s.status.LastEcho.Add(hushGap)
	if at.Before(now) {
		at = now
	}
	if at.Before(s.grant.next) {
		s.grant.next = at
	}
}

// Check asks the relay soon whether it has the session; call Tick. Unlike Kick
// it is meant for what happens often.
func (s *Session) Check(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status.State == Up && s.grant.gaps == nil {
		s.ask(now)
	}
}

// fail gives the session up; a new one is attached at once.
func (s *Session) fail(now time.Time) {
	s.status.State = Attaching
	s.since = now
	s.begin(now)
	if spread := s.spread(); spread > attachMost {
		s.try.next = now.Add(s.jitter(0, spread))
	}
}

// spread is the time over which a crowd comes back.
func (s *Session) spread() time.Duration { return time.Duration(s.crowd) * attachEach }

// tired tells by its retries that an attempt goes unanswered.
func (s *Session) tired(now time.Time) {
	switch {
	case s.status.State == Up && s.renewing(): // the old ticket's session may well live on
	case s.status.State == Up && s.try.sent >= tryBeforeDoubt:
		s.status.State = Attaching
		s.since = now
	case s.since.IsZero():
		s.since = now
	case s.status.State == Attaching && now.Sub(s.since) >= lostAfter:
		s.status.State = Lost
	}
}

// renewing reports whether the session that is up was made by another ticket
// than the one to attach with.
func (s *Session) renewing() bool { return s.ticket != s.grant.ticket }

// attach returns the ATTACH to send now, and sets when to repeat it.
func (s *Session) attach(now time.Time) []byte {
	t := &s.try
	f := attach{nonce: t.nonce, ticket: s.ticket}
	if !t.tokenAt.IsZero() && now.Sub(t.tokenAt) < tokenGood {
		f.token = t.token
	}
	switch {
	case t.patience == 0:
		t.patience = max(attachFirst, s.spread()/4)
	case s.status.Reason > ReasonStopping && s.status.State != Up:
		t.patience = attachRefused
	default:
		t.patience = min(2*t.patience, max(attachMost, s.spread()))
	}
	t.sent++
	t.sentAt = now
	t.next = now.Add(s.jitter(attachFirst/2, t.patience))
	return f.Append(make([]byte, 0, attachSize), s.key)
}

// ping returns the PING to send now, and sets when the next one is due.
func (s *Session) ping(now time.Time) []byte {
	e := &s.grant
	if e.gaps == nil { // the idle one; unanswered, it is repeated
		e.gaps = doubtPings
		if s.closely {
			e.gaps = kickPings
		}
	}
	if len(e.gaps) > 0 {
		e.next = now.Add(e.gaps[0])
		e.gaps = e.gaps[1:]
	}
	if s.status.Doubted.IsZero() {
		s.status.Doubted = now
	}
	e.count++
	e.sentAt[e.count%uint64(len(e.sentAt))] = now
	return ping{e.id, e.count}.Append(make([]byte, 0, pingSize), e.key)
}

// Handle takes a control message that came from the relay's address, and
// returns the answer, if there is one. Call Tick afterwards.
func (s *Session) Handle(now time.Time, frame []byte) (reply []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ok := false
	switch frameType(frame) {
	case frameChallenge:
		reply, ok = s.handleChallenge(now, frame)
	case frameReady:
		ok = s.handleReady(now, frame)
	case framePong:
		ok = s.handlePong(now, frame)
	case frameUnknown:
		reply, ok = s.handleUnknown(now), true // a hint: there is nothing to check
	case frameGoAway:
		ok = s.handleGoAway(now, frame)
	}
	if !ok {
		s.ignored++
	}
	return reply
}

// Ignored returns how many control messages changed nothing, because they were
// malformed, forged, late or came before.
func (s *Session) Ignored() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ignored
}

func (s *Session) handleChallenge(now time.Time, frame []byte) (reply []byte, ok bool) {
	f := parseChallenge(frame)
	if !s.try.on || f.nonce != s.try.nonce || f.token == s.try.token || !authentic(s.key, frame) {
		return nil, false
	}
	s.try.token, s.try.tokenAt = f.token, now
	s.status.Observed = f.observed
	return s.attach(now), true
}

func (s *Session) handleReady(now time.Time, frame []byte) (ok bool) {
	f := parseReady(frame)
	if !s.try.on || f.nonce != s.try.nonce || s.try.tokenAt.IsZero() || !authentic(s.key, frame) {
		return false
	}
	s.grant = grant{
		id:     f.nonce.session(),
		ticket: s.ticket,
		key:    s.key,
		lease:  time.Duration(f.lease) * time.Second,
	}
	if f.lease == 0 {
		s.grant.lease = defaultLease
	}
	s.status.BootID = f.boot
	s.status.State, s.status.Reason = Up, ReasonNone
	s.since = time.Time{}
	t := s.try
	s.try = try{}
	s.confirmed(now, f.observed)
	if t.sent == 2 {
		s.measured(now.Sub(t.sentAt))
	} else if s.status.RTT == 0 { // of several ATTACHes, which one was answered? A PING tells
		s.grant.next = now
	}
	return true
}

func (s *Session) handlePong(now time.Time, frame []byte) (ok bool) {
	f := parsePong(frame)
	e := &s.grant
	old := e.count >= uint64(len(e.sentAt)) && f.count <= e.count-uint64(len(e.sentAt))
	if s.status.State != Up || f.session != e.id || f.count > e.count || f.count == 0 || old || !authentic(e.key, frame) {
		return false
	}
	at := &e.sentAt[f.count%uint64(len(e.sentAt))]
	if at.IsZero() { // answered before
		return false
	}
	s.measured(now.Sub(*at))
	*at = time.Time{}
	s.status.BootID = f.boot
	s.confirmed(now, f.observed)
	return true
}

// confirmed notes a proof that the relay has the session.
func (s *Session) confirmed(now time.Time, observed netip.AddrPort) {
	s.status.LastEcho, s.status.Doubted = now, time.Time{}
	s.status.Observed = observed
	s.sentSince.Store(0)
	s.grant.gaps = nil
	s.grant.next = s.nextPing(now)
}

// measured smooths the round trip as TCP does (RFC 6298).
func (s *Session) measured(rtt time.Duration) {
	rtt = max(rtt, time.Microsecond)
	if s.status.RTT == 0 {
		s.status.RTT = rtt
	} else {
		s.status.RTT += (rtt - s.status.RTT) / 8
	}
}

// handleUnknown attaches again. Anybody can send UNKNOWN, so the session
// counts as up until attaching goes unanswered.
func (s *Session) handleUnknown(now time.Time) []byte {
	if s.status.State != Up || s.try.on || now.Sub(s.status.LastEcho) < unknownEvery {
		return nil
	}
	s.begin(now)
	return s.attach(now)
}

func (s *Session) handleGoAway(now time.Time, frame []byte) (ok bool) {
	f := parseGoAway(frame)
	switch {
	case s.status.State == Up && f.session == s.grant.id && authentic(s.grant.key, frame):
		s.fail(now)
		// All nodes hear it at the same moment.
		s.try.next = now.Add(s.jitter(0, max(2*attachFirst, s.spread())))
	case !s.try.on || f.session != s.try.nonce.session() || !authentic(s.key, frame):
		return false
	case s.status.State == Up && s.renewing(): // the old ticket's session goes on
		s.status.Reason = f.reason
		s.try = try{}
		return true
	}
	s.status.Reason = f.reason
	if f.reason > ReasonStopping { // refused for good, until something changes
		s.status.State = Lost
		s.try.patience = attachRefused
		s.try.next = now.Add(s.jitter(attachRefused/2, attachRefused))
	}
	return true
}

// jitter returns a random duration between two.
func (s *Session) jitter(from, to time.Duration) time.Duration {
	var b [8]byte
	io.ReadFull(s.rand, b[:])
	return from + time.Duration(binary.LittleEndian.Uint64(b[:])%uint64(to-from+1))
}
