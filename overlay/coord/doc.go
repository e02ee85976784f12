// Package coord decides who is a member of the network, and tells every member
// what it should know.
//
// A [Server] keeps the members: their names, addresses, roles and routes. Its
// truth is in a [Store]; in memory it has one snapshot derived from it, which is
// replaced and never changed, so that whoever reads it needs no lock. Every
// change is a function from a snapshot to records, committed against the
// revision it was computed from, and visible before the call that asked for it
// returns.
//
// A [Client] is a member's end. Enroll turns an invite into a membership; Follow
// keeps the member's [Map] current: first the whole map, then changes, a
// heartbeat each way, and a new connection when either side fell silent.
//
// A member is known by its machine key. It shows a JSON Web Token (RFC 7519),
// signed with that key (EdDSA), as a bearer token; so a reverse proxy that ends
// TLS does not break it. The coordinator is known by its TLS key, whose pin the
// invite's [Link] carries; the pin is checked in the handshake, so nothing secret
// is sent to a stranger.
//
// Relays are members that made an offer when they joined: where they are, and the
// secret that the passes for them are made with. The secret is kept in the store
// and told to nobody. Every member gets a pass for each relay; a relay, besides,
// the passes that it has to refuse, since it keeps no list of members.
//
// Members belong to users, users to groups. Who may reach what is for package
// policy to say: a snapshot holds the policy in force with the grants, applied to
// the members, and is worked out anew when something of that changed. A member's
// map has the peers that it may talk to at all and the ruleset that it enforces;
// both travel as changes. Of what lies behind others it has the prefixes alone, for
// its programs to be refused at once. A member that waits for approval, or is disabled, or
// whose user is, has neither peers nor passes, and the passes that it had are
// refused by their serial. A node that was invited for nobody in particular gets
// a user of its own, whose name the policy does not know; gateways and relays
// are nobody's. A store from before there were users gets all this when it is
// opened.
//
// Users may come without overlayd: by an ssh key, by a password with codes, or
// through a port that an admin published. These are records too; none of them says
// who reaches what. The jump host and the ports run in the coordinator's process:
// it tells them of each change, and they tell how much that ended. Hashes, seeds
// and keys stay in the store: neither calls nor the record give them out.
//
// The key of a person's machine holds for a while, half a year if nobody says
// otherwise: then the member is expired, which is like disabled, until an admin
// renews it or it shows a fresh invite for its user. Its place, address and
// machine key stay. Gateways and relays are nobody's and go on. A node's WireGuard
// key is what it last reported.
//
// While the coordinator is away, relays speak for it: each has the newest [Roll],
// who takes part and which grants hold, signed with a key of the network's that
// every map names. A relay hands it to whoever asks, on its TLS port, and who has
// an older map takes off it what is not on the roll. So a relay can keep news
// back, and make none.
//
// A revocation is one commit. Then it waits until those who let the revoked one
// in say, with a Report, that they enforce a map of that revision or a later
// one, and names those who are not there.
//
// A hosted member has an address, a label and a user like any other, and no
// machine key: the coordinator's own relay carries it. On the maps of others it
// stands apart from the peers, with the carrier's id: its address is among what
// the carrier may send from, and nobody else may; the carrier itself is a peer
// there for that alone, and begins nothing unless the policy says so. The
// carrier's ruleset has the addresses that it carries (Hosted), and the rules
// that lead there. All else goes by address, as for any member: policy, grants, the
// record, a revocation. There are two kinds:
//
//   - A seat is from where a user begins connections on the coordinator's
//     machine, so that the nodes that receive judge the user and not the machine.
//     Server.Seat makes it on first use and returns when those nodes know of it;
//     it is one of the machine's own addresses, to which a socket is bound.
//     Nothing reaches a seat. For what is on that machine itself no node's filter
//     is asked; there Server.Reaches says what the policy does.
//   - A device has a WireGuard key, which only its carrier is told.
//
// The Admin service is for whoever may open the socket on the coordinator's
// machine, and, on the TLS port, for members whose user has the role of admin;
// a daemon passes calls from its own socket on with its token (AdminProxy). The
// policy has no say in that. Each commit, and each call that was refused, is an
// [Event] in a chained record, with what the records were before it: from the
// members of today and the record, those of any moment can be worked out.
//
// A watcher is served by its own goroutine, which collects what changed since it
// last sent. A slow watcher costs the others nothing: its set of changes is
// bounded, and when it grows too large, the watcher gets a whole map instead.
package coord
