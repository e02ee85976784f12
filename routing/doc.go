// Package routing makes a machine's addresses, routes, rules and forwarding
// match a [State], and puts back what it found.
//
// A State becomes a list of facts, [Diff] compares them with what the kernel
// has, and [Kernel.Apply] brings about what is missing, additions first. So
// Apply can be repeated, after a crash too; [Watch] says when it should be.
//
// # Whose packets go where
//
// Our routes are in a table of our own ([Table]). Two kinds of rule lead there:
//
//	5335: from all to 192.168.1.0/24 lookup main suppress_prefixlength 0   one for each of our routes
//	5340: not from all fwmark 0xb000000/0xff000000 lookup 7350
//
// The first lets the main table's routes to the same place win, but not its
// default route: a laptop that sits on 192.168.1.0/24 itself keeps its own LAN.
// It names the place, so that packets which do not concern us pass by whatever
// other rules a machine has; above 64 places, shorter prefixes that hold them all,
// as each rule costs every packet that is routed some 12 ns. The second leaves out packets with our mark
// ([Mark]): they find their way as if we were not there, and never enter the
// tunnel. Own addresses are on the link with full length, so that the kernel
// puts no route of the overlay into the main table.
//
// Rules and routes carry the protocol "kernel": systemd-networkd removes those
// of anybody else.
//
// # What is put back
//
// The link belongs to the process that opened it and vanishes with it, with its
// addresses, routes and sysctls. Rules outlive a killed process, but tell by
// themselves that they are ours. Sysctls do not: each old value is in the
// [Journal] before it is changed, and restored only if the value is still the
// one we wrote. Turning net.ipv4.ip_forward changes other values with it; those
// that would not come back by themselves are noted too. A program that was
// started after us and relies on forwarding without turning it on finds it off
// again when we leave.
//
// The reverse path check of the tunnel is made loose (2). That of "all" is left
// alone: the kernel takes the larger number of it and the link's.
//
// Forwarding and reverse path checks are those of IPv4; addresses, rules and
// routes are of either family.
package routing
