package coord

import (
	"sync"
	"time"
)

// maxDirty bounds what a watcher collects. Beyond it a whole map is cheaper
// than the changes.
const maxDirty = 1024

// watcher is one open Watch: what its node does not know yet.
type watcher struct {
	node    string // its id
	session uint64
	wake    chan struct{} // has room for one; never closed

	mu    sync.Mutex // guards what follows
	dirty dirt
	heard time.Time // the last report
	end   error     // why the stream has to end
}

// dirt is what changed since the last send.
type dirt struct {
	since  time.Time // of the first; zero: nothing
	whole  bool      // everything
	relays bool
	labels map[uint32]struct{}
}

func newWatcher(node string, session uint64, now time.Time) *watcher {
	return &watcher{node: node, session: session, wake: make(chan struct{}, 1), heard: now}
}

// mark notes changes. It never blocks.
func (w *watcher) mark(now time.Time, relays bool, labels []uint32) {
	w.mu.Lock()
	d := &w.dirty
	if d.since.IsZero() {
		d.since = now
	}
	d.relays = d.relays || relays
	if !d.whole {
		if d.labels == nil {
			d.labels = make(map[uint32]struct{}, len(labels))
		}
		for _, l := range labels {
			d.labels[l] = struct{}{}
		}
		if len(d.labels) > maxDirty {
			d.whole, d.labels = true, nil
		}
	}
	w.mu.Unlock()
	w.poke()
}

// take returns what is dirty, and cleans it.
func (w *watcher) take() dirt {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := w.dirty
	w.dirty = dirt{}
	return d
}

// dirtySince returns when the first change that was not sent was made; zero:
// there is none.
func (w *watcher) dirtySince() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dirty.since
}

// report notes that the node is there.
func (w *watcher) report(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.heard = now
}

func (w *watcher) lastReport() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.heard
}

// stop ends the stream with a reason; the first one counts.
func (w *watcher) stop(why error) {
	w.mu.Lock()
	if w.end == nil {
		w.end = why
	}
	w.mu.Unlock()
	w.poke()
}

func (w *watcher) stopped() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.end
}

func (w *watcher) poke() {
	select {
	case w.wake <- struct{}{}:
	default: // it is awake
	}
}
