// Package netstack is TCP/IP in this process (gVisor's), for a node that may make
// no network interface. A [Stack] is the tun.Device under WireGuard, and at its
// other side what a node needs of a kernel: connections into the overlay ([Stack.Dial]),
// ports of the node's own address ([Stack.Listen]), and, for a gateway, what
// arrives for the networks behind it, which the host dials.
//
// The filter of package tunnel lies between WireGuard and the Stack as it does
// before a kernel. So policy, grants, records and cuts need nothing here; a cut
// comes as a reset, which goes on to the other side.
//
// # Packets
//
// golang.zx2c4.com/wireguard/tun/netstack moves one packet a call, each of the
// length of the link. Here the stack sends trains of up to 45 segments, which
// package train cuts as WireGuard reads, 128 packets a call; what WireGuard
// decrypted is joined to trains before the stack sees it. The sums are made and
// checked in the same pass, so the stack makes none.
//
// What the stack sends waits in a queue of 1 MiB. Who finds it full waits for at
// most 5 ms, and then the packet is lost: TCP slows down in either case.
//
// # What comes out at the host
//
// A SYN is answered when the host has its own connection, and not before: a port that
// refuses is refused (a reset), a host that is not there is unreachable (ICMP, which
// Linux and this package give the program that dialed), and silence is silence.
// Whoever says first that he is done, the other side is told, and the other direction
// goes on; a reset is passed on as a reset. A datagram that the target refuses comes
// back as "port unreachable" in the target's name, and one that is prohibited on its
// way as that, also to a socket of the stack. A packet whose TTL ends here says so,
// for traceroute.
//
// An echo request is sent by a ping socket, which needs no privilege, but on
// Linux a group within net.ipv4.ping_group_range. Where that is not allowed, and
// on Windows, the target is asked for a TCP connection to port 7 instead: if it
// accepts or refuses, it is there, and the request is answered with its bytes;
// "unreachable" and silence are passed on as they are. Such an answer is as true
// about the target and its distance, but a host that drops what it does not serve
// seems to be silent.
//
// Everything else that is not TCP, UDP or an echo does not pass.
//
// # Whom the host dials
//
// The networks that State says, and nothing in them that is loopback, multicast,
// of the overlay, or of 0.0.0.0/8. A flow to the node's own address that nobody
// listens to in this process goes to the same port of State.Host, an address of
// the machine. That is not 127.0.0.1: behind a TUN, too, the overlay reaches
// what listens on all addresses, and not what listens on the loopback for good
// reason. To other programs of the machine such a flow seems to come from itself.
// Without State.Host nothing of the machine can be reached.
//
// # Bounds
//
// 8192 flows of TCP, 4096 of UDP, 1024 of echo, 1024 connections being made; one
// source may have half of each. Beyond that a SYN goes unanswered, and comes
// again. Silent flows end when package filter forgets theirs: TCP after 2 h 4 min,
// half closed after 4 min, UDP after 3 min or, unanswered, 30 s.
//
// All TCP connections together, those of this node's own programs included, have room
// for 512 MiB that nobody has read or acknowledged, and those of one source for half of
// it. A connection has room for 128 KiB at first, in either direction, and up to 4 MiB
// while it is read quickly; when an eighth of all is taken, or a sixteenth by its
// source, 16 KiB, and what is carried at once is 4 KiB instead of 64 until it is used and
// there is room. What it has room for counts, not what is there, until everything that
// it sent has arrived. Who finds no room is not answered; the last quarter is for new
// connections only. A silent one takes no memory at all, and gives back what its send
// buffer had room for. A flow of UDP has 32 KiB in either direction.
//
// IPv4 only, as the overlay.
package netstack
