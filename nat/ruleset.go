package nat

import "net/netip"

// Ruleset is what the firewall should do for one tunnel.
type Ruleset struct {
	Link    string       // name of the tunnel interface
	Overlay netip.Prefix // addresses of its members
	LANs    []LAN        // what members may reach through this machine
	MTU     int          // of Link; 0: as the routes say
}

// LAN is a network that members of the overlay reach through this machine.
type LAN struct {
	Prefix netip.Prefix
	Link   string // the interface it is behind
}

// String lists what Apply makes true, a line each.
func (r Ruleset) String() string { return r.Link }
