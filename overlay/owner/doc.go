// Package owner tells which user of this machine has the other end of a TCP
// connection, or of a UDP socket, that talks to a port of the loopback. So a port
// without a password can be for one user's programs on a machine that many use.
//
// On Linux the kernel is asked by netlink (sock_diag(7)), as every user may, and
// where it does not answer, /proc/net is read. Elsewhere nobody tells: see [Known].
//
// A socket that its program has closed belongs to nobody any more, and the kernel
// shows it as root's; it is an error here.
package owner
