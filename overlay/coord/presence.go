package coord

import (
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"overlayd/overlay/key"
)

// presence is who is here now: what is known of the nodes and not kept.
type presence struct {
	mu       sync.Mutex // guards what follows
	watchers map[string]*watcher
	seen     map[string]sighting
	passes   map[passFor]issued // the newest of each
	serial   uint64             // of the newest pass
	revoked  []Removal          // of the last passLife
	revision uint64             // of revoked
	closed   error              // why no watcher is taken any more
	heard    chan struct{}      // closed when a node applied a map, came or went; then replaced
}

// sighting is what a node's Watch told.
type sighting struct {
	online bool
	bootID uint64
	last   time.Time

	attached []Attachment // as the node reported
	moved    time.Time    // when that last was another; zero: never
	applied  Applied      // as the node last reported
}

// moveGap is the least time between two changes of a node's relays that are
// taken: each goes to all nodes, and one that comes too soon is in the next
// report as well.
const moveGap = beatEvery / 2

// passFor names a pass.
type passFor struct{ node, relay string }

// issued is a pass, and the relay's secret that made it.
type issued struct {
	Pass
	secret key.Secret
}

func newPresence() *presence {
	return &presence{watchers: map[string]*watcher{}, seen: map[string]sighting{}, passes: map[passFor]issued{}, heard: make(chan struct{})}
}

// errReplaced ends a stream whose node opened another.
var errReplaced = problem(KindUnreachable, "if this state directory was copied to another machine, join there with a link of its own",
	"another connection of this node took over")

// join makes a node's new watcher the one that counts.
func (p *presence) join(node string, bootID uint64, now time.Time) (*watcher, error) {
	w := newWatcher(node, rand.Uint64()|1, now)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed != nil {
		return nil, p.closed
	}
	if old := p.watchers[node]; old != nil {
		old.stop(errReplaced)
	}
	p.watchers[node] = w
	s := p.seen[node]
	s.online, s.bootID, s.last, s.applied = true, bootID, now, Applied{}
	p.seen[node] = s
	p.stir()
	return w, nil
}

// leave reports whether the node is gone now: not when another watcher of it
// took over.
func (p *presence) leave(w *watcher, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.watchers[w.node] != w {
		return false
	}
	delete(p.watchers, w.node)
	if s, ok := p.seen[w.node]; ok {
		s.online, s.last = false, now
		p.seen[w.node] = s
	}
	p.stir()
	return true
}

// report takes a node's heartbeat for the watcher it names.
func (p *presence) report(node string, session uint64, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.watchers[node]
	if w == nil || w.session != session {
		return false
	}
	w.report(now)
	s := p.seen[node]
	s.last = now
	p.seen[node] = s
	return true
}

func (p *presence) sighting(node string) sighting {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen[node]
}

// mark tells all watchers what changed.
func (p *presence) mark(now time.Time, relays bool, labels []uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.watchers {
		w.mark(now, relays, labels)
	}
}

// forget ends a removed node's stream.
func (p *presence) forget(node string, why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w := p.watchers[node]; w != nil {
		w.stop(why)
	}
	delete(p.seen, node)
	p.stir()
	maps.DeleteFunc(p.passes, func(f passFor, _ issued) bool { return f.node == node || f.relay == node })
}

// attach takes what a node reports of its relays, unless it did so a moment ago,
// and says whether that is new.
func (p *presence) attach(now time.Time, node string, as []Attachment) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.seen[node]
	if !ok || slices.Equal(s.attached, as) {
		return false
	}
	if d := now.Sub(s.moved); d >= 0 && d < moveGap {
		return false
	}
	s.attached, s.moved = as, now
	p.seen[node] = s
	return true
}

// apply takes which map a node enforces. What it cut on the way counts once.
func (p *presence) apply(node string, a Applied) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.seen[node]
	if !ok || s.applied == a {
		return
	}
	s.applied = a
	p.seen[node] = s
	p.stir()
}

// stir wakes those who wait for nodes. The caller holds mu.
func (p *presence) stir() {
	close(p.heard)
	p.heard = make(chan struct{})
}

// close ends all streams and takes no more.
func (p *presence) close(why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = why
	for _, w := range p.watchers {
		w.stop(why)
	}
}

const (
	// passLife is how long a node can attach to its relay without the
	// coordinator.
	passLife = 7 * 24 * time.Hour
	// passRenew is how much life makes a new pass due: two days of each week
	// are enough for any repair.
	passRenew = 5 * 24 * time.Hour
)

// serialAt is the serial that a moment stands for: time makes serials grow over
// restarts too.
func serialAt(t time.Time) uint64 { return uint64(t.UnixMicro()) }

// revoke makes worthless all passes for a label that there are, and none of
// those that will be made.
func (p *presence) revoke(node string, label uint32, now time.Time) Removal {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.passes, func(f passFor, _ issued) bool { return f.node == node })
	p.serial = max(p.serial, serialAt(now))
	r := Removal{label, p.serial}
	oldest := serialAt(now.Add(-passLife))
	kept := slices.DeleteFunc(slices.Clone(p.revoked), func(o Removal) bool { return o.Label == label || o.Serial < oldest })
	p.revoked = append(kept, r) // a new slice: streams hold the old one
	p.revision++
	return r
}

// revocations returns what was revoked, and a number that changes with it.
func (p *presence) revocations() ([]Removal, uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.revoked, p.revision
}

// pass returns a node's pass for a relay, made by mint when there is none that
// lives long enough. Its serial is above that of when the node joined, wherever
// the clock went since.
func (p *presence) pass(node, relay string, secret key.Secret, joined, now time.Time, mint func(serial uint64, notAfter time.Time) Pass) Pass {
	p.mu.Lock()
	defer p.mu.Unlock()
	name := passFor{node, relay}
	if old, ok := p.passes[name]; ok && old.secret.Equal(secret) && old.NotAfter.Sub(now) >= passRenew && old.NotAfter.Sub(now) <= passLife {
		return old.Pass
	}
	p.serial = max(p.serial+1, serialAt(now), serialAt(joined)+1)
	next := mint(p.serial, now.Add(passLife).Truncate(time.Second))
	p.passes[name] = issued{next, secret}
	return next
}
