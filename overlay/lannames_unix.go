//go:build unix

package overlay

import (
	"net/netip"
	"os"
)

// searchDomains are the domains that this machine's resolver tries.
func searchDomains() []string {
	b, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return nil // there are none then
	}
	return parseSearch(string(b))
}

// nameServers are those that this machine's resolver asks: where that is a program
// of this machine, systemd-resolved, those which it asks in turn.
func nameServers() []netip.Addr {
	for _, file := range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // there are none then
		}
		if list := parseNameServers(string(b)); len(list) > 0 {
			return list
		}
	}
	return nil
}
