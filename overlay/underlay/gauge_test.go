package underlay

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// pathSim is a path with a gauge at one end, by virtual time.
type pathSim struct {
	g     *gauge
	now   time.Time
	rtt   time.Duration
	mtu   int // the longest datagram that passes; 0: none
	loss  float64
	rand  *rand.Rand
	big   bool
	pings int
	bytes int

	queue []simAnswer
	trace []int // sizes that the gauge took for true, in order
}

type simAnswer struct {
	at time.Time
	id probeID
}

func newPathSim(seed uint64, mtu int) *pathSim {
	p := &pathSim{now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), rtt: 40 * time.Millisecond, mtu: mtu, rand: rand.New(rand.NewPCG(seed, 1)), big: true}
	next := uint64(0)
	p.g = newGauge(func() (id probeID) {
		next++
		binary.LittleEndian.PutUint64(id[:], next)
		return id
	}, fullSize(0))
	return p
}

// run lets time pass in steps, as the Bind does.
func (p *pathSim) run(d time.Duration) {
	const step = 10 * time.Millisecond
	for end := p.now.Add(d); p.now.Before(end); p.now = p.now.Add(step) {
		for len(p.queue) > 0 && !p.queue[0].at.After(p.now) {
			p.g.Answered(p.now, p.queue[0].id)
			p.queue = p.queue[1:]
		}
		out, _ := p.g.Tick(p.now, true, p.big)
		for _, t := range out {
			p.pings++
			p.bytes += t.size
			if t.size <= p.mtu && p.rand.Float64() >= p.loss {
				p.queue = append(p.queue, simAnswer{p.now.Add(p.rtt), t.id})
			}
		}
		if n := len(p.trace); n == 0 || p.trace[n-1] != p.g.size {
			p.trace = append(p.trace, p.g.size)
		}
	}
}

// fits is what a gauge should find on a path.
func fits(mtu int) int {
	if full := fullSize(0); mtu >= full {
		return full
	}
	return sealedBytes + room(mtu)
}

// TestGauge measures paths of every width from the first moment on.
func TestGauge(t *testing.T) {
	for _, c := range []struct{ ip, header int }{{1500, 28}, {1492, 28}, {1480, 28}, {1460, 28}, {1400, 28}, {1300, 28}, {1280, 28}, {1280, 48}, {1124, 28}, {576, 28}} {
		t.Run(fmt.Sprintf("%d-%d", c.ip, c.header), func(t *testing.T) {
			p := newPathSim(1, c.ip-c.header)
			p.run(4 * time.Second)
			if want := fits(p.mtu); p.g.size != want || !p.g.proved {
				t.Errorf("size %d after %d pings, %v; want %d", p.g.size, p.pings, p.trace, want)
			}
		})
	}
}

// TestGaugeEveryWidth compares with a plain answer for every width there is.
func TestGaugeEveryWidth(t *testing.T) {
	for mtu := leastSize; mtu <= 1500; mtu++ {
		p := newPathSim(1, mtu)
		p.run(5 * time.Second)
		if want := fits(mtu); p.g.size != want {
			t.Fatalf("%d for a path of %d, want %d", p.g.size, mtu, want)
		}
		p.g.Reset(p.g.full)
		p.run(5 * time.Second)
		if want := fits(mtu); p.g.size != want {
			t.Fatalf("%d for a path of %d after a reset, want %d", p.g.size, mtu, want)
		}
	}
}

// TestGaugeNarrows changes the path while long datagrams leave, and looks for
// how long it is believed to be wider than it is.
func TestGaugeNarrows(t *testing.T) {
	p := newPathSim(1, 1472)
	p.run(5 * time.Second)
	for _, mtu := range []int{1372, 1272, 1252} {
		p.mtu = mtu
		from := p.now
		for p.g.size > mtu && p.now.Sub(from) < 10*time.Second {
			p.run(10 * time.Millisecond)
		}
		took := p.now.Sub(from)
		t.Logf("%d after %v", mtu, took)
		if took > 1300*time.Millisecond {
			t.Errorf("believed too much for %v after the path became %d", took, mtu)
		}
		p.run(3 * time.Second)
		if want := fits(mtu); p.g.size != want {
			t.Errorf("%d at the end, want %d; %v", p.g.size, want, p.trace)
		}
	}
	for _, size := range p.trace {
		if size < fits(1252) {
			t.Errorf("%d was believed of a path that always carried %d", size, fits(1252))
		}
	}
	p.mtu = 1472
	from := p.now
	for p.g.size < p.g.full && p.now.Sub(from) < time.Hour {
		p.run(time.Second)
	}
	if took := p.now.Sub(from); took > raiseMost+time.Second {
		t.Errorf("wide again after %v", took)
	}
}

// TestGaugeKicked: after a change of the network the width is found at once.
func TestGaugeKicked(t *testing.T) {
	p := newPathSim(1, 1252)
	p.run(time.Hour)
	p.mtu = 1472
	p.g.Reset(p.g.full)
	p.run(200 * time.Millisecond)
	if p.g.size != p.g.full {
		t.Errorf("%d, want %d", p.g.size, p.g.full)
	}
}

// TestGaugeIsQuiet counts pings: none without traffic, few with.
func TestGaugeIsQuiet(t *testing.T) {
	p := newPathSim(1, 1472)
	p.big = false
	p.run(time.Hour)
	if p.pings != 1 {
		t.Errorf("%d pings in an hour without long datagrams", p.pings)
	}
	p.big = true
	p.run(time.Minute)
	if most := int(time.Minute/checkEvery) + 1; p.pings > most {
		t.Errorf("%d pings in a minute, want %d at most", p.pings, most)
	}
	p.mtu, p.pings = 0, 0
	p.run(time.Hour)
	if p.pings > 1500 {
		t.Errorf("%d pings in an hour on a path that answers none", p.pings)
	}
	if !p.g.deaf || p.g.size != p.g.full {
		t.Errorf("%+v: a path that answers nothing is not narrow", p.g)
	}
	p = newPathSim(1, 1252)
	p.big = false
	p.run(time.Hour)
	if p.pings > 200 {
		t.Errorf("%d pings in an hour on a narrow path at rest", p.pings)
	}
	p.pings = 0
	p.g.Tick(p.now, false, false)
	if _, next := p.g.Tick(p.now, false, true); !next.IsZero() {
		t.Error("a way that is not in use wants a turn")
	}
}

// TestGaugeLoss: chance does not make a path narrow for long.
func TestGaugeLoss(t *testing.T) {
	for _, loss := range []float64{0.02, 0.05, 0.2} {
		p := newPathSim(7, 1472)
		p.loss = loss
		narrow := 0
		const samples = 36000
		for range samples {
			p.run(100 * time.Millisecond)
			if p.g.narrow() {
				narrow++
			}
		}
		share := float64(narrow) / samples
		t.Logf("loss %v: narrow for %.2f %% of an hour", loss, 100*share)
		if loss <= 0.05 && share > 0.05 || share > 0.5 {
			t.Errorf("loss %v: narrow for %.1f %% of the time", loss, 100*share)
		}
		if len(p.g.sent) > mostTrials {
			t.Errorf("%d trials kept", len(p.g.sent))
		}
	}
}

// TestGaugeDelay: a queue that fills up makes answers late, and nothing narrow.
func TestGaugeDelay(t *testing.T) {
	p := newPathSim(3, 1472)
	p.run(2 * time.Second)
	for _, rtt := range []time.Duration{300 * time.Millisecond, 900 * time.Millisecond, 3 * time.Second} {
		p.rtt = rtt
		p.run(time.Minute)
		if p.g.narrow() {
			t.Errorf("narrow at a round trip of %v: %v", rtt, p.trace)
		}
	}
	if slices.Min(p.trace) < p.g.full {
		t.Errorf("narrow for a while: %v", p.trace)
	}
}

func TestBetween(t *testing.T) {
	for low := leastSize; low <= 1452; low += sealedStep {
		for high := low; high <= 1453; high++ {
			got := between(low, high)
			for i, size := range got {
				if size <= low || size >= high || (size-sealedBytes)%sealedStep != 0 || i > 0 && size >= got[i-1] {
					t.Fatalf("between(%d, %d) = %v", low, high, got)
				}
			}
			if len(got) == 0 && high-low > sealedStep {
				t.Fatalf("between(%d, %d) is empty", low, high)
			}
		}
	}
}
