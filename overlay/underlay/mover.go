package underlay

import (
	"context"
	"log/slog"
	"time"
)

const (
	// moveBridged is how long UDP goes unanswered, while a relay answers by TLS,
	// before it is tried from another port; moveAlone is that while nothing
	// answers, which is the rule when a relay is restarted.
	moveBridged = 2 * time.Second
	moveAlone   = 20 * time.Second
	// askedBridged and askedAlone are how many messages the kernel must have
	// taken meanwhile: on a machine without a route it takes none.
	askedBridged = 2
	askedAlone   = 10
	// moveFirst to moveMost are the longest gaps between two moves that help
	// nobody, moveLeast the shortest. In a network that lets no UDP out they go on:
	// at a few an hour, each of which may cost a mapping in the router and one
	// call per peer that is talked to.
	moveLeast = 15 * time.Second
	moveFirst = 30 * time.Second
	moveMost  = 20 * time.Minute
	// moveProven is how long UDP has to be answered before a silence counts as
	// the first one.
	moveProven = time.Minute
)

// mover decides when to leave the UDP port for another one: a router may hold a
// dead mapping for a port, so that everything from there vanishes although the
// network is fine. It does no I/O.
type mover struct {
	silent   time.Time     // since when UDP goes unanswered; zero: it does not
	answered time.Time     // since when it is answered; zero: it is not
	at       time.Time     // not to move before; while silent
	gap      time.Duration // after the next move; 0: none was in vain
}

// hearing is what a mover must know.
type hearing struct {
	asked   int  // messages that went to relays by UDP and were not answered
	answers bool // a relay or a peer answers by UDP
	bridged bool // a relay answers by TLS
}

// step says whether to move now, and when to ask again; zero: when something
// happens. random returns a duration below its argument.
func (m *mover) step(now time.Time, h hearing, random func(time.Duration) time.Duration) (move bool, next time.Time) {
	if h.answers || h.asked == 0 && m.silent.IsZero() {
		if m.silent = (time.Time{}); h.answers && m.answered.IsZero() {
			m.answered = now
		}
		return false, time.Time{}
	}
	if m.silent.IsZero() {
		if !m.answered.IsZero() && now.Sub(m.answered) >= moveProven {
			m.gap = 0
		}
		if m.silent = now; m.at.Before(now) {
			m.at = now.Add(backOff(moveBridged/2, moveBridged, random))
		}
	}
	m.answered = time.Time{}
	at, asked := m.at, askedBridged
	if !h.bridged {
		asked = askedAlone
		at = later(at, m.silent.Add(moveAlone))
	}
	if now.Before(at) {
		return false, at
	}
	if h.asked < asked {
		return false, time.Time{}
	}
	m.gap = min(max(2*m.gap, moveFirst), moveMost)
	m.at = now.Add(backOff(moveLeast, m.gap, random))
	m.silent = now
	return true, m.at
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// hears gathers what the mover must know; the caller holds no lock.
func (b *Bind) hears(now time.Time) (h hearing) {
	for _, l := range b.snapshot() {
		l.mu.Lock()
		if l.session != nil && l.port == nil {
			h.asked += l.asked
			h.answers = h.answers || l.up && l.session.Status().Doubted.IsZero()
			h.bridged = h.bridged || l.race.tls && l.tls.up()
		}
		l.mu.Unlock()
	}
	if h.answers || h.asked == 0 {
		return h
	}
	for _, p := range b.table.Load().peers {
		p.mu.Lock()
		h.answers = h.answers || p.finder != nil && p.finder.hears(now)
		p.mu.Unlock()
	}
	return h
}

// escape moves to another port when the mover says so. A port that the operator
// chose is kept: what is forwarded to it would be lost, and so would be the sense
// of forwarding it.
func (b *Bind) escape(now time.Time) (next time.Time) {
	if b.o.Port != 0 || b.o.Own != nil {
		return time.Time{}
	}
	move, next := b.mover.step(now, b.hears(now), random)
	if !move {
		return next
	}
	old, err := b.move()
	if err != nil {
		b.log.Warn("UDP is not answered, and no other port can be opened", "err", err)
		return next
	}
	level := slog.LevelInfo
	if b.mover.gap > moveFirst { // the last one was in vain: that is told already
		level = slog.LevelDebug
	}
	b.log.Log(context.Background(), level, "UDP is not answered: another port is tried", "from", old, "to", b.localPort())
	if b.o.Moved != nil {
		b.o.Moved(b.localPort())
	}
	for _, l := range b.snapshot() {
		l.retry(now)
	}
	b.kickPeers(now)
	b.wake()
	return next
}

func (b *Bind) localPort() uint16 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.port
}

// move opens the sockets anew on another port, below the receivers that wait.
func (b *Bind) move() (old uint16, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old = b.port
	if !b.open {
		return old, nil
	}
	was := b.lines.Load()
	ls, got, err := openLines(0, 0, b.o.Mark)
	if err != nil {
		return old, err
	}
	// A family that has come up since has no receiver.
	for _, f := range []struct{ was, is **line }{{&was.v4, &ls.v4}, {&was.v6, &ls.v6}} {
		if *f.was == nil && *f.is != nil {
			(*f.is).sock.Close()
			*f.is = nil
		}
	}
	b.lines.Store(ls)
	b.port = got
	for _, l := range was.all() {
		b.closed = sum(b.closed, l.sock.Counters())
	}
	b.settleHere()
	b.rebuild()
	return old, was.close()
}

// retry tries UDP now, whatever its state, from a port that is new.
func (l *leg) retry(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.nudge()
	if l.session == nil {
		return
	}
	l.asked = 0
	l.race.retry(now)
	l.session.Kick(now)
}
