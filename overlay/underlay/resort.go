package underlay

import "time"

const (
	// resortEvery is how often an address that answered once is asked while
	// there is no relay by which the peer could tell where it is now.
	resortEvery = 5 * time.Second
	// resortFor is how long after its last answer it is, at least: when the relay
	// fails it begins anew.
	resortFor = 5 * time.Minute
	// resortMost is how long that goes on.
	resortMost = time.Hour
)

// open reports whether an address may be used. Without a relay there is no
// better way to leave it for.
func (f *finder) open(now time.Time, s *spot) bool {
	return s.usable(now) || f.noRelay && s.proved()
}

// Relay says whether there is a way by the relay. When there is one again, the
// search that needs it is made soon.
func (f *finder) Relay(now time.Time, up bool) {
	if up && f.noRelay {
		f.wake(now)
	}
	if !up && !f.noRelay {
		f.noRelayAt = now
	}
	f.noRelay = !up
}

// resorts reports whether an address answered lately, or when there last was a
// relay.
func (f *finder) resorts(now time.Time, s *spot) bool {
	at := now
	if f.noRelay {
		at = f.noRelayAt
	}
	return !s.lastAt.IsZero() && at.Sub(s.lastAt) < resortFor && now.Sub(at) < resortMost
}

// resort asks where the peer was before, while nobody can tell where it is.
func (f *finder) resort(now time.Time) (out []send) {
	for _, s := range f.spots {
		if s != f.use && s.due.IsZero() && f.resorts(now, s) && now.Sub(s.pingAt) >= resortEvery {
			out = append(out, f.ping(now, s))
		}
	}
	return out
}
