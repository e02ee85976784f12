// Package portmap asks the default gateway for a port: what comes to it from
// outside, the router passes on to our UDP port, so peers reach this machine
// behind a NAT through which no hole can be punched.
//
// # Who decides
//
// keeper does no I/O. It is told the time, the [Target] and what the router
// answered, and says what to do next: obtain a mapping, check it, release it, or
// wait. A [Mapper] does that, one thing at a time, in the goroutine of Run.
//
//   - Obtain tries PCP, NAT-PMP and UPnP in this order, or first what this
//     router answered before. When none answers, the pause before the next round
//     doubles from 15 s to 30 min; a change of the network ends it.
//   - A mapping is renewed at half its lifetime, which is 20 minutes unless the
//     router gives less. In between it is checked, every 20 s (UPnP: 60 s) with
//     one small question: a router that was restarted gives itself away by its
//     epoch (RFC 6887, section 8.5) or by not knowing the mapping, and the
//     mapping is made anew.
//   - When Run ends the mapping is released; the router has 1 s to answer.
//
// # Whom we believe
//
// Only the default gateway, and only on the link that leads to it. Sockets for
// PCP and NAT-PMP are connected to it; an answer to a UPnP search must come from
// its address and point to it, and so must the addresses in its description.
// HTTP goes by no proxy and follows no redirect; 64 KiB of a body are read, and
// each conversation has a time limit. An external address that is not public
// means another NAT further out: the mapping is kept and reported, but offered
// to nobody.
//
// # Codecs
//
// UPnP's search, description and SOAP are github.com/huin/goupnp's, over sockets
// of ours. PCP has no Go library of its own; its messages are 24 and 60 bytes
// long. NAT-PMP's are 2 and 12 bytes on the same port: github.com/jackpal/go-nat-pmp
// opens its sockets itself, so they can neither carry the mark that keeps them
// out of the tunnel nor be interrupted when the daemon stops, and it tells a
// router's refusals apart by their text only. Both codecs are in wire.go.
package portmap
