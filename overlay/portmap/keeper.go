package portmap

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// Protocol is a way to ask a router.
type Protocol string

// The protocols, in the order in which they are tried.
const (
	PCP    Protocol = "pcp"
	NATPMP Protocol = "nat-pmp"
	UPnP   Protocol = "upnp"
)

const (
	// lifetime is what we ask for: a mapping left behind by a machine that lost
	// power is gone soon.
	lifetime = 20 * time.Minute
	// shortest and longest bound what is believed of a router's answer: renewing
	// more often than every minute is no use, and after a day nobody knows.
	shortest = 2 * time.Minute
	longest  = 24 * time.Hour
	// checkEvery is how long a router's restart can go unnoticed; one datagram
	// each way. UPnP needs a TCP connection for it, so checkSlow.
	checkEvery = 20 * time.Second
	checkSlow  = 60 * time.Second
	// roundFirst to roundMost are the longest pauses between rounds that bring
	// nothing, roundLeast the shortest: all machines behind a router that fails
	// ask it.
	roundLeast = 5 * time.Second
	roundFirst = 15 * time.Second
	roundMost  = 30 * time.Minute
	// kickGap keeps a machine whose links change all the time from asking all
	// the time.
	kickGap = 10 * time.Second
)

// Target says whom to ask, and for what. The zero value: nobody.
type Target struct {
	Gateway netip.Addr // the default gateway, IPv4
	Local   netip.Addr // our address on the link to it
	Link    string     // that link
	Port    uint16     // our UDP port; 0: not open yet
}

func (t Target) askable() bool { return t.Gateway.Is4() && t.Local.Is4() && t.Port != 0 }

// lease is what a router granted.
type lease struct {
	protocol Protocol
	internal uint16
	external netip.AddrPort
	lifetime time.Duration // 0: for ever
	epoch    epoch
}

// epoch is a router's clock, which starts at 0 with it. The zero value: it has
// none.
type epoch struct {
	seconds uint32
	at      time.Time // ours, when it said so
}

// follows reports whether the router that said next has surely run since it said
// e. The rule, and its numbers, are of RFC 6887, section 8.5. What it allows for
// inexact clocks would hide the restart of a router that had only just started,
// so of such a one nothing is sure.
func (e epoch) follows(next epoch) bool {
	if e.at.IsZero() || next.at.IsZero() {
		return true
	}
	ours := int64(next.at.Sub(e.at) / time.Second)
	theirs := int64(next.seconds) - int64(e.seconds)
	switch {
	case theirs < -1, int64(e.seconds) <= 2+ours/16:
		return false
	case ours+2 < theirs-theirs/16, theirs+2 < ours-ours/16:
		return false
	}
	return true
}

var (
	errSilent = errors.New("no router answered")
	errGone   = errors.New("the router does not know the mapping any more")
)

type taskKind int

const (
	obtain  taskKind = iota + 1 // make the mapping, or renew it
	check                       // ask whether it is still there
	release                     // end it
)

// task is one conversation with the router.
type task struct {
	kind     taskKind
	protocol Protocol
	target   Target
	lease    lease // obtain: the one before, for the same port again; else the one meant
	moves    int   // the keeper's, when it was given out
}

// keeper decides what to ask the router, and when. It does no I/O, and is not
// safe for concurrent use.
type keeper struct {
	random *rand.Rand
	order  []Protocol

	target Target
	moves  int // how often target has changed
	// lease is meaningful while held.
	lease   lease
	held    bool
	renewAt time.Time
	expires time.Time

	next     time.Time // of the next task; not before askable
	asked    time.Time // the last one ended
	queue    []Protocol
	round    bool // a round is on: queue holds who is left to try
	wait     time.Duration
	known    Protocol // what the router of this target answered
	unwanted []lease  // to be released

	failed error // why the last round brought nothing; nil: none ended so
}

func newKeeper(random *rand.Rand) *keeper {
	return &keeper{random: random, order: []Protocol{PCP, NATPMP, UPnP}}
}

// Move says whom to ask from now on. What another router granted is left to
// expire: it can hardly be reached any more.
func (k *keeper) Move(now time.Time, t Target) {
	if t == k.target {
		return
	}
	old := k.target
	old.Port = t.Port
	if k.held && old == t {
		k.unwanted = append(k.unwanted, k.lease)
	} else if old != t {
		k.known, k.unwanted = "", nil
	}
	k.target = t
	k.moves++
	k.drop()
	k.failed, k.wait = nil, 0
	k.round, k.queue = false, nil
	k.next = now
}

func (k *keeper) drop() { k.lease, k.held = lease{}, false }

// Kick says that the network has changed in some way: look again soon.
func (k *keeper) Kick(now time.Time) {
	k.wait = 0
	soon := now
	if earliest := k.asked.Add(kickGap); !k.asked.IsZero() && earliest.After(soon) {
		soon = earliest
	}
	if soon.Before(k.next) {
		k.next = soon
	}
}

// Next returns what to do now, or when to ask again; the zero time: after the
// next Move.
func (k *keeper) Next(now time.Time) (t task, ok bool, at time.Time) {
	if k.held && !now.Before(k.expires) {
		k.drop()
	}
	if !k.target.askable() {
		return task{}, false, time.Time{}
	}
	if len(k.unwanted) > 0 {
		return k.task(release, k.unwanted[0].protocol, k.unwanted[0]), true, time.Time{}
	}
	if now.Before(k.next) {
		if k.held && k.expires.Before(k.next) {
			return task{}, false, k.expires
		}
		return task{}, false, k.next
	}
	if k.held && !k.round && now.Before(k.renewAt) {
		return k.task(check, k.lease.protocol, k.lease), true, time.Time{}
	}
	if !k.round {
		k.round, k.failed = true, nil
		k.queue = k.ordered()
	}
	return k.task(obtain, k.queue[0], k.lease), true, time.Time{}
}

func (k *keeper) task(what taskKind, p Protocol, l lease) task {
	return task{what, p, k.target, l, k.moves}
}

// ordered is whom to try, what worked before first.
func (k *keeper) ordered() []Protocol {
	all := slices.Clone(k.order)
	if i := slices.Index(all, k.known); i > 0 {
		all = slices.Insert(slices.Delete(all, i, i+1), 0, k.known)
	}
	return all
}

// Done tells how a task went: l is what an obtain was granted, or what a check
// found.
func (k *keeper) Done(now time.Time, t task, l lease, err error) {
	k.asked = now
	if t.kind == release {
		k.unwanted = slices.DeleteFunc(k.unwanted, func(u lease) bool { return u == t.lease })
		return
	}
	if t.moves != k.moves {
		k.outrun(now, t, l, err)
		return
	}
	switch {
	case t.kind == obtain && err == nil:
		k.granted(now, l)
	case t.kind == obtain:
		k.refused(now, t.protocol, err)
	case err != nil, !k.lease.epoch.follows(l.epoch), l.external.IsValid() && l.external != k.lease.external:
		if errors.Is(err, errGone) {
			k.drop()
		}
		k.renewAt, k.next = now, now
	default:
		k.lease.epoch = l.epoch
		k.settle(now)
	}
}

// outrun is Done for a task during which the target changed: only what was
// granted matters then, where the target is the same again, or its port alone is
// another.
func (k *keeper) outrun(now time.Time, t task, l lease, err error) {
	if err != nil || t.kind != obtain {
		return
	}
	old := t.target
	if old == k.target {
		k.granted(now, l)
	} else if old.Port = k.target.Port; old == k.target {
		k.unwanted = append(k.unwanted, l)
	}
}

// granted takes a mapping.
func (k *keeper) granted(now time.Time, l lease) {
	life := l.lifetime
	if life == 0 {
		life = lifetime // one for ever is renewed all the same, for routers that forget
	}
	life = min(max(life, shortest), longest)
	k.lease, k.held = l, true
	k.known = l.protocol
	k.renewAt, k.expires = now.Add(life/2), now.Add(life)
	k.round, k.queue, k.wait, k.failed = false, nil, 0, nil
	k.settle(now)
}

// settle puts the next check, or the renewal, into the future.
func (k *keeper) settle(now time.Time) {
	pause := checkEvery
	if k.lease.protocol == UPnP {
		pause = checkSlow
	}
	k.next = now.Add(k.jitter(pause))
	if k.renewAt.Before(k.next) {
		k.next = k.renewAt
	}
}

// refused goes on to the next protocol, or pauses after the last one. A router
// that says no in the protocol of the mapping has ended it; one that is silent
// may be back before it has expired.
func (k *keeper) refused(now time.Time, p Protocol, err error) {
	if _, said := errors.AsType[refusal](err); said {
		if p == k.lease.protocol {
			k.drop()
		}
		k.failed = err
	} else if k.failed == nil {
		k.failed = err
	}
	k.queue = k.queue[1:]
	k.next = now
	if len(k.queue) == 0 {
		k.round = false
		k.wait = min(max(2*k.wait, roundFirst), roundMost)
		k.next = now.Add(roundLeast + time.Duration(k.random.Int64N(int64(k.wait-roundLeast))))
	}
}

// jitter returns d, give or take a fifth.
func (k *keeper) jitter(d time.Duration) time.Duration {
	return d*4/5 + time.Duration(k.random.Int64N(int64(d*2/5)))
}

// Close returns what is left to be released.
func (k *keeper) Close() []task {
	var all []task
	if k.held {
		k.unwanted = append(k.unwanted, k.lease)
	}
	for _, l := range k.unwanted {
		all = append(all, k.task(release, l.protocol, l))
	}
	k.drop()
	k.unwanted = nil
	return all
}
