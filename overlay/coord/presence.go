package coord

import (
	"math/rand/v2"
	"sync"
	"time"
)

// presence is who is here now: what is known of the nodes and not kept.
type presence struct {
	mu       sync.Mutex // guards what follows
	watchers map[string]*watcher
	seen     map[string]sighting
	passes   map[string]Pass // the newest for this machine's relay
	serial   uint64          // of the newest pass
	closed   error           // why no watcher is taken any more
}

// sighting is what a node's Watch told.
type sighting struct {
	online bool
	bootID uint64
	last   time.Time
}

func newPresence() *presence {
	return &presence{watchers: map[string]*watcher{}, seen: map[string]sighting{}, passes: map[string]Pass{}}
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
	p.seen[node] = sighting{online: true, bootID: bootID, last: now}
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
	delete(p.passes, node)
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

// lastSerial returns a serial that every pass made so far is below or at, and
// every later one above.
func (p *presence) lastSerial(now time.Time) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.serial = max(p.serial, serialAt(now))
	return p.serial
}

// pass returns a node's pass for this machine's relay, made by mint when there
// is none that lives long enough. Its serial is above that of when the node
// joined, wherever the clock went since.
func (p *presence) pass(node string, joined, now time.Time, mint func(serial uint64, notAfter time.Time) Pass) Pass {
	p.mu.Lock()
	defer p.mu.Unlock()
	if old, ok := p.passes[node]; ok && old.NotAfter.Sub(now) >= passRenew && old.NotAfter.Sub(now) <= passLife {
		return old
	}
	p.serial = max(p.serial+1, serialAt(now), serialAt(joined)+1)
	next := mint(p.serial, now.Add(passLife).Truncate(time.Second))
	p.passes[node] = next
	return next
}
