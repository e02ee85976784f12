package routing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Kernel makes the machine match a State: that of the network namespace its
// caller's thread is in.
type Kernel struct {
	log     *slog.Logger // these are set by NewKernel, then read-only
	did     func(act string)
	sysctls sysctls

	mu    sync.Mutex     // held through Apply and Clear; guards links
	links map[int]string // names of the links that Apply was for, by index
}

// NewKernel returns a Kernel. It changes nothing yet.
func NewKernel(o Options) (*Kernel, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	return &Kernel{
		log:     o.Log,
		did:     o.Did,
		sysctls: sysctls{journal: o.Journal, values: procSysNet, did: o.Did},
		links:   make(map[int]string),
	}, nil
}

// Apply makes the kernel match want, from whatever it has: after an error, a
// crash or another's change, apply again. It stops at the first step that is
// refused; the error is an [Error].
func (k *Kernel) Apply(ctx context.Context, want State) error {
	if err := want.validate(); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	link, err := netlink.LinkByName(want.Link)
	if err != nil {
		return fmt.Errorf("link %s: %w", want.Link, err)
	}
	facts := want.Facts()
	if len(want.Outer) > 0 {
		h, err := Look()
		if err != nil {
			return err
		}
		facts = append(facts, want.loosened(h, k.rpFilter)...)
	}
	have, err := k.have(link, facts)
	if err != nil {
		return err
	}
	k.links[link.Attrs().Index] = want.Link
	for _, c := range Diff(have, facts) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := k.do(link, c); err != nil {
			return &Error{Act: c.String(), Err: err}
		}
		k.did(c.String())
	}
	return k.sysctls.restore(func(key string) bool {
		return slices.ContainsFunc(facts, func(f Fact) bool { return f.slot() == sysctl{key: key}.slot() })
	})
}

// Clear takes away everything of ours, also what an earlier process left, and
// puts the sysctls back. The link goes with the process that opened it; its
// addresses are removed only if this Kernel put them there. Clear goes on after
// an error and returns all of them.
func (k *Kernel) Clear(ctx context.Context, link string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	have, err := ours()
	errs := []error{err}
	var dev netlink.Link
	if l, err := netlink.LinkByName(link); err == nil && k.links[l.Attrs().Index] == link {
		dev = l
		addrs, err := addrsOf(l)
		errs = append(errs, err)
		have = append(addrs, have...)
	}
	for _, c := range Diff(have, nil) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := k.do(dev, c); err != nil {
			errs = append(errs, &Error{Act: c.String(), Err: err})
			continue
		}
		k.did(c.String())
	}
	errs = append(errs, k.sysctls.restore(func(string) bool { return false }))
	return errors.Join(errs...)
}

// have returns what the kernel has of ours, and what it has in the place of
// those facts that can only be changed.
func (k *Kernel) have(link netlink.Link, want []Fact) ([]Fact, error) {
	attrs := link.Attrs()
	facts := []Fact{linkMTU{attrs.Name, attrs.MTU}, linkGSO{attrs.Name, int(attrs.GSOMaxSize)}}
	if attrs.Flags&net.FlagUp != 0 {
		facts = append(facts, linkUp{attrs.Name})
	}
	addrs, err := addrsOf(link)
	if err != nil {
		return nil, err
	}
	facts = append(facts, addrs...)
	for _, f := range want {
		if s, ok := f.(sysctl); ok {
			v, err := k.sysctls.values.Read(s.key)
			if err != nil {
				return nil, &Error{Act: s.line(""), Err: err}
			}
			facts = append(facts, sysctl{s.key, v})
		}
	}
	rest, err := ours()
	return append(facts, rest...), err
}

// rpFilter returns the reverse path check that would be in force on a link
// without us. The kernel takes the larger number of the link's and everybody's,
// so that 2 (loose) beats 1 (strict).
func (k *Kernel) rpFilter(link string) int {
	mode := 0
	for _, l := range []string{"all", link} {
		v, _ := k.sysctls.original(confKey(l, "rp_filter"))
		n, _ := strconv.Atoi(v)
		mode = max(mode, n)
	}
	return mode
}

// do brings one change about. That it is so already is no error.
func (k *Kernel) do(link netlink.Link, c Change) error {
	switch f := c.Fact.(type) {
	case linkMTU:
		return netlink.LinkSetMTU(link, f.mtu)
	case linkGSO:
		// A kernel that cannot is slower, and that is all.
		return except(netlink.LinkSetGSOMaxSize(link, f.size), unix.EOPNOTSUPP)
	case linkUp:
		return netlink.LinkSetUp(link)
	case addr:
		a := &netlink.Addr{IPNet: ipNet(f.prefix)}
		if f.prefix.Addr().Is6() {
			a.Flags = unix.IFA_F_NOPREFIXROUTE | unix.IFA_F_NODAD
		}
		if c.Remove {
			return except(netlink.AddrDel(link, a), unix.EADDRNOTAVAIL)
		}
		return except(netlink.AddrAdd(link, a), unix.EEXIST)
	case sysctl:
		return k.setSysctl(link, f)
	case rule:
		if c.Remove {
			return except(netlink.RuleDel(f.netlink()), unix.ENOENT)
		}
		return except(netlink.RuleAdd(f.netlink()), unix.EEXIST)
	case route:
		if c.Remove {
			any := &netlink.Route{Dst: ipNet(f.dst), Table: Table, Scope: unix.RT_SCOPE_NOWHERE}
			return except(netlink.RouteDel(any), unix.ESRCH)
		}
		r := &netlink.Route{
			LinkIndex: link.Attrs().Index,
			Dst:       ipNet(f.dst),
			Table:     Table,
			Protocol:  unix.RTPROT_KERNEL, // or systemd-networkd removes it
			Scope:     unix.RT_SCOPE_LINK,
		}
		if f.src.IsValid() {
			r.Src = f.src.AsSlice()
		}
		return netlink.RouteReplace(r)
	}
	return fmt.Errorf("internal error: no such fact as %T", c.Fact)
}

// setSysctl gives a key a value. A setting of our own link needs no note, as it
// vanishes with the link. Its reverse path check is an aid and no condition: in
// a container with a read-only /proc/sys the tunnel works without.
func (k *Kernel) setSysctl(link netlink.Link, f sysctl) error {
	own := link.Attrs().Name
	if !ofLink(f.key, own) {
		return k.sysctls.set(f)
	}
	err := k.sysctls.values.Write(f.key, f.value)
	if f.key == confKey(own, "rp_filter") && errors.Is(err, unix.EROFS) {
		k.log.Warn("reverse path check left as it is", "act", f.line(""), "err", err)
		return nil
	}
	return err
}

// addrsOf returns the addresses of a link, but for those that the kernel gives
// it by itself.
func addrsOf(link netlink.Link) ([]Fact, error) {
	list, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("addr show dev %s: %w", link.Attrs().Name, err)
	}
	var facts []Fact
	for _, a := range list {
		if p, ok := toPrefix(a.IPNet); ok && !p.Addr().IsLinkLocalUnicast() {
			facts = append(facts, addr{link.Attrs().Name, p})
		}
	}
	return facts, nil
}

// ours returns our rules and routes, whichever link they were made for.
func ours() ([]Fact, error) {
	var facts []Fact
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := whole(func() ([]netlink.Rule, error) { return netlink.RuleList(family) })
		if absent(family, err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("rule show: %w", err)
		}
		for _, r := range rules {
			if f, ok := toRule(r, family); ok {
				facts = append(facts, f)
			}
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := routesOf(family, Table)
		if err != nil {
			return nil, fmt.Errorf("route show table %d: %w", Table, err)
		}
		for _, r := range routes {
			if f, ok := toRoute(r); ok {
				facts = append(facts, f)
			}
		}
	}
	return facts, nil
}

// except returns err, unless it is the one that says that all is well already.
func except(err, fine error) error {
	if errors.Is(err, fine) {
		return nil
	}
	return err
}

// netlink returns the rule as the kernel takes it. Its protocol is the kernel's,
// or systemd-networkd removes it.
func (f rule) netlink() *netlink.Rule {
	r := netlink.NewRule()
	r.Priority = f.priority
	r.Family = netlink.FAMILY_V4
	r.Protocol = unix.RTPROT_KERNEL
	if f.v6 {
		r.Family = netlink.FAMILY_V6
	}
	switch f.priority {
	case prefSeat:
		r.Src = ipNet(f.src)
		r.UIDRange = netlink.NewRuleUIDRange(firstStranger(), lastStranger)
		r.Type = unix.RTN_PROHIBIT
	case prefMain:
		r.Dst = ipNet(f.dst)
		r.Table = unix.RT_TABLE_MAIN
		r.SuppressPrefixlen = 0
	case prefOurs:
		mask := uint32(Mask)
		r.Invert = true
		r.Mark = Mark
		r.Mask = &mask
		r.Table = Table
	}
	return r
}

// toRule recognises our rules. Anything else at the same priority is somebody
// else's.
func toRule(r netlink.Rule, family int) (rule, bool) {
	f := rule{priority: r.Priority, v6: family == netlink.FAMILY_V6}
	if r.Priority == prefMain {
		dst, ok := toPrefix(r.Dst)
		if !ok {
			return rule{}, false
		}
		f.dst = dst
	}
	if r.Priority == prefSeat {
		src, ok := toPrefix(r.Src)
		if !ok {
			return rule{}, false
		}
		f.src = src
	}
	w := f.netlink()
	same := r.Table == w.Table && r.Invert == w.Invert && r.Mark == w.Mark && r.SuppressPrefixlen == w.SuppressPrefixlen &&
		(r.Mask == nil) == (w.Mask == nil) && (r.Mask == nil || *r.Mask == *w.Mask) &&
		(r.Dst == nil) == (w.Dst == nil) && (r.Src == nil) == (w.Src == nil) && r.IifName == "" &&
		(r.UIDRange == nil) == (w.UIDRange == nil) && (r.UIDRange == nil || *r.UIDRange == *w.UIDRange) && r.OifName == "" &&
		(r.Protocol == unix.RTPROT_KERNEL || r.Protocol == unix.RTPROT_UNSPEC) // before Linux 4.17: not told
	return f, same && (f.priority == prefSeat || f.priority == prefMain || f.priority == prefOurs)
}

// toRoute reads a route of our table.
func toRoute(r netlink.Route) (route, bool) {
	dst, ok := toPrefix(r.Dst)
	if !ok {
		return route{}, false
	}
	f := route{dst: dst}
	if l, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
		f.link = l.Attrs().Name
	}
	if src, ok := netip.AddrFromSlice(r.Src); ok {
		f.src = src.Unmap()
	}
	return f, true
}

// ipNet converts a prefix.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// toPrefix converts back.
func toPrefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, size := n.Mask.Size()
	if a = a.Unmap(); !ok || size != a.BitLen() {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, ones), true
}
