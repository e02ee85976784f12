// Package publish opens ports on a public machine that come out inside the
// network: TCP, UDP, or HTTP with TLS and a login.
//
// A [Server] makes the ports that are open those of the list it was last given.
// [Server.Set] closes what is on it no more, with all its connections, before it
// returns; a port that cannot be had is tried again every second, and State says
// why. Try says so before anything is kept.
//
// Where a connection leads is for Options.Dial, which is told whose it is: of an
// HTTP port with a login the user who logged in, else whoever published the port.
// When the target is away, TCP is reset at once, a datagram is dropped, and HTTP
// gets a page with status 503; the listener stays.
//
// # HTTP
//
// The target gets X-Forwarded-For, -Host and -Proto and X-Real-IP as this machine
// saw them: what the client sent of those is thrown away, and so are
// X-Forwarded-User, which names who has logged in, and the login's cookie. A
// client's connection has connections to the target of its own, which end with it, and
// those belong to one login, so that every one is one person's and ends when that
// login counts no more. WebSockets pass; no other upgrade does, since what comes after
// it could tell the target anything about who asks.
//
// Exposures with a name each share a port, if all of them speak TLS or none: what is
// asked for by one name leads to its target, with its certificate, clients and logins.
// They are removed one by one, and with each go the connections by which it was asked
// for.
//
// A login is remembered in a cookie: the user's id and the time, under a MAC with
// the exposure's own secret. Whether it still counts is asked with each request.
//
// Certificates by ACME (RFC 8555) are proved by tls-alpn-01 on this machine's
// port 443, whoever has it (see Server.Challenge), or by http-01 on a published
// port 80, and kept in Options.Cache.
//
// # Strangers
//
// Headers, times, connections of a port and flows of a UDP port are bounded, and
// nobody alone has more than half of those; who is not in Allow is reset before a
// byte is read, or, where another name at the port allows him, when he asks for this
// one. A UDP port that is full gives up the flow that has been silent longest, of those
// first whose client has not gone on after an answer: forged sources keep nobody out.
package publish
