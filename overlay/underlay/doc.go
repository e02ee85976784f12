// Package underlay carries WireGuard's datagrams to peers: it is the conn.Bind
// under overlay/tunnel.
//
// # A peer is an endpoint
//
// To WireGuard an Endpoint is where a peer is. Here it is the peer itself: one
// object per peer, named by the string that Endpoint returns, and the same
// however its datagrams travel. So a path changes without WireGuard knowing.
// Who decides does no I/O: via chooses among the relays, the finder among direct
// paths. Their result is a way. Ways are immutable and swapped whole; Send loads the peer's way once and hands the batch to the way's
// carrier. WireGuard's cookies and its limit on handshakes go by address: each
// peer has one made from its key, or all peers behind a relay would share one.
// A peer that comes back with another key and the same ID goes on as it was, its
// paths included; only what is sealed is sealed anew.
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
//	0x09        probe between peers, by a relay as above;     the peer's finder
//	            directly: label of the sender
//
// The label is stamped after WireGuard has made its MACs and cleared before it
// checks them, so a relayed packet is as long as a direct one. A direct one has
// the label 0: it is plain WireGuard. WireGuard's datagrams are taken from
// relays and from addresses that have proved to be a peer's; whatever else
// comes is dropped and counted, but for probes, of which so many are opened per
// source and no more.
//
// # Direct paths
//
// Each peer has a finder: a state machine without I/O that looks for addresses
// at which the peer answers, and chooses one. It wakes when data is sent to the
// peer and sleeps when none was for a while, so an idle network is silent.
//
//   - It calls the peer, by the relay, with the addresses at which this node may
//     be reached (Local, and what the relays see). The peer calls back, and both
//     ping what the other named, at the same time, so that each NAT has sent
//     before it has to let something in. An address from which an authentic ping
//     comes is pinged too.
//   - A NAT that gives each destination another port may count. From where the
//     relays and the peers saw this node, and how many destinations it has sent
//     to, forecast foretells the next ports; a call tells them, and the peer
//     tries eight, half a second after it. Two such NATs meet in the middle: one
//     side tries its eight from the end. Ports that are drawn at random are
//     told by their distances, and not guessed.
//   - An address is used when it has answered a ping of ours, and beside the
//     relay, until the peer says that data arrives: each pong tells how many
//     datagrams of WireGuard have come from the address that it answers. Then
//     the relay is left. What arrives twice, WireGuard drops.
//   - Silence, of data or of pongs, is asked about after 0.3 s; when the ping
//     is not answered either both ways are used again, and a new search begins.
//     So it is when the peer's data takes the relay, or it names other addresses.
//   - A conversation that falls silent is asked about once, by both sides, the
//     relay too: only a datagram from inside shows them where a NAT that was
//     restarted has put this node.
//   - Of the addresses that answer the best is used: on the same LAN, IPv6, IPv4
//     as the relay sees it, a forwarded port; among equals the nearest, if it is
//     nearer by a fifth and by 10 ms.
//   - The counts in the pongs also show an address that answers while data sent
//     to it does not arrive. It is left, each time for longer.
//   - They show as well how much is lost. Where it is much (a tenth of a hundred
//     datagrams, a twentieth of many), both ways are used, and the relay's
//     losses are measured by pings that go by it. The address is left if it
//     loses more than the relay, by a twentieth and by more than chance: for 15 s
//     at most at first, then for longer. Then it is weighed again, while data goes both
//     ways. Where both lose alike it stays.
//   - Without a relay nothing that answers is left, and what answered within
//     five minutes before is asked every five seconds, for an hour.
//
// No address is taken, whoever names it or sends from it, that lies in the overlay,
// nor one in a network behind a gateway, but where this machine is on that network
// itself.
//
// What a peer says makes us send no more than a handful of pings (five) to an
// address that does not answer, then nothing for at least twenty seconds, a
// pause that doubles up to five minutes. Pings that come from such an address,
// which anybody may have sent, get it eight answers and five pings more at most
// before a pause of the same kind.
//
// Which path results, by the NATs on both sides, and how soon after the first
// packet data goes no other way (TestPairings, in netsim's time, with 20 ms from
// node to node and back; symmetric is one that counts):
//
//	               none   cone         symmetric    at random    UDP blocked
//	none           0.6 s  0.6 s        0.6 s        0.6 s        TLS 1.1 s
//	full cone      0.6 s  0.6 s        0.6 s        0.6 s        TLS 1.1 s
//	restricted     0.6 s  0.6 s        0.6 s        0.6 s        TLS 1.1 s
//	port restr.    0.6 s  0.6 s        1.1 s        relay        TLS 1.1 s
//	symmetric      0.6 s  0.6-1.1 s    mostly       relay        TLS 1.1 s
//	at random      0.6 s  0.6 s/relay  relay        relay        TLS 1.1 s
//	UDP blocked    TLS    TLS          TLS          TLS          TLS on both
//
// TestClimate runs nodes, races and sessions through random weather and checks
// that datagrams flow whenever there has been a path for ten seconds, that no
// state grows, and that no address is probed more than is said here.
//
// Finders are reached from three sides: Run gives them time, receivers give
// them probes, and SetPeers, SetLocal and Kick change their world. A peer's mu
// is held meanwhile, and what they want sent is sent after it. Data never waits
// for them: it counts (tally) and goes the way that they chose before.
//
// # How long a datagram may be
//
// Each way has a gauge, another machine without I/O: a direct address while it
// is used, and the way by the relay, which is measured as a whole, since the
// peer's end of it may be the narrow one. A gauge sends pings that are padded to
// the length in question and leave with the don't-fragment bit, also from the
// relay on; what is answered passes. It begins with the longest that WireGuard
// makes. Twice a second in which long datagrams leave, it proves its size again,
// so a way that has become narrow is known in about a second; then it tries
// several lengths at once, the longest first, until nothing longer passes by 16
// bytes, which is how WireGuard pads. Longer ones are tried again after 15 s, ever
// more seldom up to every 10 minutes, and at once when the network changes.
//
// OnPathMTU tells what packets fit then; package tunnel sees to it that they do.
// ICMP has no say: nobody makes a way narrow who cannot drop what is long on it,
// and no way is narrower than 512 bytes. One that answers no padded ping at all
// is used as it is, and what is too long for it leaves in fragments. If it loses
// what is long as well, it is left (mtu): for that few datagrams tell, as TCP
// sends next to nothing when its long ones vanish. One that carried long
// datagrams and answers only short ones now is weighed against the relay at once. A direct path is used alone only when its gauge
// has come to a result, and what gets lost is held against a path only when it
// is not the length that is to blame.
//
// # What can be asked
//
// Path says how packets reach a peer, with the round trip, which by the relay
// is found out by probes too while data goes that way, and the reason when it is
// not direct. A call tells the peer when no relay answers the caller by UDP, so
// that both sides give the right reason. Check measures what the network lets
// through, with the sockets in use: each address of each relay gets an ATTACH
// that ends at the challenge (relay.Inquiry), and from where relays and peers see
// the socket follows how the NAT maps. What is dropped is counted by name.
//
// # Several relays
//
// A node has sessions with its nearest relay and with the next, and a survey now
// and then says which those are (keeper). How well each does is its standing: it
// is doubted when it owes an answer for a quarter of a second, and after it fell
// it has to serve for a while, each time longer, before anybody moves back.
//
// A peer's datagrams go by the relay with the lowest sum of both round trips,
// where both nodes are (via); by two while the one in use is doubted, while it is
// not known where the peer is, and for a moment after a change. Each end decides
// for what it sends. The map says where each peer was when it last reported; two
// nodes that talk tell each other, sealed, by all relays that they share
// (teller), at once when one of them loses a relay or doubts it.
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
// # UDP and TLS
//
// A leg has two sessions, of which one carries the traffic; race, another pure
// function of time and facts, decides which. UDP has a second's start, and wins
// whenever it answers. When a session by UDP is in doubt a TLS connection is
// made in case, and takes over when two PINGs have gone unanswered. While TLS
// carries the traffic, UDP is tried when the network changes and else at random
// within 30 s, 60 s and so on up to 5 minutes. The relay has one session per node, so the
// other one is silent: a fresh one is made for each try of UDP, and the stream is
// closed when UDP is back. What comes by streams reaches WireGuard by one more
// receive function; it waits for that, and nobody waits for it.
//
// Where TLS works and UDP goes unanswered, by relays and peers alike, the sockets
// are opened anew on another port, two seconds after the last answer and then
// ever more seldom, down to some six times an hour: mover decides. In a network that
// lets no UDP out that helps nobody and harms nobody. A Check that is under way
// begins anew. A router may hold a dead mapping for the old
// port. The receivers go on with the new sockets. A port that Options names is
// never left: others are forwarded to it, and TLS carries the traffic meanwhile.
//
// A stock WireGuard knows no labels. On a relay's own machine what it sends comes
// by the Port, and its Endpoint is the address that it came from (guest), as with
// WireGuard's own sockets: WireGuard itself moves it, and its cookies and limits go
// by that address. An initiation that does not show the key of this machine's
// WireGuard costs one hash and is dropped, so who does not know the key hears
// nothing.
//
// On a relay's own machine the peers are behind a relay.Port instead of a
// socket. It is one more carrier and one more receive function, beside those of
// the sessions with other relays.
package underlay
