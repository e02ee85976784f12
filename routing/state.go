package routing

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// State is what this machine's network should look like for one tunnel. Rules
// and sysctls follow from it.
type State struct {
	Link   string         // name of the tunnel interface, which must exist
	MTU    int            // of the link; 0: left alone
	GSO    int            // bytes of the largest packet the link takes to cut by itself; 0: left alone
	Addrs  []netip.Prefix // own addresses, each with the length of the overlay prefix
	Routes []netip.Prefix // to reach through Link, besides the overlay prefixes of Addrs

	// Seats are those of Addrs that stand for people, whom this program serves: no
	// other user's program on this machine may send from there.
	Seats []netip.Addr

	Forward bool     // pass packets on between Link and LANs
	LANs    []string // interfaces that packets are forwarded to

	// Outer are the addresses our own packets go to. It matters only where one
	// of them lies inside Routes: the link it answers on is then set to accept
	// packets whose answers would leave by another link.
	Outer []netip.Addr
}

// String lists what Apply makes true, a line each, in the words of ip(8) and
// sysctl(8).
func (s State) String() string {
	var b strings.Builder
	for _, c := range Diff(nil, s.Facts()) {
		fmt.Fprintln(&b, c)
	}
	return b.String()
}

// Facts returns what the kernel holds when it matches s, in the order in which
// it is brought about.
func (s State) Facts() []Fact {
	var facts []Fact
	if s.MTU > 0 {
		facts = append(facts, linkMTU{s.Link, s.MTU})
	}
	if s.GSO > 0 {
		facts = append(facts, linkGSO{s.Link, s.GSO})
	}
	facts = append(facts, linkUp{s.Link})
	for _, a := range s.Seats { // before the address is there
		facts = append(facts, rule{priority: prefSeat, v6: a.Is6(), src: hostPrefix(a)})
	}
	for _, a := range s.Addrs {
		facts = append(facts, addr{s.Link, hostPrefix(a.Addr())})
	}
	// Loose: a peer's packets are checked by the tunnel already, and a network
	// of this machine's own may overlap what lies behind the tunnel.
	facts = append(facts, sysctl{confKey(s.Link, "rp_filter"), "2"})
	if s.Forward {
		facts = append(facts, sysctl{forwardKey, "1"})
		for _, l := range append([]string{s.Link}, s.LANs...) {
			facts = append(facts, sysctl{confKey(l, "forwarding"), "1"})
		}
	}
	routes := s.routes()
	for _, v6 := range []bool{false, true} {
		if !slices.ContainsFunc(routes, func(r route) bool { return r.dst.Addr().Is6() == v6 }) {
			continue
		}
		var all []netip.Prefix
		for _, r := range routes {
			if r.dst.Addr().Is6() == v6 {
				all = append(all, r.dst)
			}
		}
		for _, p := range covering(all, mostRules) {
			facts = append(facts, rule{priority: prefMain, v6: v6, dst: p})
		}
		facts = append(facts, rule{priority: prefOurs, v6: v6})
	}
	for _, r := range routes {
		facts = append(facts, r)
	}
	return facts
}

// mostRules is how many rules a family gets: the kernel goes through all of them
// for every route that it looks up, and each takes some 12 ns. A network may have
// hundreds of prefixes.
const mostRules = 64

// covering returns prefixes of one family as they are, or, when there are more than
// most, shorter ones that hold them all. Where such a one holds more, main's specific
// routes are only asked somewhat earlier than without us.
func covering(ps []netip.Prefix, most int) []netip.Prefix {
	if len(ps) <= most {
		return ps
	}
	ps = slices.Clone(ps)
	longest := slices.MaxFunc(ps, func(a, b netip.Prefix) int { return a.Bits() - b.Bits() })
	for bits := longest.Bits() - 1; len(ps) > most && bits > 0; bits-- {
		for i, p := range ps {
			if p.Bits() > bits {
				ps[i] = netip.PrefixFrom(p.Addr(), bits).Masked()
			}
		}
		slices.SortFunc(ps, netip.Prefix.Compare)
		ps = slices.Compact(ps)
	}
	return ps
}

// routes returns the routes of our table, each prefix once.
func (s State) routes() []route {
	var routes []route
	add := func(p netip.Prefix) {
		r := route{dst: p.Masked(), link: s.Link, src: s.source(p)}
		if !slices.Contains(routes, r) {
			routes = append(routes, r)
		}
	}
	for _, a := range s.Addrs {
		if !a.IsSingleIP() {
			add(a)
		}
	}
	for _, p := range s.Routes {
		add(p)
	}
	return routes
}

// source returns the address that packets to p come from, if there is one of
// p's family.
func (s State) source(p netip.Prefix) netip.Addr {
	for _, a := range s.Addrs {
		if a.Addr().Is6() == p.Addr().Is6() {
			return a.Addr()
		}
	}
	return netip.Addr{}
}

// loosened returns the facts that s wants besides Facts on a machine that looks
// like h, where rpFilter tells the value in force on a link.
func (s State) loosened(h Host, rpFilter func(link string) int) []Fact {
	covered := slices.ContainsFunc(s.Outer, func(a netip.Addr) bool {
		return a.Is4() && slices.ContainsFunc(s.routes(), func(r route) bool { return r.dst.Contains(a) })
	})
	if !covered {
		return nil
	}
	var facts []Fact
	for _, g := range h.Default {
		f := sysctl{confKey(g.Link, "rp_filter"), "2"}
		if g.Link != s.Link && rpFilter(g.Link) == 1 && !slices.Contains(facts, Fact(f)) {
			facts = append(facts, f)
		}
	}
	return facts
}

// validate says what no kernel could bring about.
func (s State) validate() error {
	for _, l := range append([]string{s.Link}, s.LANs...) {
		if err := checkLinkName(l); err != nil {
			return err
		}
	}
	if s.MTU < 0 || s.MTU > 65535 {
		return fmt.Errorf("mtu %d: out of range", s.MTU)
	}
	if s.GSO < 0 || s.GSO > 65536 {
		return fmt.Errorf("gso size %d: out of range", s.GSO)
	}
	for _, p := range slices.Concat(s.Addrs, s.Routes) {
		if !p.IsValid() || p.Addr().Zone() != "" || p.Addr().Is4In6() {
			return fmt.Errorf("prefix %q: not valid", p)
		}
	}
	return nil
}

// checkLinkName refuses names that Linux gives to no link, so that none of them
// leads out of a directory of /proc/sys.
func checkLinkName(name string) error {
	const maxLen = 15 // IFNAMSIZ less the NUL
	if name == "" || len(name) > maxLen || name == "." || name == ".." || strings.ContainsAny(name, "/: \t\n\x00") {
		return fmt.Errorf("link name %q: not valid", name)
	}
	if name == "all" || name == "default" {
		return errors.New("link name " + name + ": means every link")
	}
	return nil
}

// hostPrefix returns the prefix that holds a alone. Own addresses have this
// length on the link, so that the kernel adds no route of the overlay to the
// main table, where our own packets and every other program would find it.
func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
