package overlay

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"overlayd/overlay/key"
	"overlayd/overlay/tunnel"
	"overlayd/routing"
)

func TestSlept(t *testing.T) {
	for _, c := range []struct {
		name       string
		mono, boot time.Duration // between two looks
		want       time.Duration
	}{
		{"awake", clockEvery, clockEvery, 0},
		{"a busy machine", 3 * time.Second, 3 * time.Second, 0},
		{"a frozen process", 200*time.Second + clockEvery, 200*time.Second + clockEvery, 200 * time.Second},
		{"a sleep", clockEvery, 8*time.Hour + clockEvery, 8 * time.Hour},
		{"a sleep just after the look", 0, 8 * time.Hour, 8*time.Hour - clockEvery},
		{"a short sleep", clockEvery, 2*time.Second + clockEvery, 2 * time.Second},
		{"clocks that drift", clockEvery, clockEvery + time.Millisecond, 0},
		{"the wall clock was set back", clockEvery, -time.Hour, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := clocks{mono: time.Hour, boot: 2 * time.Hour}
			if got := slept(before, clocks{before.mono + c.mono, before.boot + c.boot}); got != c.want {
				t.Errorf("slept %v, want %v", got, c.want)
			}
		})
	}
}

// TestSleptWhileTold: what it takes to tell of a sleep is no sleep, but the
// machine may sleep meanwhile.
func TestSleptWhileTold(t *testing.T) {
	c := clocks{mono: time.Hour, boot: 2 * time.Hour}
	for _, sleep := range []time.Duration{0, time.Minute} {
		told := clocks{c.mono + 20*time.Second, c.boot + 20*time.Second + sleep}
		next := clocks{told.mono + clockEvery, told.boot + clockEvery}
		if got := slept(c.awake(told), next); got != sleep {
			t.Errorf("slept %v, want %v", got, sleep)
		}
	}
}

func TestOutlived(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	stats := map[key.Public]tunnel.Stat{}
	peer := func(age time.Duration) key.Public {
		k := key.NewPrivate().Public()
		s := tunnel.Stat{}
		if age > 0 {
			s.LastHandshake = now.Add(-age)
		}
		stats[k] = s
		return k
	}
	peer(0)                                  // no session, ever
	peer(time.Minute)                        // made since, by somebody faster
	peer(time.Hour + 4*time.Minute)          // ended before the sleep
	want := peer(time.Hour + 90*time.Second) // alive when the sleep began
	if got := outlived(stats, time.Hour, now); !slices.Equal(got, []key.Public{want}) {
		t.Errorf("%d peers, want the one", len(got))
	}
	if got := outlived(stats, 5*time.Second, now); len(got) != 1 { // that of a minute ago
		t.Errorf("after a nap %d sessions are in doubt", len(got))
	}
}

func TestWhereabouts(t *testing.T) {
	base := func() routing.Host {
		return routing.Host{
			Links: []routing.Link{
				{Name: "lo", Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/8")}},
				{Name: "eth0", Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")}},
				{Name: "ovl0", Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("172.18.0.11/32")}},
			},
			Default: []routing.Gateway{{Link: "eth0", Via: netip.MustParseAddr("10.0.0.1")}},
		}
	}
	for _, c := range []struct {
		name    string
		change  func(*routing.Host)
		differs bool
	}{
		{"nothing", func(*routing.Host) {}, false},
		{"our own interface", func(h *routing.Host) { h.Links[2].Addrs = nil }, false},
		{"a container's link", func(h *routing.Host) {
			h.Links = append(h.Links, routing.Link{Name: "veth1", Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("fe80::1/64")}})
		}, false},
		{"a bridge for containers", func(h *routing.Host) {
			h.Links = append(h.Links, routing.Link{Name: "br-0123456789ab", Up: true, Virtual: true, Addrs: []netip.Prefix{netip.MustParsePrefix("172.19.0.1/16")}})
		}, false},
		{"a second network card", func(h *routing.Host) {
			h.Links = append(h.Links, routing.Link{Name: "wlan0", Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.1.2/24")}})
		}, true},
		{"a metric", func(h *routing.Host) { h.Default[0].Metric = 7 }, false},
		{"an address", func(h *routing.Host) { h.Links[1].Addrs[0] = netip.MustParsePrefix("10.0.0.3/24") }, true},
		{"a link that goes down", func(h *routing.Host) { h.Links[1].Up = false }, true},
		{"another router", func(h *routing.Host) { h.Default[0].Via = netip.MustParseAddr("10.0.0.9") }, true},
		{"no router", func(h *routing.Host) { h.Default = nil }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := base()
			c.change(&h)
			if differs := whereabouts(h, "ovl0") != whereabouts(base(), "ovl0"); differs != c.differs {
				t.Errorf("differs: %v", differs)
			}
		})
	}
}
