package underlay

import (
	"net/netip"
	"slices"
	"sync"
	"time"
)

// forecast foretells the outer port that this machine's NAT will give to the
// next destination, from those that it gave to others: relays and peers tell
// from where they see us. A NAT that gives one port to all has none to be
// foretold, and neither has one that draws them at random.
//
// It is safe for concurrent use.
type forecast struct {
	mu      sync.Mutex // guards the rest
	opened  []opening  // in the order of their numbers
	numbers int        // destinations so far
}

// opening is a destination that our NAT has made a mapping for.
type opening struct {
	dst    netip.AddrPort
	number int            // the how manieth it was
	sentAt time.Time      // last time
	seen   netip.AddrPort // from where it sees us; zero: it has not said
}

const (
	// mostOpenings is how many destinations are remembered.
	mostOpenings = 64
	// mappingKept is how long a NAT surely keeps a mapping that is not used:
	// one that was used since is no new one.
	mappingKept = 25 * time.Second
	// mostStep is the largest step from one port to the next, and mostOthers
	// how many ports others behind the NAT may have taken between two of ours:
	// ports further apart are random.
	mostStep   = 16
	mostOthers = 8
)

// Sent takes note that something is sent to a destination.
func (c *forecast) Sent(now time.Time, dst netip.AddrPort) {
	if ip := dst.Addr(); !ip.Is4() || ip.IsPrivate() || ip.IsLoopback() {
		return // no NAT on the way
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.opened, func(o opening) bool { return o.dst == dst })
	if i >= 0 && now.Sub(c.opened[i].sentAt) < mappingKept {
		c.opened[i].sentAt = now
		return
	}
	if i < 0 && len(c.opened) == mostOpenings { // the oldest that tells nothing, or the oldest
		i = max(0, slices.IndexFunc(c.opened, func(o opening) bool { return !o.seen.IsValid() }))
	}
	if i >= 0 {
		c.opened = slices.Delete(c.opened, i, i+1)
	}
	c.numbers++
	c.opened = append(c.opened, opening{dst: dst, number: c.numbers, sentAt: now})
}

// Seen takes note that a destination sees us at an address.
func (c *forecast) Seen(dst, us netip.AddrPort) {
	if !us.Addr().Is4() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, o := range c.opened {
		if o.dst != dst || o.seen == us {
			continue
		}
		if o.seen.IsValid() { // another than before: the NAT has begun anew
			c.numbers++
			o.number = c.numbers
			c.opened = append(c.opened[:0], o)
			i = 0
		}
		c.opened[i].seen = us
		return
	}
}

// Next returns where the next new destination will see us, and the step from
// that to the one after; 0: that cannot be told, or it is the same for all. Of
// a NAT that only one destination has told of, it supposes that it counts.
func (c *forecast) Next() (next netip.AddrPort, step int16) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var told []opening
	for _, o := range c.opened {
		if o.seen.IsValid() {
			told = append(told, o)
		}
	}
	if len(told) == 0 {
		return netip.AddrPort{}, 0
	}
	last := told[len(told)-1]
	each, even := 0, true
	for i, o := range told[1:] {
		before := told[i]
		if o.seen.Addr() != before.seen.Addr() {
			continue // another way out, or another address of the NAT
		}
		ports, count := int(o.seen.Port())-int(before.seen.Port()), o.number-before.number
		if max(ports, -ports) > mostStep*(count+mostOthers) {
			return netip.AddrPort{}, 0
		}
		// As many for each of ours; or others take ports as well: then what all
		// distances are multiples of.
		if even = even && ports%count == 0 && (each == 0 || each == ports/count); even {
			each = ports / count
		} else {
			each = divisor(each, ports)
		}
	}
	switch {
	case len(told) == 1:
		each = 1
	case each == 0, max(each, -each) > mostStep:
		return netip.AddrPort{}, 0
	}
	port := int(last.seen.Port()) + each*(c.numbers+1-last.number)
	if port < 1 || port >= 1<<16 {
		return netip.AddrPort{}, 0
	}
	return netip.AddrPortFrom(last.seen.Addr(), uint16(port)), int16(each)
}

// divisor returns the greatest common divisor, with b's sign.
func divisor(a, b int) int {
	negative := b < 0 || b == 0 && a < 0
	a, b = max(a, -a), max(b, -b)
	for b != 0 {
		a, b = b, a%b
	}
	if negative {
		return -a
	}
	return a
}
