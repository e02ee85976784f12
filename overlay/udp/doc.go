// Package udp holds UDP sockets that move many datagrams per system call.
//
// A [Reader] takes in up to a slot count of messages by one recvmmsg. With
// UDP_GRO a message is a [Train]: several datagrams of one source, back to
// back, each Size bytes but the last. A [Writer] does the opposite: it gathers
// datagrams for one destination into messages of up to 127, straight from
// where they lie, and hands them over by one sendmmsg with UDP_SEGMENT. So a
// program that forwards trains as they are copies nothing and makes two system
// calls for hundreds of datagrams.
//
// Nothing here ever blocks on sending: what the kernel does not take is
// dropped and counted, as a full router's queue would. A destination or a
// device that refuses UDP_SEGMENT (EIO without checksum offload, EINVAL or
// EMSGSIZE for datagrams above the device's MTU) gets one datagram per
// message.
//
// The don't-fragment bit is off on what is sent, so a datagram that is too big
// for some link on the way is slow rather than lost, and what ICMP says of paths
// by IPv4 is not believed. SendWhole is the exception: it measures paths. It
// sets an option of the socket for the one system call, some microseconds, as no
// datagram can ask for that by itself. What others send meanwhile has the bit
// too. Of that, a datagram is lost if it is longer than some link of its path
// carries: one or two messages per SendWhole at worst. What is sent again finds
// the option as it was, so nothing can vanish for good; and callers send a few
// a second, relays up to two thousand when all of their nodes measure at once,
// which is some per cent of the time. Where the own link is the narrow one
// nothing is lost: the kernel says so, and the [Writer] repeats the message.
//
// Systems other than Linux get the same names over net.UDPConn, one datagram
// per call.
package udp
