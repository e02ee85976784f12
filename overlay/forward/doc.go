// Package forward gives a host that lies in the overlay, or behind it, a port of
// this machine: what connects to the port comes out at the host. It is for
// programs that know neither proxies nor routes.
//
// A [Forward] is given how to connect, and knows nothing else of the overlay. A
// connection that Dial refuses is reset, since the client has been accepted by
// then; why is kept for who asks. Half-closes and resets pass, as package splice
// has it. Of UDP each client, an address with a port, has a socket of its own to
// the host, so that answers find back.
//
// Admit may keep others out who can reach the port, like the other users of a
// machine: their connections are reset, their datagrams dropped.
//
// # Bounds
//
//	1024 TCP connections at once in each forward
//	256 UDP clients in each, of which the oldest goes for the next
//	2 min without a datagram end a UDP client
package forward
