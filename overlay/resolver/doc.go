// Package resolver finds hosts of a LAN by the names that the LAN has for them,
// from outside: a gateway answers with what its own resolver says, and [Ask] is
// the side that asks. It is DNS (RFC 1035) over UDP inside the overlay, between
// our own programs: the system's DNS has no part in it, on neither side but the
// gateway's resolver.
//
// A gateway tells addresses of the prefixes that it advertises, and of hosts that the
// policy lets who asks reach at some port, and no others: a name that leads elsewhere
// does not exist. So it is no way to ask for the world's names, none for the
// gateway's other networks, and none to find out what one may not reach. Only A, AAAA and
// the list of the LAN's domains ([Domains]) are answered; what is malformed gets
// no answer. At most 32 questions are looked up at once, for 3 s each; others are
// dropped and asked again.
package resolver
