// Package train cuts trains of packets into packets, and joins packets to trains.
//
// A train is what segmentation offload makes of many packets of a flow: one
// packet of up to 64 KiB, which says how long its pieces are. Whoever makes or
// takes one works once where it would have worked forty times. [Splitter] cuts a
// train into packets that fit a link, summing while it copies; [Joiner] joins
// packets where they lie. What they exchange begins with the header that Linux
// puts before the packets of a TUN ([Offload]).
//
// Package tun does so for the kernel's TCP, package netstack for that of a node
// without root. Nothing here does I/O or allocates for a packet.
package train
