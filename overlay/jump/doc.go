// Package jump is a jump host for stock OpenSSH: whoever holds a user's key gets
// TCP connections into the network with `ssh -J`, and nothing else.
//
// A [Server] proves users by their public keys, which it is asked about anew for
// every login, and whose name has to be the one that the client says. Of all
// channels only direct-tcpip (RFC 4254 section 7.2) is opened; what is asked for
// otherwise is refused:
//
//	session (shell, exec, sftp), x11,   the channel is refused, with a reason
//	auth-agent, streamlocal
//	tcpip-forward, streamlocal-forward  the request fails: the protocol has no room for a reason
//	keepalive@openssh.com               fails too, which is the answer that clients expect
//
// A channel's connection is made by Options.Dial, for the user: whether policy
// allows it is its business, and whoever receives it enforces it. The ssh inside
// goes from the client to the target, so this machine sees neither its password
// nor its bytes in the clear.
//
// # Strangers
//
// A connection has loginGrace to log in. There are few at a time that have not,
// of one source and of all; a source that fails often is not listened to for a
// while (package limit). Sessions are bounded, in all and of one user, and so are a
// user's channels; each channel's window bounds what waits for a slow reader. A
// client that does not answer a keepalive is gone. Only algorithms of today are
// offered.
//
// # Taking away
//
// Heed asks again about every session's key, and ends those that are good no
// more: call it when keys or users have changed.
package jump
