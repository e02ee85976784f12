package underlay

import (
	"net/netip"
	"slices"
	"time"
)

// locality is what a finder must know of this machine. It is immutable.
type locality struct {
	candidates []netip.AddrPort // where we may be reached
	mapped     uint16           // bit i: candidate i is a forwarded port
	lans       []netip.Prefix   // networks we are on
	behind     []netip.Prefix   // networks that gateways offer
	refuse     []netip.Prefix   // the overlay's own, through which no path may lead
	mtu        int              // of the interface; 0: the usual one
	loopback   bool             // take loopback addresses: everybody is on this machine
}

// rank returns how promising an address is.
func (l *locality) rank(a netip.Addr, mapped bool) rank {
	switch {
	case contain(l.lans, a):
		return rankLAN
	case a.Is6():
		return rankIPv6
	case mapped:
		return rankMapped
	}
	return rankIPv4
}

// takes reports whether an address that a peer names is one to try.
func (l *locality) takes(a netip.AddrPort) bool {
	ip := a.Addr()
	switch {
	case !ip.IsValid(), a.Port() == 0, ip.IsUnspecified(), ip.IsMulticast(), ip.IsLinkLocalUnicast(),
		ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return false
	case ip.IsLoopback():
		return l.loopback
	}
	return l.passes(ip) && !slices.Contains(l.candidates, a)
}

// passes reports whether a path may lead to an address. None may lead through
// the overlay itself; nor may one to a network behind a gateway, unless this
// machine is on that network too: then it is a LAN like any other.
func (l *locality) passes(ip netip.Addr) bool {
	return !contain(l.refuse, ip) && (!contain(l.behind, ip) || contain(l.lans, ip))
}

func contain(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// expel forgets the addresses that no path may lead to any more.
func (f *finder) expel(now time.Time) {
	f.spots = slices.DeleteFunc(f.spots, func(s *spot) bool {
		if f.here.passes(s.addr.Addr()) {
			return false
		}
		if s.proved() {
			f.proofs++
		}
		if f.use == s {
			f.quit(now)
		}
		return true
	})
}

func (l *locality) equal(other *locality) bool {
	return l.mtu == other.mtu && slices.Equal(l.candidates, other.candidates) && l.mapped == other.mapped &&
		slices.Equal(l.lans, other.lans) && slices.Equal(l.refuse, other.refuse) && slices.Equal(l.behind, other.behind)
}

// Reasons why a path is not direct.
const (
	reasonIdle      = "idle"               // nothing is sent, so nothing is looked for
	reasonProbing   = "probing"            // direct ways are being tried
	reasonLossy     = "lossy"              // the direct way loses too much
	reasonMTU       = "mtu"                // the direct way loses what is long
	reasonNoFamily  = "no_common_family"   // no address of the peer's is of a family that we have
	reasonSymmetric = "symmetric_nat_both" // all were tried, as between two such NATs
)

// silentPings is how many pings by the relay are unanswered before the peer is
// called silent: one may be lost, or under way.
const silentPings = 2

// reason says why data goes by the relay.
func (f *finder) reason(now time.Time) string {
	switch {
	case f.narrow:
		return reasonMTU
	case f.lossy:
		return reasonLossy
	case !f.active(now):
		return reasonIdle
	case f.use == nil && f.relay.missed >= silentPings && f.relayRTT(now) == 0:
		return ReasonPeerSilent
	case f.use != nil, !f.called, f.failed == 0 && now.Sub(f.searchAt) < searchTime:
		return reasonProbing
	case f.peerNoUDP:
		return ReasonUDPBlocked
	case !f.common():
		return reasonNoFamily
	}
	return reasonSymmetric
}

// common reports whether both sides have an address of the same family.
func (f *finder) common() bool {
	return slices.ContainsFunc(f.spots, func(s *spot) bool {
		return (s.listed || s.proved()) && slices.ContainsFunc(f.here.candidates, func(a netip.AddrPort) bool {
			return a.Addr().Is4() == s.addr.Addr().Is4()
		})
	})
}
