package underlay

import (
	"slices"
	"time"
)

// sealedBytes is what WireGuard adds to a packet: a header of 16 bytes and a tag
// of 16. It also fills packets up to a multiple of sealedStep, unless they are
// as long as the interface allows.
const (
	sealedBytes = 16 + 16
	sealedStep  = 16
)

const (
	// usualMTU is the interface's MTU where nobody says another.
	usualMTU = 1420
	// leastSize is the shortest datagram that is measured: with its headers it
	// makes a packet of 572 bytes, and every path of IPv4 carries 576 (RFC 791,
	// section 3.1). A path that does not is used as it is: what is too long for
	// it arrives in fragments, or not.
	leastSize = sealedBytes + 512
	// bigSize is from where on a datagram that WireGuard sends counts as long:
	// only then is there anything to check.
	bigSize = leastSize

	// checkEvery is how often a size is proved again while long datagrams leave.
	// With the steps below, a path that has become narrower is known to be in a
	// second: TCP, which repeats what was lost after 0.2, 0.6, 1.4 and 3 s, then
	// goes on at its third try.
	checkEvery = 500 * time.Millisecond
	// stepTries is how many pings of one length may be lost before it counts: a
	// path that loses 2 % of them, either way, then looks narrow once in 600.
	stepTries = 2
	// stepLeast and stepMost bound the wait for an answer, which is else two
	// round trips; stepFirst is that before one is known. An answer that comes
	// later still counts.
	stepLeast = 150 * time.Millisecond
	stepFirst = 250 * time.Millisecond
	stepMost  = time.Second
	// raiseFirst to raiseMost are the pauses before longer datagrams are tried
	// again on a narrow path, and deafFirst to deafMost those before any are on a
	// path that answered none.
	raiseFirst = 15 * time.Second
	raiseMost  = 10 * time.Minute
	deafFirst  = time.Second
	deafMost   = time.Minute
	// rungsMost is how many lengths are tried at once.
	rungsMost = 4
	// mostTrials bounds what is remembered of pings sent: three searches.
	mostTrials = 32
)

// ladder are the lengths that a search begins with: those of WireGuard's
// datagrams that just fit packets of 1460, 1400, 1300, 1280 and 1024 bytes over
// IPv4, and the least.
var ladder = []int{1424, 1360, 1264, 1248, 992, leastSize}

// trial is a padded ping.
type trial struct {
	id   probeID
	size int // of the datagram
	at   time.Time
}

// gauge finds out how long a datagram may be that a way carries in one piece. It
// does no I/O: Tick says which padded pings to send, each to arrive whole or not
// at all, and Answered takes the answers. Nothing else is believed, so nobody
// who cannot seal a pong can make a path look narrow but by dropping what is
// long; and a path that answers no long ping at all is taken as it is.
type gauge struct {
	id   func() probeID // set by newGauge, then read-only
	full int            // the longest that WireGuard makes
	size int            // the longest that is believed to pass: full, until one is lost

	proved  bool      // size is the length of an answered ping
	deaf    bool      // the last search was answered nothing
	checked time.Time // a ping of that size, or a longer one, was answered
	changed time.Time // size was

	sent []trial // unanswered pings, oldest first
	rtt  time.Duration

	// The step under way: lengths between low, which passes, and high, which
	// does not, the longest first.
	rungs     []int // empty: none
	low, high int
	best      int // the longest of them that was answered
	tries     int
	due       time.Time // of the next try, or the step's end

	checkAt time.Time     // of the last step
	again   time.Time     // a search was in vain, or found less than full: the next one
	wait    time.Duration // before the one after
	asked   bool          // see Check
}

func newGauge(id func() probeID, full int) *gauge {
	return &gauge{id: id, full: full, size: full}
}

// fullSize is the longest datagram that WireGuard makes of an interface's packets.
func fullSize(mtu int) int {
	if mtu <= 0 {
		mtu = usualMTU
	}
	return mtu + sealedBytes
}

// settled reports whether there is a result, if only that there is none.
func (g *gauge) settled() bool { return g.proved || g.deaf }

// narrow reports whether less passes than WireGuard may make.
func (g *gauge) narrow() bool { return g.size < g.full }

// Check asks for a proof now.
func (g *gauge) Check() { g.asked = true }

// Reset says that the way is another one: its size is looked for from the start.
// The old one holds meanwhile, or what is sent meanwhile would be lost on a way
// that is still as narrow.
func (g *gauge) Reset(full int) {
	if !g.narrow() || g.size > full {
		g.size = full
	}
	g.full = full
	g.proved, g.deaf = false, false
	g.rungs, g.sent, g.rtt = nil, nil, 0
	g.again, g.wait = time.Time{}, 0
	g.asked = true
}

// Tick does what is due. active says that the way is in use, big that long
// datagrams left by it lately. It returns when to call again; the zero value is
// never, unless one of these changes.
func (g *gauge) Tick(now time.Time, active, big bool) (out []trial, next time.Time) {
	if !active {
		g.rungs = nil
		return nil, time.Time{}
	}
	for {
		if len(g.rungs) == 0 {
			g.begin(now, big)
		}
		if len(g.rungs) == 0 {
			return out, g.later(now)
		}
		if g.best < g.rungs[0] {
			if now.Before(g.due) {
				return out, g.due
			}
			if g.tries < stepTries {
				return append(out, g.ask(now)...), g.due
			}
		}
		g.end(now)
	}
}

// later returns when the next step may begin.
func (g *gauge) later(now time.Time) time.Time {
	if g.narrow() && !g.again.IsZero() {
		return g.again
	}
	return time.Time{}
}

// begin begins the step that is due, if one is.
func (g *gauge) begin(now time.Time, big bool) {
	switch {
	case !g.proved && g.narrow() && g.asked: // another way: all lengths at once
		g.step(now, 0, g.full+1, append([]int{g.full}, rungsBelow(g.full)...))
	case g.narrow() && !g.again.IsZero() && !now.Before(g.again):
		g.step(now, g.size, g.full+1, append([]int{g.full}, between(g.size, g.full)...))
		g.pause(now, raiseFirst, raiseMost)
	case g.deaf && now.Before(g.again):
	case g.asked, !g.proved && !g.deaf, big && now.Sub(g.checkAt) >= checkEvery:
		g.step(now, 0, g.size+1, []int{g.size})
	}
	g.asked = g.asked && len(g.rungs) == 0
}

func (g *gauge) step(now time.Time, low, high int, rungs []int) {
	g.low, g.high, g.rungs = low, high, rungs
	g.best, g.tries, g.due, g.checkAt = 0, 0, now, now
}

// pause sets when to search again; the pauses double.
func (g *gauge) pause(now time.Time, first, most time.Duration) {
	g.wait = min(max(2*g.wait, first), most)
	g.again = now.Add(g.wait)
}

// ask sends a ping of every length that may still prove something, the longest
// first: where they queue up, the shorter ones are not answered before them.
func (g *gauge) ask(now time.Time) (out []trial) {
	g.tries++
	g.due = now.Add(g.patience())
	for _, size := range g.rungs {
		if size <= g.best {
			break
		}
		t := trial{g.id(), size, now}
		out = append(out, t)
		if len(g.sent) == mostTrials {
			g.sent = slices.Delete(g.sent, 0, 1)
		}
		g.sent = append(g.sent, t)
	}
	return out
}

func (g *gauge) patience() time.Duration {
	if g.rtt == 0 {
		return stepFirst
	}
	return min(max(2*g.rtt, stepLeast), stepMost)
}

// end draws the conclusion from a step, and begins the one that follows from it.
func (g *gauge) end(now time.Time) {
	rungs, best := g.rungs, g.best
	g.rungs = nil
	if best == rungs[0] { // nothing was lost
		g.low = best
	} else {
		for _, size := range rungs { // the shortest of those that were lost
			if size > best {
				g.high = size
			}
		}
		g.low = max(g.low, best)
	}
	switch {
	case g.low == 0 && len(rungs) == 1: // a check failed
		g.step(now, 0, rungs[0]+1, append([]int{rungs[0]}, rungsBelow(rungs[0])...))
	case g.low == 0: // nothing passes: perhaps nothing does at all
		g.deaf = true
		g.pause(now, deafFirst, deafMost)
	default:
		g.settle(now, g.low)
		if more := between(g.low, g.high); len(more) > 0 {
			g.step(now, g.low, g.high, more)
		}
	}
}

// settle takes a size for true.
func (g *gauge) settle(now time.Time, size int) {
	if g.deaf || !g.proved {
		g.again = time.Time{}
	}
	g.proved, g.deaf = true, false
	if size != g.size {
		if size < g.size {
			g.wait = 0
			g.again = time.Time{}
		}
		g.size, g.changed = size, now
	}
	if g.narrow() && g.again.IsZero() {
		g.wait = 0
		g.pause(now, raiseFirst, raiseMost)
	}
}

// Answered takes an answer. It reports whether the ping was one of the gauge's.
func (g *gauge) Answered(now time.Time, id probeID) bool {
	i := slices.IndexFunc(g.sent, func(t trial) bool { return t.id == id })
	if i < 0 {
		return false
	}
	t := g.sent[i]
	g.sent = slices.Delete(g.sent, i, i+1)
	rtt := max(now.Sub(t.at), time.Microsecond)
	if g.rtt == 0 {
		g.rtt = rtt
	} else {
		g.rtt += (rtt - g.rtt) / 4
	}
	if t.size >= g.size {
		g.checked = now
	}
	g.best = max(g.best, t.size)
	if t.size > g.size || t.size == g.size && !g.proved { // also when it comes late
		g.settle(now, t.size)
	}
	return true
}

// rungsBelow returns the lengths that a search begins with, below one that does
// not pass.
func rungsBelow(size int) []int {
	var rungs []int
	for _, r := range ladder {
		if r < size {
			rungs = append(rungs, r)
		}
	}
	return rungs
}

// between returns some lengths that WireGuard's datagrams can have, longer than
// low and shorter than high, the longest first.
func between(low, high int) []int {
	first := low - (low-sealedBytes)%sealedStep + sealedStep
	n := (high - first + sealedStep - 1) / sealedStep // how many there are
	if n <= 0 {
		return nil
	}
	take := min(n, rungsMost)
	rungs := make([]int, take)
	for i := range rungs {
		k := n - 1 // the last, and so on down
		if take < n {
			k = (i + 1) * n / (take + 1)
			rungs[take-1-i] = first + k*sealedStep
			continue
		}
		rungs[i] = first + (k-i)*sealedStep
	}
	return rungs
}

// room is the longest packet whose datagram fits a size.
func room(size int) int { return (size - sealedBytes) / sealedStep * sealedStep }
