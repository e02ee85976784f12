// Package relay carries opaque datagrams between nodes that cannot reach each
// other: both ends of the protocol, and the label switch in the middle.
//
// A node shows a [Ticket], which its coordinator made, and gets a session: the
// relay then knows its network, its label and the address it sends from. From
// then on every datagram that the node sends has the label of its destination in bytes 1 to
// 3, which WireGuard leaves zero. The relay finds the sender by source
// address and the receiver by label in the sender's network, writes the sender's label over the
// receiver's, and sends the datagram on. Not one byte is added, so what the kernel
// merged on receiving (GRO) leaves as one message too (GSO); a train is cut
// only where the label changes. The relay never learns what it carries, and
// this package reaches no WireGuard code; a test keeps it so.
//
// Decisions are pure and take the time as an argument: [Session] is the node's
// end, table and door are the relay's, cut is the switch. [Server] moves the bytes.
//
// # Who is answered
//
// Every control message carries a MAC under the session key, which
// both sides derive from the ticket, except UNKNOWN, which only tells a sender that the relay
// has no session for it; a node takes that as a hint to attach again, never as
// a fact. A message that fails a check is dropped, counted by name and not
// answered. What is answered is never answered with more bytes than came.
//
// An address becomes a session's address only after it answered a challenge: a token
// which the relay makes from that address, and recognises without having stored it. Tokens carry the
// time of their making, and a session remembers the newest it was moved by, so a replayed
// ATTACH moves nothing. PINGs count up. Neither needs clocks to agree.
package relay
