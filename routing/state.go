package routing

import "net/netip"

// State is what this machine's network should look like for one tunnel. Rules
// and sysctls follow from it.
type State struct {
	Link   string         // name of the tunnel interface, which must exist
	MTU    int            // of the link; 0: left alone
	Addrs  []netip.Prefix // own addresses, each with the length of the overlay prefix
	Routes []netip.Prefix // to reach through Link, besides the overlay prefixes of Addrs

	Forward bool     // pass packets on between Link and LANs
	LANs    []string // interfaces that packets are forwarded to

	// Outer are the addresses our own packets go to. It matters only where one
	// of them lies inside Routes: the link it answers on is then set to accept
	// packets that would be answered elsewhere.
	Outer []netip.Addr
}

// String lists what Apply makes true, a line each.
func (s State) String() string { return s.Link }
