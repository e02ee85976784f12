package overlay

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"time"

	"overlayd/overlay/coord"
)

// lookupTimeout bounds a name look-up, so that a dead resolver delays a plan
// and does not stop it.
const lookupTimeout = 2 * time.Second

// relayAddrs knows, by relay ID, what a relay's endpoint last resolved to.
type relayAddrs map[string][]netip.AddrPort

// resolve looks up the endpoints of relays: of all of them when fresh is asked
// for, else of those without an address. An address that was known is kept while
// its name cannot be looked up. It returns the relays without an address.
func (r relayAddrs) resolve(ctx context.Context, relays []coord.Relay, fresh bool) (unknown []coord.Relay) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	for _, rel := range relays {
		if r[rel.ID] != nil && !fresh {
			continue
		}
		addrs, err := lookupEndpoint(ctx, rel.Endpoint)
		if err == nil {
			r[rel.ID] = addrs
		} else if r[rel.ID] == nil {
			unknown = append(unknown, rel)
		}
	}
	return unknown
}

// lookupEndpoint turns host:port into addresses, without a look-up when the
// host is one.
func lookupEndpoint(ctx context.Context, endpoint string) ([]netip.AddrPort, error) {
	if ap, err := netip.ParseAddrPort(endpoint); err == nil {
		return []netip.AddrPort{ap}, nil
	}
	host, port, err := net.SplitHostPort(endpoint)
	if err != nil {
		return nil, err
	}
	num, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, err
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	addrs := make([]netip.AddrPort, 0, len(ips))
	for _, ip := range ips {
		addrs = append(addrs, netip.AddrPortFrom(ip.Unmap(), uint16(num)))
	}
	return addrs, nil
}
