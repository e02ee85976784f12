// Package proxy lets programs of this machine reach the overlay without routes of
// the system's: a SOCKS5 proxy (RFC 1928, 1929), an HTTP proxy and a file for
// browsers that says which addresses go there (PAC), all on one port. The first
// byte of a connection tells which it is.
//
// A [Server] is given how to connect, and knows nothing else of the overlay. What
// Dial refuses the client hears in the words of its protocol: a SOCKS reply code,
// an HTTP status with a sentence. There is no way around Dial, so the proxy opens
// nothing but what it does. Whether that leads outside of the overlay is for whoever
// gives it to say; see overlay.Node.
//
//	SOCKS5  CONNECT, and UDP ASSOCIATE; BIND is refused. No login, or name and
//	        password when there is one.
//	HTTP    CONNECT for any port, and plain http:// requests, WebSockets too.
//	        With a password: Basic.
//	PAC     /proxy.pac: the prefixes and names that Reach lists go to the proxy,
//	        everything else goes directly. Names are compared and not looked up.
//
// # Web pages
//
// A page in a browser can make requests to a port of the loopback, by its number
// or by a name that its owner makes point there. It must not learn from the PAC
// file what networks there are: the Host has to be an address or localhost, a
// request that says that another site caused it is refused, and the answer may
// neither run as a script nor be read by another origin. Nothing else is answered
// to what is not meant for a proxy; pages cannot send what is.
//
// # Whose programs
//
// Admit may keep others out who can reach the port, like the other users of a
// machine. They are closed without a word, and counted.
//
// # Bounds
//
//	1024 connections at once, 256 of which may still be saying what they want
//	10 s for that, and 32 KiB of HTTP headers
//	256 UDP associations, 64 destinations in each and 512 in all, 8 datagrams that
//	wait for one and 4 MiB in all
//	2 min without a datagram end a destination; the end of its TCP connection
//	ends an association
//	a wrong password is answered after 1 s
//
// What does not fit is closed, and counted: see [Server.Counters].
package proxy
