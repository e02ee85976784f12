package underlay

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"overlayd/overlay/key"
	"overlayd/overlay/relay"
)

var addrEqual = cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })

func testProbes() []probe {
	v4, v6 := netip.MustParseAddrPort("198.51.100.2:4000"), netip.MustParseAddrPort("[2001:db8::1]:65535")
	return []probe{
		{kind: probePing, id: probeID{1, 2}},
		{kind: probePong, id: probeID{3}, observed: v4, got: 1 << 31},
		{kind: probePong, observed: v6},
		{kind: probeCallMe, id: probeID{4}},
		{kind: probeCallMe, id: probeID{5}, noUDP: true},
		{kind: probeCallMe, answer: true, candidates: []netip.AddrPort{v4, v6}, mapped: 2, next: v4, step: -2},
		{kind: probeNotice, id: probeID{6}, ask: true},
		{kind: probeNotice, places: []presence{{Place{10, 20 * time.Millisecond}, false}, {Place{relay.MaxLabel, 0}, true}}},
	}
}

func TestProbeRoundTrip(t *testing.T) {
	for _, m := range testProbes() {
		got, err := parseProbe(m.Append(nil))
		if err != nil {
			t.Fatalf("%+v: %v", m, err)
		}
		if diff := cmp.Diff(m, got, addrEqual, cmp.AllowUnexported(probe{}, presence{})); diff != "" {
			t.Error(diff)
		}
	}
	many := probe{kind: probeCallMe, candidates: make([]netip.AddrPort, mostCandidates+3)}
	if got, err := parseProbe(many.Append(nil)); err != nil || len(got.candidates) != mostCandidates {
		t.Errorf("%d candidates, %v", len(got.candidates), err)
	}
}

// TestNoAmplification: what answers a ping is no longer than it.
func TestNoAmplification(t *testing.T) {
	ping, pong := probe{kind: probePing}.Append(nil), probe{kind: probePong}.Append(nil)
	if len(pong) > len(ping) {
		t.Errorf("a ping of %d bytes is answered by %d", len(ping), len(pong))
	}
}

func testSeals(t testing.TB) (a, b, c *seal) {
	t.Helper()
	keys := [3]key.Private{key.NewPrivate(), key.NewPrivate(), key.NewPrivate()}
	made := func(own, peer int) *seal {
		s, err := newSeal(keys[own], keys[peer].Public())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	return made(0, 1), made(1, 0), made(2, 0)
}

// TestSeal opens what the peer closed and nothing else.
func TestSeal(t *testing.T) {
	a, b, c := testSeals(t)
	for _, m := range testProbes() {
		d := a.close(200, m)
		if d[0] != typeProbe || labelOf(d) != 200 {
			t.Errorf("% x", d[:4])
		}
		stamp(d, 11) // as a relay does
		if got, err := b.open(d); err != nil || got.id != m.id {
			t.Errorf("%+v, %v", got, err)
		}
		if _, err := a.open(d); err == nil {
			t.Error("a probe came back to its sender, who took it")
		}
		if _, err := c.open(d); err == nil {
			t.Error("a third node opened it")
		}
		for i := headerSize; i < len(d); i++ {
			d[i] ^= 1
			if _, err := b.open(d); err == nil {
				t.Errorf("byte %d changed, and it opens", i)
			}
			d[i] ^= 1
			if _, err := b.open(d[:i]); err == nil {
				t.Errorf("cut to %d bytes, it opens", i)
			}
		}
	}
	if _, err := newSeal(key.NewPrivate(), key.Public{}); err == nil {
		t.Error("a key of low order makes a seal")
	}
}

func TestLimiter(t *testing.T) {
	l := newLimiter()
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	now, allowed := l.start, 0
	for range 10 * probeBurst {
		if l.allow(a, now) {
			allowed++
		}
	}
	if allowed < probeBurst || allowed > probeBurst+1 {
		t.Errorf("%d at once, want %d", allowed, probeBurst)
	}
	for i := range 1000 { // ten seconds
		if l.allow(a, now.Add(time.Duration(i)*10*time.Millisecond)) {
			allowed++
		}
	}
	if most := probeBurst + int(10*time.Second/probeGap) + 2; allowed > most {
		t.Errorf("%d in ten seconds, want %d", allowed, most)
	}
	if a != b && !l.allow(b, now) {
		t.Error("another source is refused (or, once in a thousand runs, has the same cell)")
	}
}

func FuzzProbe(f *testing.F) {
	for _, m := range testProbes() {
		f.Add(m.Append(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseProbe(b)
		if err != nil {
			return
		}
		again := m.Append(nil)
		if m.kind == probePing {
			b = b[:len(again)] // padding may be longer, and anything
			copy(b[1+len(m.id):], again[1+len(m.id):])
		}
		if m.kind != probeCallMe && m.kind != probeNotice && !bytes.Equal(b, again) && !m.observed.Addr().Is4In6() {
			t.Errorf("% x became % x", b, again)
		}
	})
}

// FuzzFinder feeds a finder whatever an authentic but mad peer may say, and
// checks what must hold: it uses only addresses that answered its own pings,
// and remembers a bounded number of them.
func FuzzFinder(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, uint64(1))
	f.Fuzz(func(t *testing.T, script []byte, seed uint64) {
		s := newMadPeer(seed)
		for _, step := range script {
			s.step(step)
			if use := s.finder.use; use != nil && !s.answered[use.addr] {
				t.Fatalf("%s is used and never answered", use.addr)
			}
			if n := len(s.finder.spots); n > mostSpots {
				t.Fatalf("%d spots", n)
			}
			if n := len(s.finder.seen); n > recentIDs || n != len(s.finder.seenAll) {
				t.Fatalf("%d ids", n)
			}
		}
	})
}
