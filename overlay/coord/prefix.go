package coord

import (
	"net/netip"
	"slices"
)

// maxAdvertised bounds the prefixes of one node: each of them costs every
// other node a route.
const maxAdvertised = 64

// checkAdvertised refuses prefixes that no gateway may offer, and returns the
// rest sorted, each once.
func checkAdvertised(ps []netip.Prefix, overlay netip.Prefix) ([]netip.Prefix, error) {
	if len(ps) > maxAdvertised {
		return nil, problem(KindInvalid, "advertise larger prefixes", "%d prefixes are advertised: the most is %d", len(ps), maxAdvertised)
	}
	for _, p := range ps {
		if err := checkPrefix(p, overlay); err != nil {
			return nil, err
		}
	}
	ps = slices.Clone(ps)
	slices.SortFunc(ps, netip.Prefix.Compare)
	return slices.Compact(ps), nil
}

func checkPrefix(p, overlay netip.Prefix) error {
	switch {
	case !p.IsValid():
		return problem(KindInvalid, "write it as 192.168.1.0/24", "the advertised prefix is malformed")
	case p.Bits() == 0:
		return problem(KindInvalid, "advertise the networks behind the gateway, such as 192.168.1.0/24",
			"%s is everything: a default route cannot be advertised", p)
	case p.Addr().Is4In6():
		return problem(KindInvalid, "write it as an IPv4 prefix", "%s is an IPv4 prefix in IPv6 form", p)
	case p != p.Masked():
		return problem(KindInvalid, "write "+p.Masked().String(), "%s has host bits set", p)
	case p.Overlaps(overlay):
		return problem(KindConflict, "advertise only what is behind the gateway", "%s overlaps the overlay %s", p, overlay)
	case reserved(p) != "":
		return problem(KindInvalid, "advertise only what is behind the gateway", "%s overlaps %s", p, reserved(p))
	}
	return nil
}

// reservedPrefixes mean something else on every machine.
var reservedPrefixes = []struct {
	prefix netip.Prefix
	name   string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "0.0.0.0/8, which means this host"},
	{netip.MustParsePrefix("127.0.0.0/8"), "127.0.0.0/8, the loopback network"},
	{netip.MustParsePrefix("169.254.0.0/16"), "169.254.0.0/16, the link-local network"},
	{netip.MustParsePrefix("224.0.0.0/3"), "224.0.0.0/3, the multicast and reserved networks"},
	{netip.MustParsePrefix("::/127"), "::1, the loopback address"},
	{netip.MustParsePrefix("fe80::/10"), "fe80::/10, the link-local network"},
	{netip.MustParsePrefix("ff00::/8"), "ff00::/8, the multicast networks"},
}

// reserved names what a prefix overlaps that is never part of a network, or
// returns the empty string.
func reserved(p netip.Prefix) string {
	for _, r := range reservedPrefixes {
		if r.prefix.Overlaps(p) {
			return r.name
		}
	}
	return ""
}
