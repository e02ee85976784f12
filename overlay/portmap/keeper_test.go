package portmap

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// stage drives a keeper through virtual time, against a router of the test's.
type stage struct {
	t      *testing.T
	k      *keeper
	now    time.Time
	start  time.Time
	router func(task) (lease, error)
	asked  []string // "obtain pcp", ...
	at     []time.Duration
}

func newStage(t *testing.T) *stage {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	s := &stage{t: t, k: newKeeper(rand.New(rand.NewPCG(1, 2))), now: now, start: now}
	s.router = s.silent
	return s
}

var kindWords = map[taskKind]string{obtain: "obtain", check: "check", release: "release"}

func (s *stage) silent(task) (lease, error) { return lease{}, errSilent }

// grants is a router that speaks one protocol and started some time ago.
func (s *stage) grants(p Protocol, external string, life, age time.Duration) func(task) (lease, error) {
	booted := s.now.Add(-age)
	return func(t task) (lease, error) {
		if t.protocol != p {
			return lease{}, errSilent
		}
		l := lease{protocol: p, internal: t.target.Port, external: netip.MustParseAddrPort(external), lifetime: life}
		if p != UPnP {
			l.epoch = epoch{uint32(s.now.Sub(booted) / time.Second), s.now}
		}
		return l, nil
	}
}

// run lets time pass.
func (s *stage) run(d time.Duration) {
	s.t.Helper()
	for end, turns := s.now.Add(d), 0; ; turns++ {
		t, ok, at := s.k.Next(s.now)
		switch {
		case turns > 10_000:
			s.t.Fatalf("it spins: %v", s.asked[len(s.asked)-10:])
		case ok:
			s.asked = append(s.asked, kindWords[t.kind]+" "+string(t.protocol))
			s.at = append(s.at, s.now.Sub(s.start))
			l, err := s.router(t)
			s.now = s.now.Add(10 * time.Millisecond)
			s.k.Done(s.now, t, l, err)
		case at.IsZero() || at.After(end):
			s.now = end
			return
		case !at.After(s.now):
			s.t.Fatalf("it wants to be called again at once")
		default:
			s.now = at
		}
	}
}

func (s *stage) want(words ...string) {
	s.t.Helper()
	if fmt.Sprint(s.asked) != fmt.Sprint(words) {
		s.t.Errorf("asked %v\nwant  %v", s.asked, words)
	}
	s.asked, s.at = nil, nil
}

const testExternal = "11.0.0.2:41642"

func TestProtocolsInOrder(t *testing.T) {
	for p, want := range map[Protocol][]string{
		PCP:    {"obtain pcp"},
		NATPMP: {"obtain pcp", "obtain nat-pmp"},
		UPnP:   {"obtain pcp", "obtain nat-pmp", "obtain upnp"},
	} {
		s := newStage(t)
		s.router = s.grants(p, testExternal, time.Hour, time.Hour)
		s.run(time.Minute)
		s.want()
		s.k.Move(s.now, testTarget)
		if r := s.k.Status().Reason; r != ReasonAsking {
			t.Errorf("%s: %s before the first answer", p, r)
		}
		s.run(time.Second)
		s.want(want...)
		st := s.k.Status()
		if st.Protocol != p || st.Offered().String() != testExternal || !st.Expires.After(s.now) {
			t.Errorf("%+v", st)
		}
		s.k.Move(s.now, Target{})
		s.k.Move(s.now, testTarget)
		s.run(time.Second)
		if s.asked[0] != "obtain pcp" { // another router for all that we know
			t.Errorf("%v", s.asked)
		}
	}
}

// TestMoveMeanwhile: the target changes during a task, and may be the old one
// again before that has ended.
func TestMoveMeanwhile(t *testing.T) {
	other := testTarget
	other.Gateway = netip.AddrFrom4([4]byte{10, 0, 0, 9})
	port := testTarget
	port.Port++
	for name, c := range map[string]struct {
		held    bool // there is a mapping, so the task is a check
		moves   []Target
		err     error
		next    string // what is done at once
		offered bool
	}{
		"gone and back, ended":     {false, []Target{{}, testTarget}, errSilent, "obtain pcp", false},
		"gone and back, granted":   {false, []Target{{}, testTarget}, nil, "", true},
		"gone and back, checked":   {true, []Target{{}, testTarget}, nil, "obtain pcp", false},
		"gone and back, not there": {true, []Target{{}, testTarget}, errGone, "obtain pcp", false},
		"another router, granted":  {false, []Target{other}, nil, "obtain pcp", false},
		"another port, granted":    {false, []Target{port}, nil, "release pcp", false},
		"another port, ended":      {false, []Target{port}, errSilent, "obtain pcp", false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t)
			s.router = s.grants(PCP, testExternal, time.Hour, time.Hour)
			s.k.Move(s.now, testTarget)
			if c.held {
				s.run(time.Second)
				s.now = s.now.Add(checkEvery * 2)
			}
			at, ok, _ := s.k.Next(s.now)
			if !ok || (at.kind == check) != c.held {
				t.Fatalf("%+v", at)
			}
			l, _ := s.router(at)
			for _, m := range c.moves {
				s.k.Move(s.now, m)
			}
			s.k.Done(s.now, at, l, c.err)
			got := ""
			if next, ok, _ := s.k.Next(s.now); ok {
				got = kindWords[next.kind] + " " + string(next.protocol)
			}
			if got != c.next || s.k.Status().Offered().IsValid() != c.offered {
				t.Errorf("then %q, %+v", got, s.k.Status())
			}
		})
	}
}

// TestShorten: what a router writes moves no cursor, and is text.
func TestShorten(t *testing.T) {
	for in, want := range map[string]string{
		"too many mappings":            "too many mappings",
		"a\nb\u009b2Jc":                "a b 2Jc",
		strings.Repeat("x", 199) + "é": strings.Repeat("x", 199),
	} {
		if got := shorten(in); got != want {
			t.Errorf("%q became %q", in, got)
		}
	}
}

// TestIdle: without a router, or before the socket is open, nothing is asked.
func TestIdle(t *testing.T) {
	for _, target := range []Target{{}, {Local: testLocal, Port: 1}, {Gateway: testGateway, Local: testLocal}, {Gateway: netip.MustParseAddr("fe80::1"), Local: testLocal, Port: 1}} {
		s := newStage(t)
		s.k.Move(s.now, target)
		s.k.Kick(s.now)
		s.run(24 * time.Hour)
		s.want()
		if st := s.k.Status(); st.Reason == "" || st.Offered().IsValid() || target == (Target{}) && st.Reason != ReasonNoRouter {
			t.Errorf("%+v", st)
		}
	}
}

// TestRenewal: at half the lifetime, whatever that is, and checks in between.
func TestRenewal(t *testing.T) {
	for _, c := range []struct{ granted, half time.Duration }{
		{20 * time.Minute, 10 * time.Minute},
		{4 * time.Minute, 2 * time.Minute},
		{time.Second, shortest / 2},
		{1 << 31 * time.Second, longest / 2},
		{0, lifetime / 2}, // for ever
	} {
		s := newStage(t)
		s.router = s.grants(UPnP, testExternal, c.granted, time.Hour)
		s.k.order = []Protocol{UPnP}
		s.k.Move(s.now, testTarget)
		s.run(c.half + time.Second)
		n := len(s.asked) - 1
		if s.asked[0] != "obtain upnp" || s.asked[n] != "obtain upnp" || s.at[n] < c.half || s.at[n] > c.half+time.Second {
			t.Errorf("lifetime %v: the last was %s at %v", c.granted, s.asked[n], s.at[n])
		}
		for i, what := range s.asked[1:n] {
			if what != "check upnp" {
				t.Errorf("lifetime %v: %s at %v", c.granted, what, s.at[i+1])
			}
		}
		if most := int(c.half/(checkSlow*4/5)) + 1; n-1 > most {
			t.Errorf("lifetime %v: %d checks, want %d at most", c.granted, n-1, most)
		}
	}
}

// TestRestart: a router that was restarted is asked anew at the next check, even
// when it had only just started before.
func TestRestart(t *testing.T) {
	for _, age := range []time.Duration{0, time.Second, 3 * time.Second, time.Minute, 1000 * time.Hour} {
		for _, after := range []time.Duration{0, time.Second, 10 * time.Second, 5 * time.Minute} {
			s := newStage(t)
			s.router = s.grants(PCP, testExternal, time.Hour, age)
			s.k.Move(s.now, testTarget)
			s.run(after)
			s.asked = nil
			s.router = s.grants(PCP, testExternal, time.Hour, 0)
			s.run(2 * checkEvery)
			if fmt.Sprint(s.asked[:2]) != "[check pcp obtain pcp]" {
				t.Errorf("running for %v, restarted after %v: %v", age, after, s.asked)
			}
		}
	}
	s := newStage(t)
	s.router = s.grants(PCP, testExternal, time.Hour, time.Hour)
	s.k.Move(s.now, testTarget)
	s.run(29 * time.Minute)
	for i, what := range s.asked[1:] {
		if what != "check pcp" {
			t.Errorf("a router that just runs: %s at %v", what, s.at[i+1])
		}
	}
}

// TestChanges: another external address, and a mapping that somebody removed.
func TestChanges(t *testing.T) {
	s := newStage(t)
	s.router = s.grants(NATPMP, testExternal, time.Hour, time.Hour)
	s.k.Move(s.now, testTarget)
	s.run(time.Second)
	s.asked = nil
	s.router = s.grants(NATPMP, "11.0.0.3:41642", time.Hour, time.Hour)
	s.run(30 * time.Second)
	s.want("check nat-pmp", "obtain nat-pmp")
	if at := s.k.Status().Offered().String(); at != "11.0.0.3:41642" {
		t.Error(at)
	}
	gone := s.router
	s.router = func(t task) (lease, error) {
		if t.kind == check {
			return lease{}, errGone
		}
		return gone(t)
	}
	s.run(25 * time.Second)
	s.want("check nat-pmp", "obtain nat-pmp")
}

// TestSilence: the pauses grow, a lease is offered until it expires, and a change
// of the network ends the pause, but not more often than every ten seconds.
func TestSilence(t *testing.T) {
	s := newStage(t)
	s.k.Move(s.now, testTarget)
	s.run(24 * time.Hour)
	if n := len(s.asked); n < 3*70 || n > 3*130 { // of three protocols, each 15 minutes in the mean
		t.Errorf("%d questions in a day", n)
	}
	if st := s.k.Status(); st.Reason != ReasonSilent || st.Detail == "" {
		t.Errorf("%+v", st)
	}
	s.asked = nil
	for range 200 { // four times a second, as a machine full of containers
		s.k.Kick(s.now)
		s.run(250 * time.Millisecond)
	}
	if n := len(s.asked); n < 3*4 || n > 3*6 {
		t.Errorf("%d questions in 50 s of changes", n)
	}

	s = newStage(t)
	s.router = s.grants(PCP, testExternal, 10*time.Minute, time.Hour)
	s.k.Move(s.now, testTarget)
	s.run(time.Second)
	s.router = s.silent
	s.run(9 * time.Minute)
	if !s.k.Status().Offered().IsValid() {
		t.Error("it is no longer offered while it still is there")
	}
	s.run(2 * time.Minute)
	if st := s.k.Status(); st.Offered().IsValid() || st.Reason != ReasonSilent {
		t.Errorf("%+v", st)
	}
}

func TestRefusal(t *testing.T) {
	s := newStage(t)
	s.router = s.grants(NATPMP, testExternal, time.Hour, time.Hour)
	s.k.Move(s.now, testTarget)
	s.run(time.Second)
	s.router = func(t task) (lease, error) {
		if t.protocol == NATPMP {
			return lease{}, refused(NATPMP, 2)
		}
		return lease{}, errSilent
	}
	s.run(time.Minute)
	st := s.k.Status()
	if st.Reason != ReasonRefused || st.Detail != "nat-pmp: the router refused: not authorized (2)" || st.Offered().IsValid() {
		t.Errorf("%+v", st)
	}
}

// TestOtherRefusal: a no in another protocol than the mapping's does not end it.
func TestOtherRefusal(t *testing.T) {
	s := newStage(t)
	s.router = s.grants(UPnP, testExternal, 0, time.Hour)
	s.k.Move(s.now, testTarget)
	s.run(time.Second)
	until := s.k.Status().Expires
	s.router = func(t task) (lease, error) {
		if t.protocol == PCP {
			return lease{}, refused(PCP, 2)
		}
		return lease{}, errSilent
	}
	s.run(until.Sub(s.now) - time.Second)
	if st := s.k.Status(); st.Offered().String() != testExternal {
		t.Errorf("%+v", st)
	}
	s.run(2 * time.Second)
	if st := s.k.Status(); st.Offered().IsValid() || st.Reason != ReasonRefused {
		t.Errorf("%+v", st)
	}
}

// TestPrivate: an external address that is none is not offered.
func TestPrivate(t *testing.T) {
	for a, want := range map[string]bool{
		"11.0.0.2": true, "198.51.100.2": true, "100.63.0.1": true, "172.32.0.1": true,
		"10.0.0.1": false, "172.16.0.1": false, "192.168.1.1": false, "100.64.0.1": false, "100.127.1.1": false,
		"169.254.1.1": false, "127.0.0.1": false, "0.0.0.0": false, "0.1.2.3": false, "224.0.0.1": false,
		"192.0.0.4": false, "198.18.0.1": false, "255.255.255.255": false, "2001:db8::1": false,
	} {
		s := newStage(t)
		s.router = s.grants(PCP, netip.AddrPortFrom(netip.MustParseAddr(a), 4000).String(), time.Hour, time.Hour)
		s.k.Move(s.now, testTarget)
		s.run(time.Second)
		st := s.k.Status()
		if st.Offered().IsValid() != want || st.Protocol != PCP || !want && (st.Reason != ReasonPrivate || st.Detail == "") {
			t.Errorf("%s: %+v", a, st)
		}
	}
}

// TestMove: what is released when, and what comes too late.
func TestMove(t *testing.T) {
	s := newStage(t)
	s.router = s.grants(PCP, testExternal, time.Hour, time.Hour)
	s.k.Move(s.now, testTarget)
	s.run(time.Second)
	s.asked = nil

	port := testTarget
	port.Port++
	s.k.Move(s.now, port)
	if s.k.Status().Offered().IsValid() {
		t.Error("the mapping of another port is offered")
	}
	s.run(time.Second)
	s.want("release pcp", "obtain pcp")

	elsewhere := port
	elsewhere.Gateway = netip.MustParseAddr("192.168.77.254")
	s.k.Move(s.now, elsewhere)
	s.run(time.Second)
	s.want("obtain pcp")

	// An answer for the target before.
	task, ok, _ := s.k.Next(s.now.Add(time.Minute))
	if !ok {
		t.Fatal("nothing to check after a minute")
	}
	s.k.Move(s.now, testTarget)
	s.k.Done(s.now, task, lease{}, errors.New("late"))
	if s.k.failed != nil || s.k.held {
		t.Errorf("a late answer counts: %+v", s.k.Status())
	}
	s.run(time.Second)
	if all := s.k.Close(); len(all) != 1 || all[0].kind != release || all[0].target != testTarget {
		t.Errorf("%+v", all)
	}
	if all := s.k.Close(); len(all) != 0 {
		t.Errorf("twice: %+v", all)
	}
}

// TestAnything: whatever happens in whatever order, it neither spins nor offers
// what has expired.
func TestAnything(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	s := newStage(t)
	for range 3000 {
		switch random.IntN(7) {
		case 0:
			s.k.Move(s.now, Target{})
		case 1, 2:
			target := testTarget
			target.Port += uint16(random.IntN(2))
			target.Gateway = netip.AddrFrom4([4]byte{10, 0, 0, byte(random.IntN(2))})
			s.k.Move(s.now, target)
		case 3:
			s.k.Kick(s.now)
		case 4:
			s.router = s.silent
		case 5:
			p := []Protocol{PCP, NATPMP, UPnP}[random.IntN(3)]
			s.router = s.grants(p, testExternal, time.Duration(random.IntN(7200))*time.Second, time.Duration(random.IntN(7200))*time.Second)
		case 6:
			s.router = func(task) (lease, error) { return lease{}, []error{errGone, refused(PCP, 8), errWire}[random.IntN(3)] }
		}
		before := len(s.asked)
		d := time.Duration(random.ExpFloat64() * float64(time.Minute))
		s.run(d)
		if n := len(s.asked) - before; n > 8+4*int(d/(kickGap/2)) {
			t.Fatalf("%d questions in %v: %v", n, d, s.asked[before:])
		}
		if s.k.held && s.now.After(s.k.expires.Add(time.Second)) {
			t.Fatal("an expired lease is held")
		}
		if len(s.k.unwanted) > 2 {
			t.Fatalf("%d leases wait to be released", len(s.k.unwanted))
		}
	}
}
