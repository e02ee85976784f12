package coord

import (
	"net/netip"
	"sync"
	"time"
)

const (
	// limiterBurst failures at once are a person with the wrong link.
	limiterBurst = 10
	// limiterEvery gives one of them back.
	limiterEvery = 10 * time.Second
	// maxLimited bounds the table: about 400 KB.
	maxLimited = 4096
)

// limiter counts the failures of each source, as a bucket that refills.
type limiter struct {
	mu      sync.Mutex // guards sources
	sources map[netip.Prefix]debt
}

// debt is when a source's last failure will be forgotten.
type debt time.Time

func newLimiter() *limiter { return &limiter{sources: map[netip.Prefix]debt{}} }

// source is what an address counts as: an IPv6 customer has a /64 or more.
func source(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits)
	return p
}

// wait returns how long the source has to wait; zero: it may try.
func (l *limiter) wait(a netip.Addr, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	free := time.Time(l.sources[source(a)]).Add(-(limiterBurst - 1) * limiterEvery)
	if !free.After(now) { // so it is for a source without failures: Sub of the zero time overflows
		return 0
	}
	return free.Sub(now)
}

// failed counts a failure. A full table first loses what is forgiven, then
// somebody: an attacker with that many addresses is not held by this.
func (l *limiter) failed(a netip.Addr, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	src := source(a)
	if _, ok := l.sources[src]; !ok && len(l.sources) >= maxLimited {
		l.prune(now)
	}
	until := time.Time(l.sources[src])
	if until.Before(now) {
		until = now
	}
	l.sources[src] = debt(until.Add(limiterEvery))
}

func (l *limiter) prune(now time.Time) {
	for src, d := range l.sources {
		if !time.Time(d).After(now) {
			delete(l.sources, src)
		}
	}
	for src := range l.sources {
		if len(l.sources) < maxLimited {
			return
		}
		delete(l.sources, src)
	}
}
