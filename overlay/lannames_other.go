//go:build !unix

package overlay

import "net/netip"

// searchDomains: where there is no resolv.conf, the LAN's names are asked for in
// full.
func searchDomains() []string { return nil }

// nameServers: who is asked for names matters only where there is an interface.
func nameServers() []netip.Addr { return nil }
