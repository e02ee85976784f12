package underlay

import (
	"net/netip"
	"slices"
	"time"
)

const (
	// guesses is how many of the ports that the peer foretells are tried: its
	// NAT has opened so many more at most by the time it pings us.
	guesses = 8
	// guessAfter is how long the named addresses have to answer first; both
	// sides count from the call, and so guess at the same time.
	guessAfter = 500 * time.Millisecond
	// guessFirst to guessMost are the pauses between two rounds of guesses.
	guessFirst = 4 * time.Second
	guessMost  = 5 * time.Minute
)

// planGuess is called when the peer has called.
func (f *finder) planGuess(now time.Time) {
	if f.step == 0 || f.use != nil || !f.guessAt.IsZero() || now.Before(f.guessNext) {
		return
	}
	f.guessAt = now.Add(guessAfter)
	f.guessWait = min(max(2*f.guessWait, guessFirst), guessMost)
	f.guessNext = now.Add(f.guessWait)
}

// guess tries the ports that the peer's NAT gives out next, and has given out
// since the peer foretold them: ours is one of them. Where our own NAT counts
// too, both sides try theirs one after the other, and meet where one's port is
// what the other tries at that moment. So one side begins at the last: then
// they meet in the middle, or half a step beside it, which is why it skips one
// at random.
func (f *finder) guess(now time.Time) (out []send) {
	ip := f.foretold.Addr()
	if f.use != nil || f.step == 0 || !ip.Is4() || !f.here.takes(f.foretold) || ip.IsPrivate() || ip.IsLoopback() {
		return nil
	}
	var ports []netip.AddrPort
	for i := range guesses {
		if port := int(f.foretold.Port()) + i*int(f.step); port > 0 && port < 1<<16 {
			ports = append(ports, netip.AddrPortFrom(ip, uint16(port)))
		}
	}
	if f.descends {
		slices.Reverse(ports)
		ports = ports[min(f.random.IntN(2), len(ports)):]
	}
	for _, a := range ports {
		s := f.spot(now, a)
		if s == nil || s.listed || !s.due.IsZero() {
			continue
		}
		s.guess = true
		if f.grant(now, s); !s.due.IsZero() {
			out = append(out, f.ping(now, s))
			s.due = now.Add(pingGaps[s.tries])
			s.tries++
		}
	}
	return out
}
