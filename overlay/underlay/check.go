package underlay

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"overlayd/overlay/relay"
)

// Check is what this machine's network lets through, measured with the sockets
// that carry the traffic, so that the NAT mapping that is seen is the one that
// is used.
type Check struct {
	IPv4, IPv6 bool // there is a socket
	Own        []netip.AddrPort
	Relays     []RelayCheck
	Seen       []Seen
	Unasked    time.Time // when a peer last got in from an address that we had not sent to; zero: never
}

// RelayCheck is a relay and what came back from its addresses by UDP.
type RelayCheck struct {
	RelayStatus
	Echoes []Echo // one per address
}

// Echo is a relay's answer at one of its addresses, or the lack of one.
type Echo struct {
	Addr     netip.AddrPort
	RTT      time.Duration  // 0: none came
	Observed netip.AddrPort // where the relay saw us; the zero value: it did not say
	Err      error          // why nothing was sent
}

// Seen says from where somebody got what our socket sent.
type Seen struct {
	By netip.AddrPort // where it was sent to
	As netip.AddrPort
}

// Mapping is how a NAT gives out ports, in the words of RFC 4787.
type Mapping string

// The mappings.
const (
	MappingUnknown     Mapping = "unknown"                   // too few have told where they see us
	MappingNone        Mapping = "none"                      // our own address is what others see
	MappingIndependent Mapping = "endpoint_independent"      // one outer port towards everybody
	MappingDependent   Mapping = "address_or_port_dependent" // another one for each destination: symmetric
)

// MappingOf finds out how the NAT in the way of one address family maps: it
// takes two destinations at other addresses to tell, one to see that there is
// no NAT.
func MappingOf(is4 bool, own []netip.AddrPort, seen []Seen) Mapping {
	first, m := Seen{}, MappingUnknown
	for _, s := range seen {
		switch {
		case s.As.Addr().Is4() != is4 || !s.As.IsValid():
			continue
		case slices.Contains(own, s.As):
			if m == MappingUnknown {
				m = MappingNone
			}
		case !first.As.IsValid():
			first = s
			if m == MappingNone {
				m = MappingUnknown
			}
		case s.As != first.As:
			return MappingDependent
		case s.By.Addr() != first.By.Addr():
			m = MappingIndependent
		}
	}
	return m
}

const (
	// checkPatience is how long a relay may take to answer; the slowest way
	// around the world by satellite takes 1.2 s.
	checkPatience = 1500 * time.Millisecond
	// pongAge is how old a peer's pong may be to count as now: three heartbeats.
	pongAge = 3*heartbeat + time.Second
)

// checkGaps are the pauses after each question: one may be lost.
var checkGaps = []time.Duration{250 * time.Millisecond, 500 * time.Millisecond}

var errNoSocket = errors.New("this machine has no socket of that family")

// errNoTicket means that the coordinator has not let us use the relay yet.
var errNoTicket = errors.New("no ticket for this relay has come from the coordinator yet")

// Check asks every relay, at each of its addresses, where it sees us. The
// sessions are not disturbed. When the sockets are on another port before it has
// ended, it begins anew there: once, as two moves are further apart than that
// takes.
func (b *Bind) Check(ctx context.Context) Check {
	b.checking.Lock()
	defer b.checking.Unlock()
	legs := b.snapshot()
	heard := make(chan struct{}, 1)
	defer func() {
		for _, l := range legs {
			l.askNoMore()
		}
	}()
	if moved := b.inquire(ctx, legs, heard); moved {
		b.inquire(ctx, legs, heard)
	}
	return b.checked(time.Now(), legs)
}

// inquire asks until all is answered or nothing more will be. It ends early and
// reports so when the sockets are others than at the start: what was asked by
// the old ones will not be answered, and nothing can be asked by them.
func (b *Bind) inquire(ctx context.Context, legs []*leg, heard chan struct{}) (moved bool) {
	ls := b.lines.Load()
	for _, l := range legs {
		l.ask(heard)
	}
	end := time.NewTimer(checkPatience)
	defer end.Stop()
	again := time.NewTimer(0)
	defer again.Stop()
	for try, open := 0, true; open; {
		select {
		case <-ctx.Done():
			open = false
		case <-end.C:
			open = false
		case <-again.C:
			for _, l := range legs {
				l.askAgain(time.Now(), ls)
			}
			if try < len(checkGaps) {
				again.Reset(checkGaps[try])
			}
			try++
		case <-heard:
		}
		if b.lines.Load() != ls {
			return true
		}
		open = open && slices.ContainsFunc(legs, (*leg).unanswered)
	}
	return false
}

// checked gathers what is known.
func (b *Bind) checked(now time.Time, legs []*leg) Check {
	ls := b.lines.Load()
	c := Check{IPv4: ls.v4 != nil, IPv6: ls.v6 != nil}
	b.mu.Lock()
	for _, a := range b.local.Addrs {
		c.Own = append(c.Own, netip.AddrPortFrom(a, b.port))
	}
	b.mu.Unlock()
	for _, l := range legs {
		r := RelayCheck{RelayStatus: l.status(), Echoes: l.echoes()}
		c.Relays = append(c.Relays, r)
		for _, e := range r.Echoes {
			if e.Observed.IsValid() {
				c.Seen = append(c.Seen, Seen{e.Addr, e.Observed})
			}
		}
	}
	for _, p := range b.table.Load().peers {
		p.mu.Lock()
		if p.finder != nil {
			c.Seen = append(c.Seen, p.finder.witnesses(now)...)
			if p.finder.unaskedAt.After(c.Unasked) {
				c.Unasked = p.finder.unaskedAt
			}
		}
		p.mu.Unlock()
	}
	return c
}

// witnesses are the addresses of the peer's that told lately where they see us.
func (f *finder) witnesses(now time.Time) (seen []Seen) {
	for _, s := range f.spots {
		if s.proved() && now.Sub(s.provedAt) <= pongAge && s.rank != rankLAN && s.observed.IsValid() {
			seen = append(seen, Seen{s.addr, s.observed})
		}
	}
	return seen
}

// unasked takes note of a ping from outside where nothing of ours had gone: our
// NAT's filter, if there is one, lets everybody in.
func (f *finder) unasked(now time.Time, from netip.AddrPort) {
	if contain(f.here.lans, from.Addr()) || from.Addr().IsPrivate() || from.Addr().IsLoopback() {
		return
	}
	for _, s := range f.spots {
		if s.addr.Addr() == from.Addr() && !s.pingAt.IsZero() {
			return
		}
	}
	f.unaskedAt = now
}

// question is a relay's address that is asked, each time anew so that the
// answer tells the round trip.
type question struct {
	echo  Echo
	tries []asked
}

type asked struct {
	*relay.Inquiry
	at time.Time
}

// ask opens a question per address; heard gets a token whenever one is answered,
// and when the sockets are others.
func (l *leg) ask(heard chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heard = heard
	l.questions = nil
	if l.port != nil {
		return
	}
	for _, a := range l.addrs {
		q := &question{echo: Echo{Addr: a}}
		if len(l.ticket) == 0 {
			q.echo.Err = errNoTicket
		}
		l.questions = append(l.questions, q)
	}
}

func (l *leg) askNoMore() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.questions, l.heard = nil, nil
}

// askAgain sends what has not been answered.
func (l *leg) askAgain(now time.Time, ls *lines) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, q := range l.questions {
		if q.echo.RTT > 0 || len(l.ticket) == 0 {
			continue
		}
		line := ls.to(q.echo.Addr.Addr())
		if line == nil {
			q.echo.Err = errNoSocket
			continue
		}
		t := asked{relay.NewInquiry(l.ticket, l.key), now}
		switch err := line.sock.Send(q.echo.Addr, t.Frame()); {
		case err == nil:
			q.echo.Err = nil
			q.tries = append(q.tries, t)
		case len(q.tries) == 0: // else it was asked all the same
			q.echo.Err = err
		}
	}
}

// unanswered reports whether an answer may still come.
func (l *leg) unanswered() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.questions, func(q *question) bool { return q.echo.RTT == 0 && q.echo.Err == nil })
}

// answers takes a control message that answers a question; the caller holds mu.
func (l *leg) answers(now time.Time, src netip.AddrPort, frame []byte) bool {
	for _, q := range l.questions {
		if q.echo.Addr != src {
			continue
		}
		for _, t := range q.tries {
			observed, ok := t.Answer(frame)
			if !ok {
				continue
			}
			if q.echo.RTT == 0 {
				q.echo.RTT, q.echo.Observed = max(now.Sub(t.at), time.Microsecond), observed
			}
			l.nudge()
			return true
		}
	}
	return false
}

// nudge makes a Check look, if there is one; the caller holds mu.
func (l *leg) nudge() {
	select {
	case l.heard <- struct{}{}:
	default: // it will look anyway
	}
}

func (l *leg) echoes() (all []Echo) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, q := range l.questions {
		all = append(all, q.echo)
	}
	return all
}
