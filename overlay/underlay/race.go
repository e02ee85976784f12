package underlay

import "time"

const (
	// tlsAfter is the start that UDP has over TLS.
	tlsAfter = time.Second
	// doubtBeforeDial is how long a UDP session that was up goes unanswered
	// before a TLS connection is made, in case it is needed; twice the round
	// trip, if that is longer.
	doubtBeforeDial = 250 * time.Millisecond
	// doubtBeforeTLS is how long before that connection takes over: two PINGs
	// and most of a second.
	doubtBeforeTLS = 900 * time.Millisecond
	// udpFirst to udpMost are the longest gaps between two tries of UDP while TLS
	// carries the traffic, udpLeast the shortest; udpTry is how long one lasts.
	udpLeast = 15 * time.Second
	udpFirst = 30 * time.Second
	udpMost  = 5 * time.Minute
	udpTry   = 2 * time.Second
	// udpProven is how long UDP has to work before a failure starts from
	// udpFirst again: a network where it works for seconds is not asked often.
	udpProven = 5 * time.Minute

	// redialFirst to redialMost bound the gap between two tries of TLS: a random
	// part of it, so that nodes which lost their relay together come one by one.
	// While nobody takes the connection redialGone is the most: a try costs some
	// 60 bytes, and when the relay is back it should be found within seconds.
	redialFirst = time.Second
	redialMost  = time.Minute
	redialGone  = 8 * time.Second
	redialLeast = 250 * time.Millisecond
	// redialEach is the share of the gap that each node of a crowd has, before
	// the first dial too: together they dial a thousand times a second.
	redialEach = time.Millisecond
	// tlsProven is how long TLS has to work before its failure starts from
	// redialFirst again.
	tlsProven = 5 * time.Second
	// tlsPatience is how long a new connection may be without a session, and
	// tlsRelapse how long one that had one: its PINGs went unanswered before.
	tlsPatience = 5 * time.Second
	tlsRelapse  = 2 * time.Second
)

// race decides whether a relay is reached by UDP or by TLS. UDP starts first
// and wins whenever it answers. It does no I/O: facts and time come in, a
// orders comes out.
type race struct {
	tls      bool          // TLS carries the traffic
	wasUp    bool          // UDP was up since TLS carried it last
	since    time.Time     // when UDP began to go unanswered; zero: it has not
	udpSince time.Time     // when UDP was last seen to come up
	probe    time.Time     // when UDP is tried next, or a try ends; while tls
	probing  bool          // UDP is being tried; while tls
	gap      time.Duration // between two tries

	tlsSince time.Time     // when TLS took over
	openedAt time.Time     // when the connection was there without a session; zero: it is not
	lag      time.Duration // of the first dial since UDP went unanswered
	dials
}

// dials is what is remembered of TLS connections, whatever comes of them.
type dials struct {
	dialAt    time.Time // the last was begun
	undecided bool      // how long to wait after it depends on what comes of it
	redial    time.Time // not to dial before
	fails     int
}

// served takes note of a connection that is left because UDP is better: that did
// not fail, and the next one need not wait for it.
func (d *dials) served(now time.Time) {
	d.fails, d.redial, d.undecided = max(0, d.fails-1), now.Add(redialLeast), false
}

// facts are what a leg knows when it asks.
type facts struct {
	udp     bool      // the UDP session is up
	doubted time.Time // when it was asked what it has not answered; zero: it has
	rtt     time.Duration
	dialing bool
	gone    bool // the last dial found nobody there
	stream  bool // there is a TLS connection
	up      bool // and a session in it
	crowd   int  // nodes that lose the relay together
	closed  bool // none may be made: there is no way to dial, or the Bind is closed
}

// orders are what to do.
type orders struct {
	udp    bool // give the UDP session its turn
	fresh  bool // but forget what it knows first
	dial   bool
	attach bool // give the TLS session its turn
	hangUp bool
	next   time.Time // when to ask again, if nothing happens; zero: never
}

// step says what to do now. random returns a duration below its argument.
func (r *race) step(now time.Time, f facts, random func(time.Duration) time.Duration) orders {
	if r.tls {
		return r.onTLS(now, f, random)
	}
	return r.onUDP(now, f, random)
}

func (r *race) onUDP(now time.Time, f facts, random func(time.Duration) time.Duration) orders {
	v := orders{udp: true}
	if f.udp && f.doubted.IsZero() {
		if !r.wasUp {
			r.wasUp, r.udpSince = true, now
		}
		r.since = time.Time{}
		if v.hangUp = f.stream; f.stream { // made in case
			r.served(now)
		}
		return v
	}
	if r.since.IsZero() {
		r.since = now
		if f.udp {
			r.since = f.doubted
		}
		if r.lag = 0; f.crowd > 0 {
			r.lag = random(time.Duration(f.crowd) * redialEach)
		}
	}
	wait, takeover := tlsAfter, doubtBeforeTLS
	if r.wasUp {
		wait = max(doubtBeforeDial, 2*f.rtt)
		takeover = max(takeover, 3*f.rtt)
	}
	if f.up {
		r.takeOver(now, random)
		v.udp, v.fresh, v.attach = false, true, true
		v.next = r.probe
		return v
	}
	if f.stream {
		at := r.since.Add(takeover)
		if v.attach = !now.Before(at); !v.attach {
			v.next = at
			return v
		}
		return r.patient(now, v)
	}
	r.openedAt = time.Time{}
	return r.call(now, f, r.since.Add(wait+r.lag), v, random)
}

// takeOver makes TLS carry the traffic.
func (r *race) takeOver(now time.Time, random func(time.Duration) time.Duration) {
	switch {
	case r.gap == 0, r.wasUp && now.Sub(r.udpSince) >= udpProven:
		r.gap = udpFirst
	case r.wasUp:
		r.gap = min(2*r.gap, udpMost)
	}
	*r = race{tls: true, gap: r.gap, probe: now.Add(backOff(udpLeast, r.gap, random)), tlsSince: now, dials: r.dials}
}

func (r *race) onTLS(now time.Time, f facts, random func(time.Duration) time.Duration) orders {
	if r.fails > 0 && now.Sub(r.tlsSince) >= tlsProven {
		r.fails = 0
	}
	if r.probing && f.udp {
		if f.stream {
			r.served(now)
		}
		*r = race{wasUp: true, udpSince: now, gap: r.gap, dials: r.dials}
		return orders{udp: true, hangUp: true}
	}
	if !f.stream {
		fresh := !r.probing
		*r = race{since: now.Add(-tlsAfter), gap: r.gap, dials: r.dials}
		v := r.onUDP(now, f, random)
		v.fresh = fresh
		return v
	}
	v := orders{attach: true}
	if f.up {
		r.openedAt = time.Time{}
	} else if v = r.patient(now, v); v.hangUp {
		v.next = now
		return v
	}
	switch {
	case !now.Before(r.probe) && r.probing:
		r.probing = false
		r.gap = min(2*r.gap, udpMost)
		r.probe = now.Add(backOff(udpLeast, r.gap, random))
	case !now.Before(r.probe):
		r.probing = true
		r.probe = now.Add(udpTry)
		v.fresh = true
	}
	v.udp = r.probing
	v.next = sooner(v.next, r.probe)
	return v
}

// patient hangs up a connection in which no session comes up.
func (r *race) patient(now time.Time, v orders) orders {
	if r.openedAt.IsZero() {
		r.openedAt = now
	}
	at := r.openedAt.Add(tlsPatience)
	if r.tls {
		at = r.openedAt.Add(tlsRelapse)
	}
	if v.hangUp = !now.Before(at); v.hangUp {
		v.attach = false
		r.openedAt = time.Time{}
	}
	v.next = at
	return v
}

// call dials at a time, and not too often.
func (r *race) call(now time.Time, f facts, at time.Time, v orders, random func(time.Duration) time.Duration) orders {
	if f.dialing || f.closed {
		return v
	}
	if r.undecided {
		r.decide(f, random)
	}
	if at.Before(r.redial) {
		at = r.redial
	}
	if v.next = at; now.Before(at) {
		return v
	}
	v.dial, v.next = true, time.Time{}
	r.fails++
	r.dialAt, r.undecided = now, true
	return v
}

// decide chooses how long after the last dial the next one may be.
func (r *race) decide(f facts, random func(time.Duration) time.Duration) {
	most := redialMost
	if f.gone {
		most = redialGone
	}
	gap := most
	if before := r.fails - 1; before < 6 { // 64 s
		gap = min(redialFirst<<max(0, before), most)
	}
	gap = max(gap, time.Duration(f.crowd)*redialEach)
	r.redial, r.undecided = r.dialAt.Add(max(random(gap), redialLeast)), false
	if f.gone { // once it is there again, that does not count
		r.fails = min(r.fails, 3)
	}
}

// kick says that the network may have changed: UDP is tried at once.
func (r *race) kick(now time.Time) {
	if r.tls && !r.probing {
		r.probe, r.gap = now, udpFirst
	}
	if !r.tls && !r.undecided && r.redial.Sub(now) > redialFirst {
		r.redial, r.fails = now.Add(redialFirst), 0
	}
}

// retry tries UDP now, and else changes nothing.
func (r *race) retry(now time.Time) {
	if r.tls && !r.probing {
		r.probe = now
	}
}

// sooner is earlier for times of which zero is never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
