package udp

import "time"

const (
	// restFor is how long a moderated reader waits between two calls: at
	// 2 Gbit/s two trains come in that time. A relay then needs a quarter less
	// processor time than without; longer gained nothing more. It is well below
	// what queues add to the round trip at such rates.
	restFor = 700 * time.Microsecond
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
