package limit

import (
	"net/netip"
	"testing"
	"time"
)

func TestOwnPace(t *testing.T) {
	l, now, a := New(2, time.Hour), time.Unix(1e9, 0), netip.MustParseAddr("203.0.113.5")
	for range 2 {
		if w := l.Wait(a, now); w != 0 {
			t.Fatalf("waits %s within the burst", w)
		}
		l.Add(a, now)
	}
	if w := l.Wait(a, now.Add(time.Minute)); w != 59*time.Minute {
		t.Errorf("a minute after the burst: %s", w)
	}
	if w := l.Wait(a, now.Add(time.Hour)); w != 0 {
		t.Errorf("an hour after the burst: %s", w)
	}
}

func TestFailures(t *testing.T) {
	l, now := NewFailures(), time.Unix(1e9, 0)
	bad, good := netip.MustParseAddr("203.0.113.5"), netip.MustParseAddr("203.0.113.6")
	for i := range Burst {
		if w := l.Wait(bad, now); w != 0 {
			t.Fatalf("attempt %d waits %s", i, w)
		}
		l.Add(bad, now)
	}
	if w := l.Wait(bad, now); w != ForgiveEvery {
		t.Errorf("after the burst: %s", w)
	}
	if w := l.Wait(good, now); w != 0 {
		t.Errorf("a bystander waits %s", w)
	}
	if w := l.Wait(netip.MustParseAddr("::ffff:203.0.113.5"), now); w == 0 {
		t.Error("the same address in IPv6 form does not wait")
	}
	if w := l.Wait(bad, now.Add(ForgiveEvery)); w != 0 {
		t.Errorf("later: %s", w)
	}
	for i := range 3 * most {
		l.Add(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), now)
	}
	if len(l.sources) > most {
		t.Errorf("the table has %d sources", len(l.sources))
	}
	a, b := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2%eth0")
	if Source(a) != Source(b) {
		t.Error("two addresses of one /64 count apart")
	}
}
