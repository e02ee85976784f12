// Package underlay carries WireGuard's datagrams to peers: it is the conn.Bind
// under overlay/tunnel.
//
// # A peer is an endpoint
//
// To WireGuard an Endpoint is where a peer is. Here it is the peer itself: one
// object per peer, named by the string that Endpoint returns, and the same
// however its datagrams travel. So a path changes without WireGuard knowing,
// and there is one place that decides: choose, a pure function from what is
// known about a peer and about the relays to a way. Ways are immutable and
// swapped whole; Send loads the peer's way once and hands the batch to the way's
// carrier. WireGuard's cookies and its limit on handshakes go by address: each
// peer has one made from its key, or all peers behind a relay would share one.
//
// # What is on the wire
//
// One UDP socket per family carries everything, so that the NAT mapping that is
// learnt is the one that is used. The first byte of a datagram says what it is:
//
//	byte 0      bytes 1..3                                    goes to
//	0x01..0x04  to a relay: label of the destination;         WireGuard, bytes 1..3 cleared
//	            from a relay: label of the source
//	0x08        control between this node and a relay         the relay's session
//	0x09        probe between peers, labels as above          dropped and counted: no paths but relays yet
//
// The label is stamped after WireGuard has made its MACs and cleared before it
// checks them, so a relayed packet is as long as a direct one. Whatever comes
// from an address that is no relay of ours is dropped and counted.
//
// # Sessions
//
// A leg is this node's end of one relay: a relay.Session, which does no I/O,
// and the addresses it may be reached at. Run drives all legs from one
// goroutine that sleeps until the earliest of them has something to do. Sending
// and receiving only leave a mark (one atomic load, when it is already there),
// which Run passes on to the session in time.
//
// While no session is up, the newest few datagrams per peer are held, and leave
// the moment one is: WireGuard would repeat a lost handshake only after five
// seconds.
//
// On the relay's own machine the peers are behind a relay.Port instead of a
// socket. It is one more carrier and one more receive function.
package underlay
