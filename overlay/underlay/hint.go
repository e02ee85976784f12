package underlay

import (
	"slices"
	"time"
)

// What others know of a peer's path, and what its finder knows for others.

// Suspect says that the peer does not use its direct path, so perhaps it is not
// where it was: data goes both ways until it is heard to arrive again.
func (f *finder) Suspect() {
	if f.confirmed {
		f.confirmed = false
		f.askGap = 0
		f.use.window = window{} // what arrived before proves nothing
	}
}

// Detour says that data of the peer's came by the relay. If none comes by the
// path that is used, it may have moved. It reports whether that is so. Once
// suspected, a path that answers is not again before data has come by it: the
// peer may prefer the relay, for what its own packets lose on the path.
func (f *finder) Detour(now time.Time) bool {
	if !f.confirmed || f.use.detour || f.use.tally.got.Load() != f.use.gotSeen || now.Sub(f.use.heardAt) < detourAfter {
		return false
	}
	f.use.detour = true
	f.Suspect()
	return true
}

// Hushed reports, once, that a conversation with the peer has fallen silent.
func (f *finder) Hushed() bool {
	h := f.hushed
	f.hushed = false
	return h
}

// hears reports whether an address of the peer's answers.
func (f *finder) hears(now time.Time) bool {
	return slices.ContainsFunc(f.spots, func(s *spot) bool { return s.fresh(now) && s.missed < 3 })
}

// Kick says that this machine's network has changed: nothing that was proved
// before counts, and what did not answer is tried again.
func (f *finder) Kick(now time.Time) {
	for _, s := range f.spots {
		s.again, s.quiet, s.heardAt = time.Time{}, 0, time.Time{}
		s.window, s.pings = window{}, nil // the peer counts anew for another address of ours
	}
	f.remeasure()
	f.confirmed = false
	f.askGap = 0
	f.nextSearch, f.wait = now, 0
	f.guessNext, f.guessWait = time.Time{}, 0
}
