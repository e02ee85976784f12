// Package limit keeps those waiting who did something too often, which mostly is
// to fail: a bucket for each source, which empties with time. Time is an
// argument, and the table is bounded.
package limit

import (
	"net/netip"
	"sync"
	"time"
)

const (
	// Burst failures at once are a person with the wrong link or password.
	Burst = 10
	// ForgiveEvery gives one of them back.
	ForgiveEvery = 10 * time.Second
	// most sources bound the table: about 400 KB.
	most = 4096
)

// Failures counts the failures of each source.
type Failures struct {
	burst int           // at once
	every time.Duration // gives one back

	mu      sync.Mutex // guards sources
	sources map[netip.Prefix]debt
}

// debt is when a source's last failure will be forgotten.
type debt time.Time

// NewFailures returns an empty count, of Burst at once.
func NewFailures() *Failures { return New(Burst, ForgiveEvery) }

// New returns an empty count of something else, of which so many may come at once
// and one every so often.
func New(burst int, every time.Duration) *Failures {
	return &Failures{burst: burst, every: every, sources: map[netip.Prefix]debt{}}
}

// Source is what an address counts as: an IPv6 customer has a /64 or more.
func Source(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits)
	return p
}

// Wait returns how long the source has to wait; zero: it may try.
func (f *Failures) Wait(a netip.Addr, now time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	free := time.Time(f.sources[Source(a)]).Add(-time.Duration(f.burst-1) * f.every)
	if !free.After(now) { // so it is for a source without failures: Sub of the zero time overflows
		return 0
	}
	return free.Sub(now)
}

// Add counts a failure. A full table first loses what is forgiven, then
// somebody: an attacker with that many addresses is not held by this.
func (f *Failures) Add(a netip.Addr, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	src := Source(a)
	if _, ok := f.sources[src]; !ok && len(f.sources) >= most {
		f.prune(now)
	}
	until := time.Time(f.sources[src])
	if until.Before(now) {
		until = now
	}
	f.sources[src] = debt(until.Add(f.every))
}

func (f *Failures) prune(now time.Time) {
	for src, d := range f.sources {
		if !time.Time(d).After(now) {
			delete(f.sources, src)
		}
	}
	for src := range f.sources {
		if len(f.sources) < most {
			return
		}
		delete(f.sources, src)
	}
}
