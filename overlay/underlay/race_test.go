package underlay

import (
	"math/rand/v2"
	"testing"
	"time"
)

// track is a virtual network for one race: UDP and TLS pass or not, and answer
// at once when they do.
type track struct {
	t        *testing.T
	now      time.Time
	race     race
	f        facts
	udp, web bool // what passes
	breaks   bool // what is dialed breaks at once
	mute     bool // nobody attaches by TLS
	rnd      *rand.Rand

	dials, tries int // TLS connections begun, UDP sessions begun anew
}

const trackStep = 50 * time.Millisecond

func newTrack(t *testing.T, udp, web bool) *track {
	return &track{t: t, now: time.Unix(1000, 0), udp: udp, web: web, rnd: rand.New(rand.NewPCG(1, 2))}
}

// run lets time pass. Sessions behave as relay.Session does: UDP that was up is
// doubted first, and given up after 2.5 s.
func (k *track) run(d time.Duration) {
	k.t.Helper()
	for end := k.now.Add(d); k.now.Before(end); k.now = k.now.Add(trackStep) {
		switch {
		case k.f.udp && !k.udp && k.f.doubted.IsZero():
			k.f.doubted = k.now
		case k.f.udp && !k.udp && k.now.Sub(k.f.doubted) > 2500*time.Millisecond:
			k.f.udp, k.f.doubted = false, time.Time{}
		case k.f.udp && k.udp:
			k.f.doubted = time.Time{}
		}
		if k.f.stream && (!k.web || k.breaks) {
			k.f.stream, k.f.up = false, false
		}
		v := k.race.step(k.now, k.f, func(d time.Duration) time.Duration { return time.Duration(k.rnd.Int64N(int64(d))) })
		if v.dial && (k.f.dialing || k.f.stream) {
			k.t.Fatal("it dials twice")
		}
		if v.hangUp {
			k.f.stream, k.f.up = false, false
		}
		if v.fresh {
			k.tries++
			k.f.udp, k.f.doubted = false, time.Time{}
		}
		if v.udp && k.udp {
			k.f.udp = true
		}
		if v.attach && k.f.stream && k.web && !k.mute {
			k.f.up = true
		}
		k.f.dialing = false
		if v.dial {
			k.dials++
			k.f.stream, k.f.gone = k.web, !k.web
		}
		if v.attach && !v.udp && !k.race.tls {
			k.t.Fatal("nobody asks UDP any more")
		}
	}
}

func (k *track) want(tls bool) {
	k.t.Helper()
	up := k.f.udp
	if tls {
		up = k.f.up
	}
	if k.race.tls != tls || !up {
		k.t.Fatalf("tls %v with %+v, want %v", k.race.tls, k.f, tls)
	}
}

func TestRace(t *testing.T) {
	t.Run("UDP answers: no connection is made", func(t *testing.T) {
		k := newTrack(t, true, true)
		k.run(time.Hour)
		k.want(false)
		if k.dials != 0 {
			t.Errorf("%d dials", k.dials)
		}
	})
	t.Run("UDP is blocked from the start", func(t *testing.T) {
		k := newTrack(t, false, true)
		k.run(tlsAfter - 2*trackStep)
		if k.dials != 0 {
			t.Error("TLS started with UDP")
		}
		k.run(500 * time.Millisecond)
		k.want(true)
		k.tries = 0
		k.run(time.Hour) // up to 30 s, 60 s, 120 s, 240 s, then 300 s, and 2 s each
		if k.tries < 15 || k.tries > 36 || k.dials != 1 {
			t.Errorf("UDP was tried %d times in an hour, TLS dialed %d times", k.tries, k.dials)
		}
		k.udp = true
		k.race.kick(k.now)
		k.run(200 * time.Millisecond)
		k.want(false)
		if k.f.stream {
			t.Error("the connection is kept")
		}
	})
	t.Run("UDP dies and comes back", func(t *testing.T) {
		k := newTrack(t, true, true)
		k.run(10 * time.Minute)
		k.udp = false
		k.run(doubtBeforeTLS + 300*time.Millisecond)
		k.want(true)
		k.udp = true
		k.run(udpFirst + time.Second)
		k.want(false)
	})
	t.Run("one lost PING", func(t *testing.T) {
		k := newTrack(t, true, true)
		k.run(time.Minute)
		k.udp = false
		k.run(600 * time.Millisecond)
		k.udp = true
		k.run(time.Second)
		k.want(false)
		if k.dials != 1 || k.f.stream {
			t.Errorf("%d dials, %+v", k.dials, k.f)
		}
	})
}

// TestRaceInVain: what does not work is tried again, and not too often.
func TestRaceInVain(t *testing.T) {
	t.Run("UDP that works for a moment only is asked ever less", func(t *testing.T) {
		k := newTrack(t, false, true)
		k.run(2 * time.Second)
		for range 20 {
			k.udp = true
			for i := 0; k.race.tls && i < 400; i++ {
				k.run(time.Second)
			}
			k.want(false)
			k.run(time.Second)
			k.udp = false
			k.run(4 * time.Second)
			k.want(true)
		}
		if k.race.gap != udpMost {
			t.Errorf("gap %v", k.race.gap)
		}
	})
	t.Run("nothing passes: no spin", func(t *testing.T) {
		k := newTrack(t, false, false)
		k.run(time.Hour)
		if k.dials < 600 || k.dials > 1200 { // a random part of redialGone each
			t.Errorf("%d dials in an hour", k.dials)
		}
		k.web = true
		k.run(redialGone + time.Second)
		k.want(true)
	})
	t.Run("TLS breaks again and again", func(t *testing.T) {
		k := newTrack(t, false, true)
		for range 3600 {
			k.web = true
			k.run(900 * time.Millisecond)
			k.web = false
			k.run(100 * time.Millisecond)
		}
		if k.dials > 300 {
			t.Errorf("%d dials in an hour", k.dials)
		}
	})
	t.Run("a connection in which nobody answers", func(t *testing.T) {
		var r race
		now := time.Unix(1000, 0)
		zero := func(time.Duration) time.Duration { return 0 }
		r.step(now, facts{}, zero)
		now = now.Add(2 * time.Second)
		if v := r.step(now, facts{stream: true}, zero); !v.attach || v.hangUp {
			t.Errorf("%+v", v)
		}
		if v := r.step(now.Add(tlsPatience), facts{stream: true}, zero); !v.hangUp {
			t.Errorf("%+v", v)
		}
	})
}

// TestRaceBackAndForth: UDP comes and goes every few seconds, and each time TLS
// takes over as soon as the first time.
func TestRaceBackAndForth(t *testing.T) {
	k := newTrack(t, true, true)
	k.run(5 * time.Second)
	for range 30 {
		k.udp = false
		k.run(1500 * time.Millisecond)
		k.want(true)
		k.udp = true
		k.race.kick(k.now)
		k.run(4 * time.Second)
		k.want(false)
	}
}

// TestRaceAtRandom: whatever happens, within a minute and a bit of calm the
// relay is reached, if there is a way, and never by two.
func TestRaceAtRandom(t *testing.T) {
	k := newTrack(t, true, true)
	for range 2000 {
		k.udp, k.web = k.rnd.IntN(2) == 0, k.rnd.IntN(2) == 0
		k.run(time.Duration(k.rnd.IntN(60_000)) * time.Millisecond)
		if k.rnd.IntN(4) == 0 {
			k.race.kick(k.now)
		}
		if k.udp || k.web {
			k.run(redialMost + 5*time.Second)
			if k.race.tls {
				k.want(true)
			} else {
				k.want(false)
			}
		}
	}
}

// TestNoSpin: however TLS fails, for hours, it is dialed seldom, and more often
// only while nothing is known.
func TestNoSpin(t *testing.T) {
	for name, change := range map[string]func(*track){
		"broken at once":   func(k *track) { k.web, k.breaks = true, true },
		"nobody is behind": func(k *track) { k.web, k.mute = true, true },
	} {
		t.Run(name, func(t *testing.T) {
			k := newTrack(t, false, false)
			change(k)
			k.run(time.Minute)
			if k.dials < 3 || k.dials > 20 {
				t.Errorf("%d dials in the first minute", k.dials)
			}
			first := k.dials
			k.run(3 * time.Hour)
			// a random part of a minute each, half of one on average
			if n := k.dials - first; n < 180 || n > 3*180 {
				t.Errorf("%d dials in three hours", n)
			}
		})
	}
}
