package coord

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestAllocate(t *testing.T) {
	small := pfx("10.0.0.0/29") // labels 1 to 6
	day := func(n int) time.Time { return time.Unix(int64(n)*86400, 0) }
	used := func(ls ...uint32) map[uint32]string {
		m := map[uint32]string{}
		for _, l := range ls {
			m[l] = fmt.Sprint("n", l)
		}
		return m
	}
	for _, c := range []struct {
		name string
		o    occupancy
		wish string
		want uint32
		says string
	}{
		{"the first", occupancy{}, "", 1, ""},
		{"a gap", occupancy{used: used(1, 2, 4)}, "", 3, ""},
		{"not a promised one", occupancy{used: used(1), promised: map[uint32]string{2: "i"}}, "", 3, ""},
		{"not a retired one", occupancy{used: used(1), retired: map[uint32]time.Time{2: day(1)}}, "", 3, ""},
		{"the longest retired when nothing else is free", occupancy{used: used(1, 2, 3), retired: map[uint32]time.Time{4: day(3), 5: day(1), 6: day(2)}}, "", 5, ""},
		{"not a retired one that is promised", occupancy{used: used(1, 2, 3), promised: map[uint32]string{5: "i"}, retired: map[uint32]time.Time{4: day(3), 5: day(1), 6: day(2)}}, "", 6, ""},
		{"full", occupancy{used: used(1, 2, 3, 4, 5), promised: map[uint32]string{6: "i"}}, "", 0, "no free address"},
		{"wish", occupancy{}, "10.0.0.5", 5, ""},
		{"wish of a retired one", occupancy{retired: map[uint32]time.Time{5: day(1)}}, "10.0.0.5", 5, ""},
		{"wish of one's own promise", occupancy{promised: map[uint32]string{5: "mine"}}, "10.0.0.5", 5, ""},
		{"wish of another's promise", occupancy{promised: map[uint32]string{5: "theirs"}}, "10.0.0.5", 0, "promised to the invite theirs"},
		{"wish of a taken one", occupancy{used: used(5)}, "10.0.0.5", 0, "taken by the node n5"},
		{"network address", occupancy{}, "10.0.0.0", 0, "network address"},
		{"broadcast address", occupancy{}, "10.0.0.7", 0, "broadcast address"},
		{"outside", occupancy{}, "10.0.0.8", 0, "outside"},
		{"another family", occupancy{}, "fd00::1", 0, "outside"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var wish netip.Addr
			if c.wish != "" {
				wish = netip.MustParseAddr(c.wish)
			}
			got, err := allocate(small, c.o, wish, "mine")
			if c.says != "" {
				wantKind(t, err, KindConflict, c.says)
			} else if err != nil || got != c.want {
				t.Errorf("%d, %v; want %d", got, err, c.want)
			}
		})
	}
}

// TestAllocateNeverTwice fills a prefix, removing now and then.
func TestAllocateNeverTwice(t *testing.T) {
	overlay := pfx("172.18.0.0/24")
	o := occupancy{used: map[uint32]string{}, retired: map[uint32]time.Time{}}
	given := map[uint32]bool{}
	for i := range 254 {
		l, err := allocate(overlay, o, netip.Addr{}, "")
		if err != nil || given[l] {
			t.Fatalf("the %dth is %d, %v", i, l, err)
		}
		given[l] = true
		if i%3 == 0 {
			o.retired[l] = time.Unix(int64(i), 0)
		} else {
			o.used[l] = "n"
		}
	}
	if l, err := allocate(overlay, o, netip.Addr{}, ""); err != nil || l != 1 {
		t.Errorf("after all: %d, %v; want the first removed", l, err)
	}
}

func TestLabels(t *testing.T) {
	for _, c := range []struct {
		overlay, addr string
		label, last   uint32
	}{
		{"172.18.0.0/24", "172.18.0.11", 11, 254},
		{"10.0.0.0/8", "10.1.2.3", 0x010203, 1<<24 - 2},
		{"172.16.0.0/12", "172.31.255.1", 0xfff01, 1<<20 - 2},
		{"10.0.0.128/30", "10.0.0.130", 2, 2},
		{"fd00:1::/64", "fd00:1::b", 11, 1<<24 - 2},
	} {
		o, a := pfx(c.overlay), netip.MustParseAddr(c.addr)
		if labelOf(o, a) != c.label || addrOf(o, c.label) != a || lastLabel(o) != c.last {
			t.Errorf("%s: label %d, address %s, last %d", c.addr, labelOf(o, a), addrOf(o, c.label), lastLabel(o))
		}
	}
}

func TestNames(t *testing.T) {
	taken := map[string]bool{"laptop": true, "laptop-2": true, "node": true, strings.Repeat("x", 63): true}
	for wish, want := range map[string]string{
		"Laptop":                 "laptop-3",
		"laptop.example.com":     "laptop-3",
		"Mike's MacBook":         "mikes-macbook",
		"a__b--c":                "a-b-c",
		"-lead-":                 "lead",
		"":                       "node-2",
		"...":                    "node-2",
		"日本":                     "node-2",
		strings.Repeat("x", 200): strings.Repeat("x", 61) + "-2",
		"192.168.1.1":            "192",
	} {
		got := uniqueName(wish, func(s string) bool { return taken[s] })
		if got != want || checkName(got) != nil {
			t.Errorf("uniqueName(%q) = %q, want %q", wish, got, want)
		}
	}
	for _, bad := range []string{"", "A", "a.b", "a b", "-a", "a-", strings.Repeat("x", 64), "a_b", "é"} {
		if checkName(bad) == nil {
			t.Errorf("checkName took %q", bad)
		}
	}
}

func TestCheckAdvertised(t *testing.T) {
	many := make([]netip.Prefix, maxAdvertised+1)
	for i := range many {
		many[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i), 0}), 24)
	}
	for _, c := range []struct {
		ps   []netip.Prefix
		kind Kind
	}{
		{[]netip.Prefix{pfx("0.0.0.0/0")}, KindInvalid},
		{[]netip.Prefix{pfx("::/0")}, KindInvalid},
		{[]netip.Prefix{pfx("192.168.1.1/24")}, KindInvalid},
		{[]netip.Prefix{pfx("172.18.4.0/24")}, KindConflict},
		{[]netip.Prefix{pfx("172.16.0.0/12")}, KindConflict},
		{[]netip.Prefix{pfx("127.0.0.0/8")}, KindInvalid},
		{[]netip.Prefix{pfx("0.0.0.0/1")}, KindInvalid},
		{[]netip.Prefix{pfx("128.0.0.0/1")}, KindConflict},
		{[]netip.Prefix{pfx("224.0.0.0/4")}, KindInvalid},
		{[]netip.Prefix{pfx("fe80::/64")}, KindInvalid},
		{[]netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/104")}, KindInvalid},
		{[]netip.Prefix{{}}, KindInvalid},
		{many, KindInvalid},
	} {
		if _, err := checkAdvertised(c.ps, testOverlay); err == nil {
			t.Errorf("%v was taken", c.ps[0])
		} else {
			wantKind(t, err, c.kind)
		}
	}
	got, err := checkAdvertised([]netip.Prefix{pfx("192.168.2.0/24"), pfx("192.168.1.0/24"), pfx("192.168.2.0/24"), pfx("fd00:5::/64")}, testOverlay)
	if err != nil || fmt.Sprint(got) != "[192.168.1.0/24 192.168.2.0/24 fd00:5::/64]" {
		t.Errorf("%v, %v", got, err)
	}
}

func TestPulse(t *testing.T) {
	start := time.Unix(1e9, 0)
	at := func(d time.Duration) time.Time { return start.Add(d) }
	p := newPulse(start)
	if p.due(at(beatEvery-1)) || !p.due(at(beatEvery)) || p.dead(at(silence-1)) || !p.dead(at(silence)) {
		t.Error("the first beat or the end of patience is at the wrong time")
	}
	if !p.next().Equal(at(beatEvery)) {
		t.Errorf("next is %s", p.next().Sub(start))
	}
	p.sent = at(14 * time.Second)
	if !p.next().Equal(at(silence)) {
		t.Errorf("next is %s", p.next().Sub(start))
	}
}

func TestSendAt(t *testing.T) {
	first := time.Unix(1e9, 0)
	for _, c := range []struct{ sinceLast, want time.Duration }{
		{time.Hour, settle}, {pace, settle}, {pace - settle, settle}, {10 * time.Millisecond, 40 * time.Millisecond}, {0, pace},
	} {
		if got := sendAt(first, first.Add(-c.sinceLast)).Sub(first); got != c.want {
			t.Errorf("%s after the last: wait %s, want %s", c.sinceLast, got, c.want)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	for _, c := range []struct {
		failures int
		nodes    int
		least    time.Duration
		most     time.Duration
	}{
		{1, 3, 50 * time.Millisecond, 200 * time.Millisecond},
		{2, 3, 50 * time.Millisecond, 350 * time.Millisecond},
		{7, 3, 50 * time.Millisecond, 9650 * time.Millisecond},
		{8, 3, 50 * time.Millisecond, retryMost},
		{1 << 40, 3, 50 * time.Millisecond, retryMost},
		{1, 1000, 50 * time.Millisecond, 1050 * time.Millisecond},
		{1, 10_000, 50 * time.Millisecond, 10_050 * time.Millisecond},
	} {
		if got := retryAfter(c.failures, c.nodes, 0); got != c.least {
			t.Errorf("%d failures: at least %s, want %s", c.failures, got, c.least)
		}
		if got := retryAfter(c.failures, c.nodes, 1); got != c.most {
			t.Errorf("%d failures: at most %s, want %s", c.failures, got, c.most)
		}
	}
}
