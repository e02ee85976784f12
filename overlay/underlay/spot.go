package underlay

import (
	"math"
	"net/netip"
	"sync/atomic"
	"time"
)

// tally counts WireGuard's datagrams to and from one address of a peer. The
// carrier and the receivers count, the finder reads.
type tally struct{ sent, got atomic.Uint64 }

// rank orders addresses before round trips are compared; the least is best.
type rank int

const (
	rankLAN    rank = iota // on a network that this machine is on too
	rankIPv6               // no NAT in between
	rankIPv4               // as others see it through its NAT
	rankMapped             // a port that its router, or the operator, forwards
)

// spot is an address at which a peer may be, and what is known of it.
type spot struct {
	addr   netip.AddrPort
	rank   rank
	listed bool // the peer named it last time
	mapped bool // and said that it is a forwarded port
	guess  bool // a port next to a named one
	tally  *tally

	// Proof: it answered a ping of ours.
	provedAt time.Time // last time; zero: not, or too long ago
	lastAt   time.Time // the same, and never forgotten
	rtt      time.Duration
	pings    []sentPing // unanswered ones, oldest first
	pingAt   time.Time
	missed   int // pings since the last answer
	observed netip.AddrPort

	// Probing without proof: a handful of pings, then a pause that grows.
	tries  int
	due    time.Time // of the next one; zero: none
	again  time.Time // not before, unless it is proved
	quiet  time.Duration
	favour favour // what it got because pings came from it

	// Traffic.
	sentSeen, gotSeen uint64    // tally, as last looked at
	heardAt           time.Time // last data or answer
	waiting           time.Time // since when we send and hear nothing; zero: not
	talked            bool      // data came since the silence was last asked about
	detour            bool      // the peer's data came by the relay instead, and we asked what that means
	window            window
	last              loss   // in the last whole window
	lossy             bool   // it is weighed against the relay before it is used alone
	base              window // where that began
	sum               loss   // since then

	gauge  *gauge    // how long a datagram may be; nil: it was never used
	stayed verdict   // of losses, until it is known whether only long ones are lost
	stayAt time.Time // when it was

	leftUntil time.Time // not used before
	penalty   time.Duration
	heavy     float64   // the share it lost when last weighed, and the relay was no better
	weighAt   time.Time // not weighed again before, unless it gets worse
	weighWait time.Duration
}

type sentPing struct {
	id   probeID
	at   time.Time
	sent uint64 // tally when it left
}

// window is where a measurement of loss began: our count and the peer's.
type window struct {
	at   time.Time // zero: none has begun
	sent uint64
	got  uint32
}

const (
	// mostPings is how many unanswered pings are remembered per address.
	mostPings = 8
	// trust is how long an answer, or data, stands for the address.
	trust = 6500 * time.Millisecond
	// proofLife is how long an address that answered counts as the peer's:
	// what comes from it is taken, and it may be tried without a new call.
	proofLife = 5 * time.Minute
)

// pingGaps are the pauses after each ping of a handful: the first few meet the
// peer's own, sent when it got our call, so that both NATs have sent before
// either has to let something in.
var pingGaps = []time.Duration{
	100 * time.Millisecond, 200 * time.Millisecond, 300 * time.Millisecond, 600 * time.Millisecond, 0,
}

func (s *spot) proved() bool { return !s.provedAt.IsZero() }

func (s *spot) fresh(now time.Time) bool { return s.proved() && now.Sub(s.heardAt) < trust }

func (s *spot) usable(now time.Time) bool { return s.proved() && !now.Before(s.leftUntil) }

// look takes note of traffic since the last look, and reports whether there was
// any.
func (s *spot) look(now time.Time) (traffic bool) {
	sent, got := s.tally.sent.Load(), s.tally.got.Load()
	if got != s.gotSeen {
		s.heard(now)
		s.talked, s.detour = true, false
	} else if sent != s.sentSeen && s.waiting.IsZero() {
		s.waiting = now
	}
	traffic = got != s.gotSeen || sent != s.sentSeen
	s.sentSeen, s.gotSeen = sent, got
	return traffic
}

func (s *spot) heard(now time.Time) {
	s.heardAt, s.waiting = now, time.Time{}
}

// better reports whether s, which answers, is worth leaving u for, which does
// too.
func (s *spot) better(u *spot) bool {
	if s.rank != u.rank {
		return s.rank < u.rank
	}
	return s.rtt+max(u.rtt/5, 10*time.Millisecond) < u.rtt
}

// answered takes an answer to a ping. It returns the ping, or false when there
// is none of this id.
func (s *spot) answered(now time.Time, id probeID) (sentPing, bool) {
	for i, p := range s.pings {
		if p.id != id {
			continue
		}
		s.pings = append(s.pings[:i], s.pings[i+1:]...)
		rtt := max(now.Sub(p.at), time.Microsecond)
		if s.rtt == 0 {
			s.rtt = rtt
		} else {
			s.rtt += (rtt - s.rtt) / 8 // as TCP does (RFC 6298)
		}
		s.heard(now)
		s.provedAt, s.lastAt, s.missed, s.due = now, now, 0, time.Time{}
		s.quiet, s.again, s.favour = 0, time.Time{}, favour{echoAt: s.favour.echoAt}
		return p, true
	}
	return sentPing{}, false
}

// verdict is what a comparison of counts says about an address.
type verdict int

const (
	verdictNone    verdict = iota
	verdictArrives         // data arrives
	verdictClean           // enough of it to know that little is lost
	verdictLossy           // much is lost
	verdictBlocked         // none arrives, for a while
	verdictSilent          // none arrives
)

const (
	// fewest is how many datagrams must vanish before it is more than chance.
	fewest = 5
	// enough is how many make a share of losses.
	enough = 100
	// heavyShare of less than that is more than chance too, where 5 are lost.
	heavyShare = 0.25
	// windowLeast and windowMost bound how long a measurement takes.
	windowLeast = 2 * time.Second
	windowMost  = 30 * time.Second
)

// compare compares how much was sent to the address with how much the peer got
// from it. p is the ping that the peer answered with its count.
func (s *spot) compare(now time.Time, p sentPing, got uint32) verdict {
	s.total(now, p, got)
	w := &s.window
	if w.at.IsZero() {
		*w = window{now, p.sent, got}
		return verdictNone
	}
	if p.sent < w.sent {
		return verdictNone // an old answer, late
	}
	sent, came := p.sent-w.sent, uint64(got-w.got)
	if came > math.MaxUint32/2 { // the peer counts anew
		*w = window{now, p.sent, got}
		return verdictNone
	}
	age := now.Sub(w.at)
	if came == 0 && sent >= fewest {
		if age >= windowLeast {
			return verdictBlocked
		}
		return verdictSilent
	}
	v := verdictNone
	if came > 0 {
		v = verdictArrives
	}
	l := loss{sent: float64(sent), lost: max(0, float64(sent)-float64(came))}
	// Where nobody answers what is long, fewer tell: TCP, of which the long ones
	// are lost, soon sends next to nothing.
	few := s.gauge != nil && s.gauge.deaf && l.lost >= fewest && l.share() >= heavyShare
	if (sent >= enough || few) && age >= windowLeast {
		if v = verdictClean; l.exceeds(loss{}) {
			v = verdictLossy
		}
		s.last = l
		*w = window{now, p.sent, got}
	} else if age > windowMost {
		*w = window{now, p.sent, got}
	}
	return v
}

// total counts what was sent and lost since the weighing began.
func (s *spot) total(now time.Time, p sentPing, got uint32) {
	came := uint64(got - s.base.got)
	if s.base.at.IsZero() || came > math.MaxUint32/2 { // the latter: the peer counts anew
		s.base, s.sum = window{now, p.sent, got}, loss{}
		return
	}
	if p.sent < s.base.sent {
		return // an old answer, late
	}
	sent := float64(p.sent - s.base.sent)
	s.sum = loss{sent: sent, lost: max(0, sent-float64(came))}
}
