package udp

import "time"

const (
	// restFor is how long a moderated reader waits between two calls: at
	// 2 Gbit/s one train comes in that time from each side, so that a transfer's
	// data and its acknowledgements are moved in one call each. Well below what
	// a queue adds to the round trip at such rates.
	restFor = 250 * time.Microsecond
	// fastRate is from where on moderation pays: 16 KiB per millisecond, some
	// 130 Mbit/s. Below it, every datagram is taken as it comes.
	fastRate = 16 << 10
	// paceWindow is the time over which the rate is taken.
	paceWindow = time.Millisecond
)

// pace knows whether a socket is busy.
type pace struct {
	since time.Time
	bytes int
	busy  bool
}

// fast counts what a call received and reports whether the socket is busy.
func (p *pace) fast(now time.Time, bytes int) bool {
	p.bytes += bytes
	if d := now.Sub(p.since); d >= paceWindow {
		p.busy = float64(p.bytes) >= fastRate*float64(d)/float64(time.Millisecond)
		p.since, p.bytes = now, 0
	}
	return p.busy
}
