package nat

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Ruleset is what the firewall should do for one tunnel: let members reach the
// LANs and get answers, and let nothing else through the tunnel.
type Ruleset struct {
	Link    string       // name of the tunnel interface; it need not exist yet
	Overlay netip.Prefix // addresses of its members
	LANs    []LAN        // what members may reach through this machine
	MTU     int          // of Link; 0: as the routes say

	// Guest is for a machine that is no gateway and forwards for reasons of its
	// own (Docker, a router): nothing but replies comes out of the tunnel to be
	// forwarded, and what is forwarded into it is not ours to judge. No LANs.
	Guest bool
}

// LAN is a network that members of the overlay reach through this machine.
type LAN struct {
	Prefix netip.Prefix
	Link   string // the interface it is behind
}

// chain is a chain of our own. Its rules read as iptables-save prints them, so
// that have and want compare as text.
type chain struct {
	table, name string
	from        string // the built-in chain that jumps to it, first of all
	rules       []string
}

// String lists what Apply makes true, as commands.
func (r Ruleset) String() string {
	var b strings.Builder
	for _, s := range diff(saved{}, r.chains(true)) {
		fmt.Fprintln(&b, s)
	}
	return b.String()
}

// chains returns what our chains should hold. The source port of a masqueraded
// flow is random where iptables can do it: with a port of its own choice, a
// member could take the place of another flow of this machine (CVE-2021-3773).
func (r Ruleset) chains(randomPorts bool) []chain {
	fwd := chain{table: "filter", name: "OVL-FWD", from: "FORWARD"}
	in := chain{table: "filter", name: "OVL-IN", from: "INPUT"}
	post := chain{table: "nat", name: "OVL-POST", from: "POSTROUTING"}
	mss := chain{table: "mangle", name: "OVL-MSS", from: "FORWARD"}
	overlay := r.Overlay.Masked().String()

	masquerade := "MASQUERADE"
	if randomPorts {
		masquerade += " --random-fully"
	}
	if r.Guest {
		fwd.add("-i %s -m conntrack --ctstate RELATED,ESTABLISHED --ctdir REPLY -j ACCEPT", r.Link)
		fwd.add("-i %s -j DROP", r.Link)
		return []chain{fwd}
	}
	// Out of the tunnel, only replies go by connection tracking: a flow of a
	// member ends when the LAN it goes to is withdrawn.
	fwd.add("-d %s -o %s -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", overlay, r.Link)
	fwd.add("-i %s -m conntrack --ctstate RELATED,ESTABLISHED --ctdir REPLY -j ACCEPT", r.Link)
	for _, l := range r.LANs {
		lan := l.Prefix.Masked()
		fwd.add("-s %s -d %s -i %s -o %s -j ACCEPT", overlay, lan, r.Link, l.Link)
		post.add("-s %s -d %s -o %s -j %s", overlay, lan, l.Link, masquerade)
	}
	// Into it, no other network of this machine either: what has a source inside
	// a LAN's prefix, the members take for the LAN's.
	fwd.add("-i %s -j DROP", r.Link)
	fwd.add("-o %s -j DROP", r.Link)
	for _, l := range r.LANs { // nobody on a LAN gets at this machine by its overlay address
		in.add("-d %s -i %s -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP", overlay, l.Link)
	}
	chains := []chain{fwd}
	if len(r.LANs) > 0 {
		for _, way := range []string{"-i", "-o"} {
			const syn = "%s %s -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS "
			mss.add(syn+"--clamp-mss-to-pmtu", way, r.Link)
			if r.MTU > 0 {
				mss.add(syn+"--set-mss %d", way, r.Link, r.MTU-tcpHeaders)
			}
		}
		chains = append(chains, in, post, mss)
	}
	return chains
}

// tcpHeaders is what TCP over IPv4 takes of a packet: 20 IPv4, 20 TCP.
const tcpHeaders = 40

// add appends a rule, unless it is there already.
func (c *chain) add(format string, args ...any) {
	if rule := fmt.Sprintf(format, args...); !slices.Contains(c.rules, rule) {
		c.rules = append(c.rules, rule)
	}
}

// jumps returns the two rules that lead to the chain. They mean the same: to
// move a jump without a moment when there is none, the other one is put where it
// belongs before the old one is removed.
func (c chain) jumps() [2]string {
	return [2]string{"-j " + c.name, "-m comment --comment overlayd -j " + c.name}
}

// validate says what cannot be made into rules.
func (r Ruleset) validate() error {
	if r.Guest && len(r.LANs) > 0 {
		return errors.New("a guest forwards to no LAN")
	}
	links := []string{r.Link}
	prefixes := []netip.Prefix{r.Overlay}
	for _, l := range r.LANs {
		links = append(links, l.Link)
		prefixes = append(prefixes, l.Prefix)
	}
	for _, l := range links {
		if l == "" || strings.HasSuffix(l, "+") || strings.HasPrefix(l, "-") || strings.ContainsAny(l, " \t\n\"'\\/!") {
			return errors.New("link name " + strconv.Quote(l) + ": not valid")
		}
	}
	for _, p := range prefixes {
		if !p.IsValid() || !p.Addr().Is4() {
			return fmt.Errorf("prefix %s: not an IPv4 prefix", p)
		}
		if p.Bits() == 0 {
			return fmt.Errorf("prefix %s: means everything", p)
		}
	}
	if r.MTU != 0 && r.MTU < 576 {
		return fmt.Errorf("mtu %d: below 576, the least of IPv4", r.MTU)
	}
	return nil
}
