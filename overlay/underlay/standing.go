package underlay

import (
	"time"

	"overlayd/overlay/relay"
)

const (
	// doubtLeast is how long a relay may take to answer before it is doubted;
	// twice its round trip, if that is longer.
	doubtLeast = 250 * time.Millisecond
	// doubtMost is how long a doubt may last before it is a fall.
	doubtMost = 900 * time.Millisecond
	// settleFirst to settleMost are how long a relay that fell has to serve
	// before peers move back to it only because it is nearer; twice as long
	// after each fall.
	settleFirst = 5 * time.Second
	settleMost  = 5 * time.Minute
	// fallsForgiven is how long a relay has to serve for its falls to be forgotten.
	fallsForgiven = 10 * time.Minute
	// tlsHandicap is what TLS costs a relay in milliseconds of round trip: UDP
	// to one that is a continent away is still better.
	tlsHandicap = 100 * time.Millisecond
)

// sight is a relay as choices see it.
type sight struct {
	id      string
	label   relay.Label   // what peers call it
	up      bool          // there is a session
	doubted bool          // it was asked and has not answered for longer than it should
	settled bool          // it serves for long enough to be moved to for its cost
	cost    time.Duration // the round trip, more by TLS; 0: unknown
}

// standing is how well a relay has served lately. It does no I/O: facts and time
// come in, a sight comes out.
type standing struct {
	sight
	since time.Time // when it last came up, or went down
	doubt time.Time // when it was asked what it has not answered; zero: it has
	falls int
}

// report is what a leg says of its session.
type report struct {
	up      bool
	doubted time.Time // when it was asked what it has not answered; zero: it has
	rtt     time.Duration
	tls     bool
}

// look takes note of a report. It returns when to look again, if nothing
// happens; zero: need not be.
func (s *standing) look(now time.Time, r report) (next time.Time) {
	if s.up && (!r.up || s.doubted && r.doubted.IsZero() && now.Sub(s.doubt) >= doubtMost) {
		s.falls++
		s.since = now
	}
	if r.up && !s.up {
		s.since = now
	}
	s.up, s.doubted, s.doubt = r.up, false, r.doubted
	if !r.up {
		s.settled = false
		return time.Time{}
	}
	if !r.doubted.IsZero() {
		at := r.doubted.Add(max(doubtLeast, 2*r.rtt))
		if s.doubted = !now.Before(at); !s.doubted {
			next = at
		}
	}
	s.price(r)
	if s.falls > 0 && now.Sub(s.since) >= fallsForgiven {
		s.falls = 0
	}
	at := s.since.Add(s.settling())
	if s.settled = !now.Before(at); !s.settled {
		next = sooner(next, at)
	}
	return next
}

// settling is how long the relay has to serve before it is settled.
func (s *standing) settling() time.Duration {
	if s.falls == 0 {
		return 0
	}
	if s.falls > 6 { // 320 s
		return settleMost
	}
	return min(settleFirst<<(s.falls-1), settleMost)
}

// price takes over a round trip that differs enough from the last one to be
// told to others.
func (s *standing) price(r report) {
	if r.rtt == 0 {
		return
	}
	cost := r.rtt
	if r.tls {
		cost += tlsHandicap
	}
	if s.cost == 0 || nearer(cost, s.cost) || nearer(s.cost, cost) {
		s.cost = cost
	}
}

const (
	// nearerBy is always a difference that matters, a fifth is one from
	// nearerLeast on: below that it is the machines, not the way.
	nearerBy    = 10 * time.Millisecond
	nearerLeast = 2 * time.Millisecond
)

// nearer reports whether a is better than b by so much that it matters.
func nearer(a, b time.Duration) bool {
	gain := b - a
	return gain >= nearerBy || gain >= nearerLeast && gain >= b/5
}
