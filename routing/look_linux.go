package routing

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Look returns what this machine's network looks like.
func Look() (Host, error) {
	links, err := whole(netlink.LinkList)
	if err != nil {
		return Host{}, fmt.Errorf("link show: %w", err)
	}
	var h Host
	names := make(map[int]string)
	for _, l := range links {
		a := l.Attrs()
		names[a.Index] = a.Name
		h.Links = append(h.Links, Link{
			Name:    a.Name,
			Index:   a.Index,
			MTU:     a.MTU,
			Up:      a.Flags&net.FlagUp != 0,
			Virtual: l.Type() != "device" || a.Flags&net.FlagLoopback != 0,
			Tunnel:  isTunnel(l.Type(), a.Flags),
		})
	}
	addrs, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return Host{}, fmt.Errorf("addr show: %w", err)
	}
	for _, a := range addrs {
		i := slices.IndexFunc(h.Links, func(l Link) bool { return l.Index == a.LinkIndex })
		if p, ok := toPrefix(a.IPNet); ok && i >= 0 {
			h.Links[i].Addrs = append(h.Links[i].Addrs, p)
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := routesOf(family, unix.RT_TABLE_MAIN)
		if err != nil {
			return Host{}, fmt.Errorf("route show: %w", err)
		}
		for _, r := range routes {
			h.add(r, names)
		}
	}
	v, err := procSysNet.Read(forwardKey)
	if err != nil {
		return Host{}, fmt.Errorf("%s: %w", sysctl{key: forwardKey}.line(""), err)
	}
	h.Forwarding = v == "1"
	slices.SortStableFunc(h.Default, func(a, b Gateway) int { return cmp.Compare(a.Metric, b.Metric) })
	return h, nil
}

// tunnels are the kinds of links that carry packets inside others and are not
// point-to-point by their flags.
var tunnels = []string{"tuntap", "tun", "wireguard", "gretap", "ip6gretap", "vxlan", "geneve", "ovpn", "amneziawg"}

// isTunnel tells from a link's kind and flags whether it is a tunnel. PPP is
// point-to-point too, but it is how many homes reach the internet; so are
// modems, which are real devices.
func isTunnel(kind string, flags net.Flags) bool {
	return slices.Contains(tunnels, kind) || flags&net.FlagPointToPoint != 0 && kind != "ppp" && kind != "device"
}

// add takes in a route of the main table.
func (h *Host) add(r netlink.Route, names map[int]string) {
	if r.Type != unix.RTN_UNICAST {
		return
	}
	index, via := r.LinkIndex, r.Gw
	if len(r.MultiPath) > 0 {
		index, via = r.MultiPath[0].LinkIndex, r.MultiPath[0].Gw
	}
	dst, ok := toPrefix(r.Dst)
	if ok && dst.Bits() > 0 {
		if !dst.Addr().IsLinkLocalUnicast() {
			h.Routes = append(h.Routes, Route{Prefix: dst, Link: names[index]})
		}
		return
	}
	g := Gateway{Link: names[index], MTU: r.MTU, Metric: r.Priority, V6: r.Family == netlink.FAMILY_V6}
	if a, ok := netip.AddrFromSlice(via); ok {
		g.Via = a.Unmap()
	}
	h.Default = append(h.Default, g)
}

// routesOf returns the routes of a table; none where there is no such family.
func routesOf(family, table int) ([]netlink.Route, error) {
	routes, err := whole(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(family, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
	})
	if absent(family, err) {
		return nil, nil
	}
	return routes, err
}

// absent says that a kernel was built or started without IPv6.
func absent(family int, err error) bool {
	return family == netlink.FAMILY_V6 && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP))
}

// whole lists until nothing changed meanwhile, within reason.
func whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range 5 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}
