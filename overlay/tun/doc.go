// Package tun is the kernel's TUN interface, read and written many packets at a
// time: the tun.Device under WireGuard on Linux.
//
// With offload the kernel hands over a train of TCP segments as one packet of up
// to 64 KiB, and takes such packets. [Device] cuts them into packets that fit
// the link as it reads, summing while it copies; and it joins what WireGuard
// decrypted as it writes, where the packets lie (package train does both): the
// kernel gathers a train from its pieces, so no payload is copied in between.
// What cannot be joined is written as it is.
//
// # Why not WireGuard's own
//
// golang.zx2c4.com/wireguard/tun does the same by os.File. Each of its system
// calls tells the scheduler that it may block; its monitor then wakes every
// 20 microseconds to see, which was 8 % of the processor time of a busy node. The
// calls here never block, and the scheduler is not told of them. In the same run
// on the same machine that, the copy saved in joining, and the sum made in
// copying are what makes a direct path faster than WireGuard's own binary.
// Small packets, such as acknowledgements, also come many at a time.
package tun
