package underlay

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

const (
	// activeFor is how long after the last datagram a pair counts as talking.
	// Only then is anything probed: an idle network is silent.
	activeFor = 45 * time.Second
	// activePoll is how often a talking pair is looked at: traffic only leaves
	// counts.
	activePoll = 100 * time.Millisecond

	// heartbeat keeps the NATs' mappings open and the round trip known.
	heartbeat = 3 * time.Second
	// askAfter is how long data may go unanswered before a ping asks; askAgain
	// is the pause between such pings. When that takes doubtAfter, or twice the
	// round trip, both ways are used: being wrong costs some doubles.
	askAfter   = 300 * time.Millisecond
	askAgain   = 200 * time.Millisecond
	doubtAfter = 250 * time.Millisecond
	// unconfirmedAsk is the longest pause between pings while both ways are used.
	unconfirmedAsk = time.Second
	// hush is how long a conversation is followed by silence before a ping asks:
	// that shows the peer, and the relay, where we are if a NAT has moved us.
	hush = 400 * time.Millisecond
	// deadAfter is how long an address that is asked may be silent before it is
	// one like any other.
	deadAfter = 15 * time.Second

	// searchFirst to searchMost are the longest pauses between searches that find
	// nothing, searchTime the shortest; upgradeEvery is the longest between those
	// for something better than what is in use, half of it the shortest.
	searchFirst  = 5 * time.Second
	searchMost   = 5 * time.Minute
	upgradeEvery = 5 * time.Minute
	// searchTime is how long one search can take.
	searchTime = 3 * time.Second
	// quietFirst to quietMost are the pauses between two handfuls of pings to
	// an address that never answered, whoever asks for them: up to a quarter
	// more, never less, since this is what a stranger is promised.
	quietFirst = 20 * time.Second
	quietMost  = 5 * time.Minute
	// detourAfter is how much later than a datagram by the relay its double may
	// come by the direct way.
	detourAfter = 300 * time.Millisecond
	// callGap and echoGap limit what a peer's probes can make us send.
	callGap = 200 * time.Millisecond
	echoGap = time.Second

	// mostSpots bounds what is remembered of a peer: twice the candidates, and
	// guesses for two of them.
	mostSpots = 3 * mostCandidates
	// recentIDs is how many of the peer's probes are known again.
	recentIDs = 128
)

// recallAfter is how long after the start of a search a call is repeated that was
// not answered: it was lost, or the peer's map did not have us yet.
var recallAfter = []time.Duration{300 * time.Millisecond, 800 * time.Millisecond, 1800 * time.Millisecond}

// send is what a finder wants sent.
type send struct {
	to netip.AddrPort // the zero value: by the relay
	m  probe
}

// finder looks for the direct ways to one peer and chooses among them. It does
// no I/O: Handle takes what the peer said, Tick the time, and both return what
// to send; choice tells where data goes. It is not safe for concurrent use.
type finder struct {
	random *rand.Rand
	here   *locality
	spots  []*spot // in the order in which they were learnt
	proofs int     // changes whenever the set of proved spots does

	relay     *spot     // not an address: what is known of the way by the relay
	noRelay   bool      // there is none at present
	noRelayAt time.Time // since when
	descends  bool      // guesses are made from the last to the first; true on one side

	use         *spot // nil: the relay
	confirmed   bool  // the peer says that data arrives by use
	confirmedAt time.Time
	askGap      time.Duration // pause between pings while not confirmed

	trafficAt  time.Time // when data was last seen
	searchAt   time.Time
	nextSearch time.Time
	wait       time.Duration // before the search after the next
	callAt     time.Time
	called     bool // the peer's candidates are known
	answered   bool // the peer has called since our last search began
	recalls    int  // how often that was asked for again
	failed     int  // searches in vain, in a row
	lossy      bool // the last path was left for loss
	weighed    time.Time
	foretold   netip.AddrPort // where the peer's NAT will put its next mapping
	step       int16          // and how far apart they are; 0: unknown
	guessAt    time.Time      // guesses are made; zero: none are to be
	guessNext  time.Time      // none before
	guessWait  time.Duration  // before those after the next
	unaskedAt  time.Time      // see unasked
	peerNoUDP  bool           // the peer says that its network lets no UDP out
	crowd      favour         // of the addresses that there is no room for
	hushed     bool           // see Hushed
	narrow     bool           // the last path was left because it carries nothing long

	seen    map[probeID]struct{} // the peer's last pings and calls
	seenAll []probeID            // the same, oldest first
}

func newFinder(random *rand.Rand, here *locality) *finder {
	return &finder{random: random, here: here, relay: &spot{tally: &tally{}}}
}

// choice is where data goes: to the relay, to the spot, or to both.
type choice struct {
	spot *spot // nil: the relay only
	both bool
}

func (f *finder) choice() choice { return choice{f.use, !f.confirmed} }

// Handle takes a probe of the peer's that came from an address, or by the relay
// when that is the zero value. It reports whether the probe was of use.
func (f *finder) Handle(now time.Time, from netip.AddrPort, m probe) (out []send, ok bool) {
	direct := from.IsValid()
	switch {
	case direct && !f.here.passes(from.Addr()):
		return nil, false
	case m.kind == probePing:
		if !f.first(m.id) {
			return nil, false
		}
		if !direct {
			return []send{{m: probe{kind: probePong, id: m.id, got: uint32(f.relay.tally.got.Load())}}}, true
		}
		return f.handlePing(now, from, m), true
	case m.kind == probePong && direct:
		return f.handlePong(now, from, m)
	case m.kind == probePong:
		p, ok := f.relay.answered(now, m.id)
		if ok {
			f.relay.compare(now, p, m.got)
			f.weigh(now)
		}
		return nil, ok
	case m.kind == probeCallMe && !direct:
		if !f.first(m.id) {
			return nil, false
		}
		return f.handleCall(now, m), true
	}
	return nil, false
}

// first reports whether an id is new, and remembers it.
func (f *finder) first(id probeID) bool {
	if _, again := f.seen[id]; again {
		return false
	}
	if f.seen == nil {
		f.seen = map[probeID]struct{}{}
	}
	if len(f.seenAll) == recentIDs {
		delete(f.seen, f.seenAll[0])
		f.seenAll = f.seenAll[1:]
	}
	f.seen[id] = struct{}{}
	f.seenAll = append(f.seenAll, id)
	return true
}

func (f *finder) handlePong(now time.Time, from netip.AddrPort, m probe) ([]send, bool) {
	s := f.find(from)
	if s == nil {
		return nil, false
	}
	was := s.proved()
	silent := s.missed > mostPings/2
	p, ok := s.answered(now, m.id)
	if !ok {
		return nil, s.measured(now, m.id)
	}
	s.observed = m.observed
	if silent { // what was lost in a cut says nothing of how it is now
		s.window = window{}
	}
	if !was {
		f.proofs++
	}
	if v := s.compare(now, p, m.got); f.open(now, s) {
		f.take(now, s, v)
	}
	f.choose(now)
	return nil, true
}

// take draws the conclusion from what arrives at an address.
func (f *finder) take(now time.Time, s *spot, v verdict) {
	inUse := s == f.use
	switch v = f.judge(now, s, v); v {
	case verdictSilent:
		if inUse {
			f.doubt(now)
		}
	case verdictBlocked:
		f.leave(now, s)
	case verdictLossy:
		if inUse && !s.lossy && (now.After(s.weighAt) || s.last.share() > s.heavy+worse) {
			s.lossy, f.confirmed = true, false
			f.beginWeighing(now)
		}
	case verdictClean:
		s.lossy, s.weighWait, s.heavy, s.weighAt = false, 0, 0, time.Time{}
		fallthrough
	case verdictArrives:
		if inUse && s.shrunk() && !s.lossy && now.After(s.weighAt) {
			s.lossy, f.confirmed, f.narrow = true, false, true
			f.beginWeighing(now)
		}
	}
	if inUse && s.lossy {
		f.weigh(now)
	}
	if inUse && f.use == s && !f.confirmed && !s.lossy && s.settled() && (v == verdictArrives || v == verdictClean) {
		f.confirm(now)
	}
}

func (f *finder) confirm(now time.Time) {
	f.confirmed, f.confirmedAt = true, now
	f.lossy, f.narrow, f.failed, f.wait = false, false, 0, 0
	f.guessNext, f.guessWait = time.Time{}, 0
	f.nextSearch = now.Add(upgradeEvery)
}

// doubt sends on both ways again, and asks at once.
func (f *finder) doubt(now time.Time) {
	if f.confirmed {
		f.confirmed = false
		f.nextSearch = now
	}
	f.askGap = 0
}

// quit goes back to the relay.
func (f *finder) quit(now time.Time) {
	f.use, f.confirmed = nil, false
	f.nextSearch, f.wait = now, 0
}

// handleCall takes the peer's candidates, tries them, and tells ours.
func (f *finder) handleCall(now time.Time, m probe) (out []send) {
	f.called, f.answered, f.peerNoUDP = true, true, m.noUDP
	f.foretold, f.step = m.next, m.step
	named := f.use != nil && f.use.listed
	for _, s := range f.spots {
		s.listed = false
	}
	for i, a := range m.candidates {
		if !f.here.takes(a) {
			continue
		}
		if s := f.spot(now, a); s != nil {
			s.listed, s.guess, s.mapped = true, false, m.mapped&(1<<i) != 0
			s.rank = f.here.rank(a.Addr(), s.mapped)
			if !s.fresh(now) {
				f.grant(now, s)
			}
		}
	}
	f.planGuess(now)
	if named && !f.use.listed { // it is no longer there
		f.Suspect()
	}
	if !m.answer && now.Sub(f.callAt) >= callGap {
		out = append(out, f.call(now, true))
	}
	return append(out, f.due(now)...)
}

func (f *finder) call(now time.Time, answer bool) send {
	f.callAt = now
	return send{m: probe{kind: probeCallMe, id: f.id(), answer: answer, candidates: f.here.candidates, mapped: f.here.mapped}}
}

// find returns the spot with an address, nil when there is none.
func (f *finder) find(a netip.AddrPort) *spot {
	for _, s := range f.spots {
		if s.addr == a {
			return s
		}
	}
	return nil
}

// spot is find, and learns the address when there is room.
func (f *finder) spot(now time.Time, a netip.AddrPort) *spot {
	if s := f.find(a); s != nil {
		return s
	}
	if len(f.spots) >= mostSpots {
		f.forget(now)
	}
	if len(f.spots) >= mostSpots {
		return nil
	}
	s := &spot{addr: a, rank: f.here.rank(a.Addr(), false), tally: &tally{}}
	f.spots = append(f.spots, s)
	return s
}

// forget makes room. What was probed in vain stays until it may be probed
// again and was not, or a peer could have it probed as often as it names it.
// What answered lately stays as well: see resort.
func (f *finder) forget(now time.Time) {
	f.spots = slices.DeleteFunc(f.spots, func(s *spot) bool {
		return s != f.use && !s.listed && !s.proved() && now.After(s.again.Add(2*s.quiet)) && now.After(s.leftUntil) && now.After(s.favour.until) &&
			!f.resorts(now, s)
	})
}

// grant lets an address be pinged a handful of times, if it has answered before
// or was left alone for long enough.
func (f *finder) grant(now time.Time, s *spot) {
	if !s.due.IsZero() || !s.proved() && now.Before(s.again) {
		return
	}
	s.tries, s.due = 0, now
	if s.guess {
		s.tries = len(pingGaps) - 3
	}
	if !s.proved() {
		s.quiet = min(max(2*s.quiet, quietFirst), quietMost)
		s.again = now.Add(backOff(s.quiet, s.quiet*5/4, f.below))
	}
}

// due sends the pings whose time has come.
func (f *finder) due(now time.Time) (out []send) {
	for _, s := range f.spots {
		if s.due.IsZero() || s.due.After(now) {
			continue
		}
		out = append(out, f.ping(now, s))
		gap := pingGaps[min(s.tries, len(pingGaps)-1)]
		s.tries++
		s.due = time.Time{}
		if gap > 0 {
			s.due = now.Add(gap)
		}
	}
	if !f.guessAt.IsZero() && !now.Before(f.guessAt) {
		f.guessAt = time.Time{}
		out = append(out, f.guess(now)...)
	}
	return out
}

func (f *finder) ping(now time.Time, s *spot) send {
	if len(s.pings) == mostPings {
		s.pings = s.pings[1:]
	}
	p := sentPing{f.id(), now, s.tally.sent.Load()}
	s.pings = append(s.pings, p)
	s.pingAt = now
	s.missed++
	return send{s.addr, probe{kind: probePing, id: p.id}}
}

func (f *finder) id() (id probeID) {
	binary.LittleEndian.PutUint64(id[:], f.random.Uint64())
	binary.LittleEndian.PutUint32(id[8:], f.random.Uint32())
	return id
}

// below returns a duration below d, at random.
func (f *finder) below(d time.Duration) time.Duration {
	return time.Duration(f.random.Int64N(int64(d)))
}

// Tick does what is due. sent says whether data was sent to the peer since the
// last call, by whatever way. It returns when to call again; traffic must lead
// to a call too, when next is the zero value.
func (f *finder) Tick(now time.Time, sent bool) (out []send, next time.Time) {
	for _, s := range f.spots {
		if s.look(now) {
			sent = true
		}
		f.age(now, s)
	}
	if sent {
		if now.Sub(f.trafficAt) > activeFor {
			f.wake(now)
		}
		f.trafficAt = now
	}
	f.choose(now)
	active := f.active(now)
	if active && !now.Before(f.nextSearch) {
		out = append(out, f.search(now))
	}
	if active && !f.answered && f.recalls < len(recallAfter) && now.Sub(f.searchAt) >= recallAfter[f.recalls] {
		f.recalls++
		out = append(out, f.call(now, false))
	}
	out = append(out, f.due(now)...)
	if active && f.use != nil {
		out = append(out, f.maintain(now)...)
	}
	if active {
		out = append(out, f.echo(now)...)
	}
	if active && f.noRelay {
		out = append(out, f.resort(now)...)
	}
	return out, f.next(now)
}

func (f *finder) active(now time.Time) bool {
	return !f.trafficAt.IsZero() && now.Sub(f.trafficAt) <= activeFor
}

// wake begins anew after a pause.
func (f *finder) wake(now time.Time) {
	f.wait = 0
	f.askGap = 0
	f.nextSearch = now
	if soonest := f.searchAt.Add(searchFirst); !f.searchAt.IsZero() && soonest.After(now) {
		f.nextSearch = soonest
	}
	if f.use != nil { // the pause is no silence
		f.use.waiting, f.use.missed = now, 0
	}
}

// age lets proofs end.
func (f *finder) age(now time.Time, s *spot) {
	if !s.proved() {
		return
	}
	dead := s.missed >= mostPings && now.Sub(s.heardAt) > deadAfter
	if dead || now.Sub(s.heardAt) > proofLife && now.Sub(s.provedAt) > proofLife {
		s.provedAt, s.rtt = time.Time{}, 0
		s.window = window{}
		f.proofs++
		if f.use == s {
			f.quit(now)
		}
	}
}

// choose picks the address to use: the one in use, unless another one that
// answers is better, or it does not answer itself.
func (f *finder) choose(now time.Time) {
	if f.use != nil && !f.open(now, f.use) {
		f.quit(now)
	}
	best := f.use
	dead := best != nil && !f.confirmed && best.missed >= 3 // while another answers, it is not waited for
	for _, s := range f.spots {
		if s == best || !f.open(now, s) || !s.fresh(now) {
			continue
		}
		if best == nil || !best.fresh(now) || best == f.use && dead && s.missed < 3 || s.better(best) || best != f.use && s.rtt < best.rtt && s.rank == best.rank {
			best = s
		}
	}
	if best != f.use {
		f.use, f.confirmed = best, false
		f.askGap = 0
		best.window, best.waiting = window{}, time.Time{}
		f.beginWeighing(now)
	}
	if f.confirmed && !f.use.fresh(now) {
		f.confirmed = false
	}
}

// search calls the peer, and pings all that it may be reached at.
func (f *finder) search(now time.Time) send {
	f.forget(now)
	if f.called && f.use == nil && !f.searchAt.IsZero() && now.Sub(f.searchAt) >= searchTime {
		f.failed++
	}
	f.searchAt, f.answered, f.recalls = now, false, 0
	f.wait = min(max(2*f.wait, searchFirst), searchMost)
	f.nextSearch = now.Add(backOff(searchTime, f.wait, f.below))
	if f.confirmed {
		f.nextSearch = now.Add(backOff(upgradeEvery/2, upgradeEvery, f.below))
	}
	for _, s := range f.spots {
		if !s.guess && (!s.fresh(now) || s != f.use) {
			f.grant(now, s)
		}
	}
	return f.call(now, false)
}

// maintain asks the address in use whether it is there, and whether data
// arrives.
func (f *finder) maintain(now time.Time) (out []send) {
	s := f.use
	since := now.Sub(s.pingAt)
	silent := time.Duration(0)
	if !s.waiting.IsZero() {
		silent = now.Sub(s.waiting)
	}
	// Data that comes says nothing of what leaves, so pings count as well.
	unanswered := s.missed >= 3 && since >= askAgain
	one := 1
	if s.heavy > 0 { // it is known to lose, and the relay was no better
		one = 2
	}
	if f.confirmed && (unanswered || silent >= askAfter+max(doubtAfter, 2*s.rtt) && s.missed >= one) {
		f.doubt(now)
	}
	if s.lossy && !f.confirmed && !f.noRelay && now.Sub(f.relay.pingAt) >= weighEvery {
		out = append(out, f.ping(now, f.relay))
	}
	quiet := s.talked && now.Sub(s.heardAt) >= hush
	if quiet {
		s.talked, f.hushed = false, true
	}
	switch {
	case !s.due.IsZero(): // a handful is on its way
	case !f.confirmed && since >= f.askGap:
		f.askGap = min(max(2*f.askGap, 2*activePoll), unconfirmedAsk)
		out = append(out, f.ping(now, s))
	case quiet, since >= heartbeat, since >= unconfirmedAsk && s.missed > 0, since >= askAgain && silent >= askAfter,
		since >= 2*askAgain && s.missed > 1:
		out = append(out, f.ping(now, s))
	}
	return out
}

// next returns when Tick has something to do.
func (f *finder) next(now time.Time) time.Time {
	var next time.Time
	soon := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	if !f.guessAt.IsZero() {
		soon(f.guessAt)
	}
	for _, s := range f.spots {
		if !s.due.IsZero() {
			soon(s.due)
		}
		if s.proved() {
			soon(now.Add(trust)) // proofs end with nobody asking
		}
	}
	if f.active(now) {
		soon(now.Add(activePoll))
	}
	return next
}
