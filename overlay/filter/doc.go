// Package filter lets a node's packets pass or not, flow by flow. The node that
// receives is the one that enforces: right after decryption, before the kernel
// or a netstack sees the packet, and in the same way on the way back.
//
// The filter does no I/O and knows no clock: packets and the time go in, verdicts,
// answers and events come out. It knows nothing of policies either: Rules is
// what it enforces, with sources and destinations as named sets of addresses.
//
// # Who may begin
//
// A packet from the tunnel begins a flow if a rule leads from its source to its
// destination, protocol and port. This node's own packets begin flows freely, as
// the other end has rules of its own; those of a member that it carries, which come
// by the tunnel too, need a rule here besides, so that what nobody would let in is
// refused at once. To where no peer is (see Carry) nothing begins at all: it is refused
// here, as the other end would. The networks behind this node begin none, and only answer. Everything else must belong to a flow: answers, ICMP errors by
// the packet they quote, later fragments by their first. Having been called is
// no permission to call: a SYN always asks anew.
//
// A source is whoever Sources says is behind the address. WireGuard has seen to
// it that a peer sends from its own addresses only; here, an address of this
// side's that comes from the tunnel is spoofed, and one that is nobody's may
// only answer.
//
// After a restart the table is empty while connections live on. A TCP packet
// without a flow therefore goes on if its connection might begin; if this side
// began it, that is certain when the other end is behind a peer, as such hosts
// begin none, and believed of a peer for a minute when the ports look like it.
//
// # What is refused
//
// TCP gets a reset, the rest ICMP "administratively prohibited", at most 64 at
// once and 100 a second to one source, no more than 4 KiB in a batch. Nothing
// answers a reset, an ICMP error, an echo's answer, a fragment, a multicast, or
// somebody unknown. Each reason has a name and is counted; see Verdict.
//
// A reset that refuses has a window of its own by which the filter of the side
// that began knows it from a closed port's: Refused tells, and Refusals lists the
// last ones.
//
// Headers must be whole and consistent. IPv4 options that route are refused, and
// of IPv6's extension headers all but one of hop-by-hop options, destination
// options and one fragment header. A first fragment has the whole transport
// header, no piece of a datagram comes twice, and a later piece passes only after
// the first; pieces that overtake their first are lost. Of ICMP, echo passes by
// rule and errors by their flow; redirects and the rest do not pass.
//
// # Cutting
//
// Swap puts new rules into force and holds every flow against them before it
// returns; Tick does so when a rule's time begins or ends, by this machine's
// clock. A flow that nothing allows any more is cut: its resets, with the right
// numbers for both ends, are returned, and its place is kept while anybody sends
// on it, so that a server on this very node cannot open from within what was
// closed. Cut ends flows whatever the rules.
//
// # Memory
//
// A flow takes 128 bytes and its place in the table, 188 bytes in all with
// 100,000 flows (BenchmarkMemory); the default bound is 131,072 flows. Flows that
// are half open, or of which one side has been heard only, or that are over,
// never fill more than half; beyond that the oldest of them goes for the next.
// An established flow goes only when the table is full of such and it has been
// silent for ten minutes. One source may have half the table. Denied packets
// leave no state but one word in a table of 1024, so that a retransmission is
// told once. Datagrams in fragments: 1024 at once, of 112 bytes each.
//
//	TCP   one side heard 31 s, established 2 h 4 min, half closed 4 min, closed 10 s
//	UDP   one side heard 30 s, both 3 min
//	ICMP  echo 30 s
//	else  10 min
//
// # Speed
//
// The table has 64 parts with a lock each. Within a batch, a run of packets of
// one flow is looked up and locked once, and those of a transfer are compared with
// the first of them instead of being parsed (train.go). Rules are not looked at but
// for a flow's first packet: there, one map lookup for each length of prefix that
// rules use, and then only the source's own sets.
//
// Processor time for a packet, no allocations, on a two-core virtual machine
// (bench_test.go):
//
//	a run of one flow, 1 rule and 1 flow                      8 ns
//	a run of one flow, 10,000 rules and 100,000 flows        14 ns
//	no two packets of one flow, the same table              370 ns
//	the first packet of a flow, 1 rule / 10,000 rules       450 / 460 ns
//	a denied packet, 10,000 rules                           135 ns
//	Swap of 10,000 rules under 100,000 flows                 18 ms, in wall time
//
// While TCP fills a direct path, that is 1.1 % of a daemon's processor time.
package filter
