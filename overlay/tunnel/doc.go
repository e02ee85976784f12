// Package tunnel runs one WireGuard device (golang.zx2c4.com/wireguard) on a
// TUN: it encrypts, decrypts, and knows which peer owns which address.
//
// The device's other edge is a conn.Bind, usually that of overlay/underlay.
// A peer's Endpoint names the peer for that Bind, and WireGuard never replaces
// it: where the peer is right now is not WireGuard's business here. So the
// interface being set down or up does not stop the device either; only Close
// does, or the TUN's disappearance, which Done reports.
//
// # Peers
//
// SetPeers says who the peers should be. It compares with what the device has,
// a pure function, and applies the difference through WireGuard's own
// configuration protocol: first whatever is taken away, then whatever is new,
// so that a prefix that moves from one peer to another ends at the new one and
// nothing else is touched, no session, no counter.
//
// SetKey replaces the device's own key. The old sessions are still listened to;
// new ones are expected from the peers, who know the key by then, and begun from
// here for those that do not come within a moment.
//
// # Memory
//
// wireguard-go keeps each packet in a buffer of 64 KiB, from pools without an
// upper bound: whenever its reader outruns its workers, hundreds of megabytes
// pile up between them. Both of its entries are therefore gated here: a read
// from the TUN, or from the Bind, waits while too many packets of that
// direction are inside. What waits then waits in the kernel, whose queues are
// bounded and whose buffers fit the packets.
//
// # Handshakes
//
// When two nodes start a handshake with each other in the same moment, each
// answers the other and forgets its own, and no session comes of it until
// WireGuard's retry after five seconds. After a restart both sides want one, so
// Handshake lets the one with the smaller public key begin, and the other only
// when nothing came of that. It waits 20 ms, since a packet may be about to begin
// one: a handshake that WireGuard began by itself a moment ago counts, and so does
// an answer that came a moment ago. And an answer never reaches WireGuard while it
// forgets the handshake before: a session would come of it that only one side can
// use.
//
// A peer that does not know of our restart goes on with the old session, whose
// packets nobody can read. So a peer whose first message is data is wanted a
// handshake with, whether or not anybody told us of it.
//
// # Who may pass
//
// SetFilter puts an overlay/filter between WireGuard and the TUN: each batch is
// shown to it whole, right after decryption and right after the read. What it
// refuses does not go on. Its answers to peers never see the kernel: they wait
// in a ring, the reader is woken, and WireGuard gets them from the next Read as
// if the kernel had sent them. Answers to this side are written to the TUN.
//
// Tell does the same with the resets of cut flows, and SetPeers lets them leave
// before it takes peers away, for at most a tenth of a second. Nothing is
// allocated for a packet; BenchmarkGuard has 62 ns for one in a batch.
//
// # Devices
//
// A Peer that is a Device is a stock WireGuard for which this machine is the only
// peer. It has no endpoint here: WireGuard answers where its last authentic
// datagram came from. What it sends to others is judged by the filter as what this
// side sends, by the rules for what it may begin, and what others send to it as what
// comes in; what passes is copied to a ring, and WireGuard gets it
// from the next Read, encrypted for whom it is for. The kernel sees none of it and
// forwards nothing. It lives one hop less, and its sender is told when it dies. What
// waits takes 2 MiB, once there is a device; the newest is lost when that is full.
//
// # Packets that are too long
//
// The interface has one MTU, the way to a peer may carry less: SetPathMTU says
// how much. While it does for any peer, packets are looked at where they pass
// the TUN, each segment of a train by itself, a few nanoseconds each; else not at
// all.
//
// A device's way is never measured: it is taken to carry DeviceMTU.
//
//   - SYNs of TCP, of both directions, have their segment size lowered.
//   - A packet that is too long and must not be divided makes an ICMP error for
//     its sender (fragmentation needed, packet too big), which goes back into the
//     TUN: the kernel takes it for its own connections, makes shorter segments
//     and trains of those, and passes it on for connections that it forwards.
//     The packet goes nevertheless, in datagrams that are fragments: a sender
//     that hears no ICMP is slow then, where the way takes fragments, instead of
//     dead.
//   - A packet of IPv4 that may be divided is: the fragments of a datagram are
//     often lost on the way, those of a packet in the tunnel are not.
//
// IPv6 has no path below 1280 bytes, so packets up to that are carried by
// fragments of datagrams where need be.
package tunnel
