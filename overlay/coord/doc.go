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
// A watcher is served by its own goroutine, which collects what changed since it
// last sent. A slow watcher costs the others nothing: its set of changes is
// bounded, and when it grows too large, the watcher gets a whole map instead.
package coord
