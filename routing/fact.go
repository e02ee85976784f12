package routing

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
)

// Numbers that mark what is ours on a machine.
const (
	// Mark is the SO_MARK of our own packets, so that they never enter the
	// tunnel; Mask is the part of a packet's mark that we use.
	Mark = 0x0b000000
	Mask = 0xff000000

	// Table is the routing table of our own.
	Table = 7350
)

// Priorities of our rules, before main's 32766. The first is there for each seat:
// only this program's user sends from there. The second is there for each of our
// routes: main's routes to the same place win, its default route does not. The
// third, which our own marked packets pass by, leads to our table.
const (
	prefSeat = 5330
	prefMain = 5335
	prefOurs = 5340
)

// Fact is one thing of ours that is so in the kernel.
type Fact interface {
	// slot names what there can be only one of: a fact of the same slot
	// replaces another.
	slot() string
	// lasting says that the fact can be changed but not removed.
	lasting() bool
	// line is the command that adds (op "add") or removes ("del") it.
	line(op string) string
}

type (
	// linkMTU is a link's maximum packet size.
	linkMTU struct {
		link string
		mtu  int
	}
	// linkGSO is the largest packet that a link takes to cut by itself.
	linkGSO struct {
		link string
		size int
	}
	// linkUp is a link that carries packets.
	linkUp struct{ link string }
	// addr is an address of this machine.
	addr struct {
		link   string
		prefix netip.Prefix
	}
	// sysctl is a value in /proc/sys; the key is a path with slashes.
	sysctl struct{ key, value string }
	// rule is a policy rule; its kind follows from the priority.
	rule struct {
		priority int
		v6       bool
		dst      netip.Prefix // of prefMain
		src      netip.Prefix // of prefSeat
	}
	// route is a route in our table.
	route struct {
		dst  netip.Prefix
		link string
		src  netip.Addr // invalid: the kernel's choice
	}
)

func (f linkMTU) slot() string { return "mtu " + f.link }
func (f linkGSO) slot() string { return "gso " + f.link }
func (f linkUp) slot() string  { return "up " + f.link }
func (f addr) slot() string    { return "addr " + f.prefix.String() + " " + f.link }
func (f sysctl) slot() string  { return "sysctl " + f.key }
func (f rule) slot() string    { return f.line("") }
func (f route) slot() string   { return "route " + f.dst.String() }

func (linkMTU) lasting() bool { return true }
func (linkGSO) lasting() bool { return true }
func (linkUp) lasting() bool  { return true }
func (addr) lasting() bool    { return false }
func (sysctl) lasting() bool  { return true } // put back from the journal
func (rule) lasting() bool    { return false }
func (route) lasting() bool   { return false }

func (f linkMTU) line(string) string { return fmt.Sprintf("link set %s mtu %d", f.link, f.mtu) }
func (f linkGSO) line(string) string {
	return fmt.Sprintf("link set %s gso_max_size %d", f.link, f.size)
}
func (f linkUp) line(string) string  { return fmt.Sprintf("link set %s up", f.link) }
func (f addr) line(op string) string { return fmt.Sprintf("addr %s %s dev %s", op, f.prefix, f.link) }

// line swaps dots and slashes as sysctl(8) does, so that a link's own dots stay
// apart from those between the parts.
func (f sysctl) line(string) string {
	swap := strings.NewReplacer("/", ".", ".", "/")
	return fmt.Sprintf("sysctl %s=%s", swap.Replace(f.key), f.value)
}

func (f rule) line(op string) string {
	family := ""
	if f.v6 {
		family = "-6 "
	}
	if f.priority == prefSeat {
		return fmt.Sprintf("%srule %s pref %d from %s uidrange %d-%d prohibit", family, op, f.priority, f.src, firstStranger(), lastStranger)
	}
	if f.priority == prefMain {
		return fmt.Sprintf("%srule %s pref %d to %s lookup main suppress_prefixlength 0", family, op, f.priority, f.dst)
	}
	return fmt.Sprintf("%srule %s pref %d not fwmark %#x/%#x lookup %d", family, op, f.priority, Mark, uint32(Mask), Table)
}

func (f route) line(op string) string {
	s := fmt.Sprintf("route %s %s dev %s table %d", op, f.dst, f.link, Table)
	if f.src.IsValid() && op != "del" {
		s += " src " + f.src.String()
	}
	return s
}

// lastStranger is the highest user id: one more stands for none.
const lastStranger = 1<<32 - 2

// firstStranger is the lowest user id that may not use a seat: above that of this
// program, which is root's as a rule.
func firstStranger() uint32 { return uint32(max(os.Geteuid(), 0)) + 1 }

// forwardKey is the switch that makes a machine a router. The kernel turns a
// number of others with it, see turnForward.
const forwardKey = "net/ipv4/ip_forward"

// confKey returns the key of a link's IPv4 setting.
func confKey(link, name string) string { return "net/ipv4/conf/" + link + "/" + name }
