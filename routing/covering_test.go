package routing

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
)

// However many prefixes there are, the rules are few and hold all of them.
func TestCovering(t *testing.T) {
	many := func(n int) (ps []netip.Prefix) {
		for i := range n {
			ps = append(ps, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i / 250), byte(i % 250), 0}), 24))
		}
		return ps
	}
	six := []netip.Prefix{netip.MustParsePrefix("fd00::/64"), netip.MustParsePrefix("2001:db8::/48"), netip.MustParsePrefix("fd00:0:0:1::/64")}
	for _, tt := range []struct {
		name string
		ps   []netip.Prefix
		most int
		want int
	}{
		{"none", nil, 2, 0},
		{"as many as may be", many(64), 64, 64},
		{"one more", many(65), 64, 33},
		{"200", many(200), 64, 50},
		{"5000", many(5000), 64, 40},
		{"of all lengths", append(many(70), netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("172.18.0.7/32")), 64, 37},
		{"IPv6", six, 2, 2},
		{"no fewer than both halves", six, 1, 2},
	} {
		got := covering(slices.Clone(tt.ps), tt.most)
		if len(got) != tt.want {
			t.Errorf("%s: %d rules, want %d: %v", tt.name, len(got), tt.want, got)
		}
		for _, p := range tt.ps {
			if !slices.ContainsFunc(got, func(c netip.Prefix) bool { return c.Bits() <= p.Bits() && c.Contains(p.Addr()) }) {
				t.Errorf("%s: nothing holds %s", tt.name, p)
			}
		}
	}
	if got := fmt.Sprint(covering(six, 3)); got != fmt.Sprint(six) {
		t.Errorf("few are not left as they are: %s", got)
	}
}
