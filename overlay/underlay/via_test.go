package underlay

import (
	"testing"
	"time"

	"overlayd/overlay/relay"
)

var viaStart = time.Unix(1000, 0)

func ms(n int) time.Duration { return time.Duration(n) * time.Millisecond }

// good is a relay that serves well, a is at place 1, b at 2 and so on.
func good(id string, cost time.Duration) sight {
	return sight{id: id, label: labelFor(id), up: true, settled: true, cost: cost}
}

func labelFor(id string) (l relay.Label) { return relay.Label(id[0]-'a') + 1 }

func there(id string, cost time.Duration) presence { return presence{Place: Place{labelFor(id), cost}} }

func TestViaFirstChoice(t *testing.T) {
	down := sight{id: "a", label: 1}
	doubted := good("a", ms(10))
	doubted.doubted = true
	for name, c := range map[string]struct {
		relays                []sight
		peer                  []presence
		first, second, missed int
	}{
		"no relay":                         {nil, nil, -1, -1, -1},
		"one, down":                        {[]sight{down}, nil, -1, -1, -1},
		"one, the peer unknown":            {[]sight{good("a", 0)}, nil, 0, -1, -1},
		"the peer unknown: by two":         {[]sight{good("a", ms(30)), good("b", ms(10))}, nil, 1, 0, -1},
		"the lowest sum":                   {[]sight{good("a", ms(10)), good("b", ms(30))}, []presence{there("a", ms(80)), there("b", ms(20))}, 1, -1, -1},
		"equal: the first":                 {[]sight{good("a", ms(10)), good("b", ms(10))}, []presence{there("b", ms(1)), there("a", ms(1))}, 0, -1, -1},
		"the nearer one is not the peer's": {[]sight{good("a", ms(1)), good("b", ms(90))}, []presence{there("b", ms(20))}, 1, -1, -1},
		"ours is down":                     {[]sight{down, good("b", ms(90))}, []presence{there("a", ms(1)), there("b", ms(90))}, 1, -1, -1},
		"unmeasured ones come last":        {[]sight{good("a", 0), good("b", ms(90))}, []presence{there("a", 0), there("b", ms(90))}, 1, -1, -1},
		"doubted ones come last, by two":   {[]sight{doubted, good("b", ms(90))}, []presence{there("a", 0), there("b", ms(90))}, 1, -1, -1},
		"all doubted: by two":              {[]sight{doubted, {id: "b", label: 2, up: true, doubted: true, cost: ms(1)}}, []presence{there("a", 0), there("b", 0)}, 1, 0, -1},
		"nowhere in common": {[]sight{good("a", ms(1)), good("b", ms(2)), {id: "c", label: 3}, {id: "d", label: 4}},
			[]presence{there("d", ms(9)), there("c", ms(5))}, 0, 1, 2},
		"the peer is nowhere": {[]sight{good("a", ms(1)), good("b", ms(2))}, []presence{}, 0, 1, -1},
	} {
		t.Run(name, func(t *testing.T) {
			var v via
			r := v.choose(viaStart, c.relays, c.peer)
			if r.first != c.first || r.second != c.second || r.missed != c.missed {
				t.Errorf("%+v, want %d, %d, %d", r, c.first, c.second, c.missed)
			}
		})
	}
}

// at runs a via through time and says where it sends.
type viaRun struct {
	t      *testing.T
	now    time.Time
	v      via
	relays []sight
	peer   []presence
}

func newViaRun(t *testing.T, a, b time.Duration) *viaRun {
	r := &viaRun{t: t, now: viaStart, relays: []sight{good("a", a), good("b", b)}, peer: []presence{there("a", 0), there("b", 0)}}
	r.want(0, -1)
	return r
}

func (r *viaRun) after(d time.Duration) *viaRun {
	r.now = r.now.Add(d)
	return r
}

func (r *viaRun) want(first, second int) route {
	r.t.Helper()
	got := r.v.choose(r.now, r.relays, r.peer)
	if got.first != first || got.second != second {
		r.t.Fatalf("after %v: %+v, want %d and %d", r.now.Sub(viaStart), got, first, second)
	}
	return got
}

func TestViaOverTime(t *testing.T) {
	t.Run("a doubt is sent by both, and passes", func(t *testing.T) {
		r := newViaRun(t, ms(10), ms(50))
		r.relays[0].doubted = true
		if c := r.want(0, 1); c.next != r.now.Add(doubtMost) {
			t.Errorf("next %v", c.next)
		}
		r.after(doubtMost-1).want(0, 1)
		r.relays[0].doubted = false
		r.want(0, -1)
	})
	t.Run("a doubt that lasts", func(t *testing.T) {
		r := newViaRun(t, ms(10), ms(50))
		r.relays[0].doubted = true
		r.want(0, 1)
		r.after(doubtMost).want(1, 0)
		r.after(overlap).want(1, -1)
	})
	t.Run("the peer's doubt counts as ours", func(t *testing.T) {
		r := newViaRun(t, ms(10), ms(50))
		r.peer[0].doubted = true
		r.want(0, 1)
		r.after(doubtMost).want(1, 0)
	})
	t.Run("the relay dies, and comes back", func(t *testing.T) {
		r := newViaRun(t, ms(10), ms(50))
		r.relays[0].up, r.relays[0].settled = false, false
		r.want(1, -1)
		r.relays[0].up = true
		r.after(time.Second).want(1, 0) // the change is young: by both again
		r.after(time.Minute).want(1, -1)
		r.relays[0].settled = true
		if c := r.want(0, 1); c.next != r.now.Add(overlap) {
			t.Errorf("next %v", c.next)
		}
		r.after(overlap).want(0, -1)
	})
	t.Run("the peer leaves the relay", func(t *testing.T) {
		r := newViaRun(t, ms(10), ms(50))
		r.peer = r.peer[1:]
		r.want(1, -1)
	})
	t.Run("a difference that does not matter", func(t *testing.T) {
		r := newViaRun(t, ms(30), ms(30))
		for _, cost := range []int{28, 25, 21} {
			r.relays[1].cost = ms(cost + 4)
			r.after(time.Minute).want(0, -1)
		}
		r.relays[1].cost = ms(19)
		r.want(1, 0)
	})
}

// TestStanding: what a relay's session does makes its standing.
func TestStanding(t *testing.T) {
	now := viaStart
	var s standing
	up := report{up: true, rtt: ms(20)}
	if s.look(now, up); !s.up || s.doubted || !s.settled || s.cost != ms(20) {
		t.Fatalf("at first: %+v", s)
	}
	asked := up
	asked.doubted = now
	if next := s.look(now, asked); s.doubted || next != now.Add(doubtLeast) {
		t.Errorf("asked just now: %+v, next %v", s, next)
	}
	if s.look(now.Add(doubtLeast), asked); !s.doubted {
		t.Error("no doubt")
	}
	if s.look(now.Add(doubtMost-1), up); s.doubted || s.falls != 0 {
		t.Errorf("an answer in time is no fall: %+v", s)
	}
	far := report{up: true, rtt: ms(400), doubted: now}
	if s.look(now.Add(ms(700)), far); s.doubted {
		t.Error("a relay that is far away may take its time")
	}
	s.look(now, up)

	settles := settleFirst
	for fall := 1; fall < 10; fall++ {
		s.look(now, report{})
		if s.up || s.settled || s.falls != fall {
			t.Fatalf("fall %d: %+v", fall, s)
		}
		now = now.Add(time.Second)
		if next := s.look(now, up); s.settled || next != now.Add(settles) {
			t.Fatalf("after fall %d: %+v, next %v", fall, s, next.Sub(now))
		}
		now = now.Add(settles)
		if s.look(now, up); !s.settled {
			t.Fatalf("after fall %d and %v: %+v", fall, settles, s)
		}
		settles = min(2*settles, settleMost)
	}
	now = now.Add(fallsForgiven)
	if s.look(now, up); s.falls != 0 {
		t.Errorf("unforgiven: %+v", s)
	}
	asked.doubted = now
	s.look(now.Add(doubtLeast), asked)
	if s.look(now.Add(doubtMost), up); s.falls != 1 || s.settled {
		t.Errorf("an answer that came too late is a fall: %+v", s)
	}
	if s.look(now, report{up: true, rtt: ms(20), tls: true}); s.cost != ms(20)+tlsHandicap {
		t.Errorf("by TLS it costs %v", s.cost)
	}
}

// TestPrice: a round trip that wavers is not told anew all the time.
func TestPrice(t *testing.T) {
	var s standing
	changes, last := 0, time.Duration(0)
	for i := range 1000 {
		s.look(viaStart, report{up: true, rtt: ms(40) + time.Duration(i%7)*time.Millisecond})
		if s.cost != last {
			changes++
			last = s.cost
		}
	}
	if changes != 1 {
		t.Errorf("%d changes", changes)
	}
}

func TestKeeper(t *testing.T) {
	now := viaStart
	never := make([]time.Time, 4)
	var k keeper
	relays := []sight{{id: "a"}, {id: "b"}, {id: "c"}, {id: "d"}}
	count := func(keep []bool) (n int) {
		for _, on := range keep {
			if on {
				n++
			}
		}
		return n
	}
	if keep, _ := k.step(now, relays[:2], never[:2]); count(keep) != 2 {
		t.Error("of two relays both are kept")
	}
	k = keeper{}
	keep, next := k.step(now, relays, never)
	if count(keep) != 4 || next != now.Add(surveyTime) {
		t.Fatalf("a survey asks all: %v, next %v", keep, next)
	}
	relays = []sight{good("a", ms(90)), good("b", ms(20)), good("c", ms(50)), good("d", ms(30))}
	now = now.Add(time.Second)
	if keep, next = k.step(now, relays, never); keep[0] || !keep[1] || keep[2] || !keep[3] || k.home[0] != "b" || next != now.Add(surveyEvery) {
		t.Fatalf("the nearest two: %v, home %v, next %v", keep, k.home, next)
	}
	wanted := []time.Time{now, {}, {}, {}}
	if keep, next = k.step(now, relays, wanted); !keep[0] || count(keep) != 3 || next != now.Add(missedFor) {
		t.Errorf("one that a peer is at: %v, next %v", keep, next)
	}
	relays[0], relays[2] = sight{id: "a", label: 1, cost: ms(90)}, sight{id: "c", label: 3, cost: ms(50)} // not attached
	now = now.Add(2 * time.Minute)
	relays[1].up = false
	if keep, _ = k.step(now, relays, never); count(keep) != 4 {
		t.Errorf("one of them is down: %v", keep)
	}
	relays[2].up = true
	now = now.Add(surveyTime)
	if keep, _ = k.step(now, relays, never); !keep[2] || !keep[3] || count(keep) != 2 {
		t.Errorf("the next best: %v", keep)
	}
}

// TestKeeperKeeps: of two that are about as near, the one that was kept is.
func TestKeeperKeeps(t *testing.T) {
	now := viaStart
	never := make([]time.Time, 3)
	k := keeper{home: []string{"a", "b"}}
	relays := []sight{good("a", ms(20)), good("b", ms(41)), good("c", ms(40))}
	if keep, _ := k.step(now, relays, never); !keep[1] || keep[2] {
		t.Errorf("%v", keep)
	}
	relays[2].cost = ms(10)
	now = now.Add(surveyEvery)
	if keep, _ := k.step(now, relays, never); keep[1] || !keep[2] {
		t.Errorf("%v", keep)
	}
}

func TestTeller(t *testing.T) {
	now := viaStart
	var tl teller
	if tell, _, next := tl.step(now, 1, false, false, false); tell || !next.IsZero() {
		t.Error("nobody is told who is not talked to")
	}
	tells, asks := 0, 0
	for end := now.Add(time.Minute); now.Before(end); now = now.Add(ms(50)) {
		tell, ask, _ := tl.step(now, 1, true, now.Sub(viaStart) > ms(1500), false)
		if tell {
			tells++
		}
		if ask {
			asks++
		}
	}
	if tells != 3+5 || asks != 3 {
		t.Errorf("told %d times in a minute, asked %d times", tells, asks)
	}
	if tell, _, next := tl.step(now, 2, true, true, true); !tell || next != now.Add(tellAgain[0]) {
		t.Error("a change is told at once, also where the path is direct")
	}
	for range tellAgain {
		now = now.Add(time.Second)
		tl.step(now, 2, true, true, true)
	}
	if _, _, next := tl.step(now.Add(time.Minute), 2, true, true, true); !next.IsZero() {
		t.Error("a direct path wants no reminders")
	}
	if tl.answer(tl.at.Add(answerGap-1), 2) || !tl.answer(tl.at.Add(answerGap), 2) || !tl.answer(tl.at, 3) {
		t.Error("answers")
	}
	m := newNotice(now, nil, false)
	if !tl.fresh(now, m) || tl.fresh(now.Add(time.Second), m) || tl.fresh(now, newNotice(now.Add(-time.Second), nil, false)) {
		t.Error("an old notice is taken")
	}
	if tl.fresh(now.Add(time.Hour), newNotice(now.Add(-time.Second), nil, false)) {
		t.Error("a notice that somebody kept is taken after an hour without any")
	}
	if !tl.fresh(now.Add(time.Minute), newNotice(now.Add(time.Hour), nil, false)) {
		t.Error("a peer whose clock is ahead is not believed")
	}
	back := now.Add(2 * time.Minute)
	if tl.fresh(back.Add(-time.Second), newNotice(back, nil, false)) || !tl.fresh(back, newNotice(back, nil, false)) {
		t.Error("a peer whose clock was set right is believed after a minute")
	}
}
