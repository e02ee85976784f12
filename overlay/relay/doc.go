// Package relay carries opaque datagrams between nodes that cannot reach each
// other: both ends of the protocol, and the label switch in the middle.
//
// A node shows a [Ticket], which its coordinator made, and gets a session: the
// relay then knows its network, its label and the address it sends from. From
// then on every datagram that the node sends has the label of its destination
// in bytes 1 to 3, which WireGuard leaves zero. The relay finds the sender by
// its source address and the receiver by the label, in the sender's network;
// it writes the sender's label over the receiver's and sends the datagram on.
// Not one byte is added, so what the kernel merged on receiving (GRO) leaves as
// one message too (GSO), from where it lies; a train is cut only where the
// label changes, and around probes between nodes: long ones measure how much a
// path carries, so they leave without permission to be cut on the way. The relay
// never learns what it carries, and this package reaches no WireGuard code; a
// test keeps it so.
//
// Decisions do no I/O and take the time as an argument: [Session] is the node's
// end, door and table are the relay's, cut is the switch. [Server] moves the
// bytes. A [Port] is the place of the relay machine's own node, which needs no
// socket in between. A seat sends by a leg: an address, a Port or a call.
//
// WireGuard's datagrams with label 0 that come from no node are for the relay
// machine's own node too: a stock WireGuard sends them. They reach the Port by a
// ring of their own, with the address that they came from, so that a flood of them
// takes nothing from the nodes; of initiations a source has fifty a second.
//
// # Where UDP is blocked
//
// A node can bring the same datagrams over TLS: a [Stream], which [Dial] makes
// through HTTP proxies and the server takes as a WebSocket at [StreamPath].
// To the relay it is a call. Each message is a run of lengths and datagrams; what
// comes is made into trains where it lies, so all that is said above holds for it
// too, from UDP to TLS and back. What goes to a call waits in an outbox, from
// which control messages leave first and of which the oldest data is dropped: a
// slow reader costs itself, and nobody else. The node's session is the same one
// as by UDP, challenge and all, although TCP has proved the address: the challenge
// ties an ATTACH to its connection, so one that somebody who reads TLS on the way
// has recorded moves nothing, and its MACs show the node that it talks to the
// relay. A session moves between UDP and calls as it does between addresses; a
// call without one is closed after ten seconds.
//
// # Who is answered
//
// Every control message carries a MAC under the session key, which both sides
// derive from the ticket, except UNKNOWN, which tells a sender that the relay
// has no session for it; a node takes that as a hint to attach again, never as
// a fact. A message that fails a check is dropped, counted by name and not
// answered, and what is answered never gets more bytes than came.
//
// An address becomes a session's address only after it answered a challenge: a
// token that the relay makes for that address, and recognises without having
// stored it. A token carries the time of its making, and a session remembers
// that of the newest it was moved by, so a replayed ATTACH moves nothing. PINGs
// count up. Neither needs clocks to agree.
//
// # What bounds it
//
// Sessions are limited in all and per network; ATTACHes with a wrong MAC,
// UNKNOWNs, PINGs and long probes per source, in tables of fixed size, and over all
// sources; how many MACs are looked at, in two shares: one for sources that showed
// a right one within a day, and one for strangers. A flood of forged ATTACHes must
// be a hundred thousand a second to fill its share, and takes nothing of the other;
// removed nodes that are remembered, by their number. Data is never queued: it
// goes to the kernel, or into the ring of a Port or the outbox of a call, where the
// oldest makes room. Calls are limited per source and in all, their writes in time.
package relay
