package underlay

import (
	"math"
	"time"
)

const (
	// penaltyFirst to penaltyMost are the longest that an address is left that
	// loses data, and that one is not weighed again that loses no more than the
	// relay, penaltyLeast the shortest; healthy is how long it must serve to begin
	// anew.
	penaltyLeast = 10 * time.Second
	penaltyFirst = 15 * time.Second
	penaltyMost  = 10 * time.Minute
	healthy      = 5 * time.Minute
	// mild is the share of losses that is nobody's business, alone or beyond
	// what the relay loses.
	mild = 0.05
	// doubtful is how many standard deviations beyond that are more than chance:
	// of 100 datagrams 10 must be lost.
	doubtful = 2
	// weighEvery is how often the relay's losses are asked for while an address
	// is weighed against it; weighPatience is how long it may leave that unanswered
	// before it counts as dead, and weighMost how long a conversation that says
	// little is waited for: 5 datagrams a second make a hundred in that time.
	weighEvery    = time.Second
	weighPatience = 6 * time.Second
	weighMost     = 20 * time.Second
	// worse is how much more an address must lose than when it was weighed to
	// be weighed again at once.
	worse = 0.1
)

// beginWeighing measures the losses of both ways, which both carry everything
// meanwhile.
func (f *finder) beginWeighing(now time.Time) {
	f.weighed, f.askGap = now, 0
	f.use.sum, f.use.base, f.use.window = loss{}, window{}, window{}
	f.relay.sum, f.relay.base, f.relay.window, f.relay.pings = loss{}, window{}, window{}, nil
	f.relay.heardAt = now
}

// weigh decides between the address in use, which loses much, and the relay:
// where both lose the same, as on a bad wireless link, the relay is a detour.
func (f *finder) weigh(now time.Time) {
	s := f.use
	if s == nil || !s.lossy || f.confirmed {
		return
	}
	here, there := float64(enough), float64(enough) // how many datagrams it takes
	if s.gauge != nil && s.gauge.deaf || now.Sub(f.weighed) >= weighMost {
		here, there = 4*fewest, 2*fewest
	}
	r := f.relay.sum
	dead := now.Sub(f.relay.heardAt) >= weighPatience
	switch {
	case s.sum.sent < here, r.sent < there && !dead:
	case r.sent >= there && s.sum.exceeds(r):
		f.lossy = true
		f.leave(now, s)
	case dead, min(r.sent, s.sum.sent) >= 4*enough, now.Sub(f.weighed) >= 2*weighMost:
		s.weighWait = min(max(2*s.weighWait, penaltyFirst), penaltyMost)
		s.lossy, s.heavy, s.weighAt = false, s.sum.share(), now.Add(backOff(penaltyLeast, s.weighWait, f.below))
		f.confirm(now)
	}
}

// leave gives up an address that answers while data sent to it does not arrive.
func (f *finder) leave(now time.Time, s *spot) {
	if f.noRelay { // for what?
		s.window = window{}
		return
	}
	if f.use == s && f.confirmed && now.Sub(f.confirmedAt) > healthy {
		s.penalty = 0
	}
	s.penalty = min(max(2*s.penalty, penaltyFirst), penaltyMost)
	s.leftUntil = now.Add(backOff(penaltyLeast, s.penalty, f.below))
	s.window = window{}
	if f.use == s {
		f.quit(now)
		f.nextSearch = s.leftUntil
	}
}

// loss is how many of how many datagrams were lost.
type loss struct{ sent, lost float64 }

func (l loss) share() float64 { return l.lost / max(l.sent, 1) }

// exceeds reports whether l loses more than what a path that is compared with
// it loses: by more than is mild, and more than chance makes of equal shares.
func (l loss) exceeds(other loss) bool {
	if other.sent == 0 { // nothing to compare with: a path that loses a mild share
		return l.share() > mild+doubtful*math.Sqrt(mild*(1-mild)/max(l.sent, 1))
	}
	p := (l.lost + other.lost) / (l.sent + other.sent)
	return l.share()-other.share() > mild+doubtful*math.Sqrt(p*(1-p)*(1/max(l.sent, 1)+1/other.sent))
}
