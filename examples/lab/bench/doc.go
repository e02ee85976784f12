// Command bench measures overlayd side by side with what else could carry a
// laptop's packets. There are four sections, each of a few systems:
//
//	relayed  overlayd by its relay, to the LAN host; a wireguard-go hub on the
//	         VPS, which decrypts there; plain routing as the floor
//	direct   overlayd by its direct path, and wireguard-go point to point,
//	         between the laptop and the gateway itself
//	tls      overlayd by its relay, the laptop's end by TLS, and all by UDP
//	filter   overlayd by its direct path, with a filter and without; see below
//
// Each system has a lab of its own; those of a section stand at the same time,
// and every figure is taken from one system after the other before the next
// figure is, round after round, every other round in the opposite order. A
// machine that drifts within minutes then slows neighbours alike, and the ratio of
// neighbours in a round is what counts. All of it happens twice: with the wires'
// offloads as they are, and with none (see lab.Options.NoOffload). overlayd's own
// status has to say that packets go the way that the section is about, before a
// round and after each transfer.
//
// Figures are medians of the rounds. CPU time is utime and stime of
// /proc/PID/stat, per 10^9 bytes that iperf3's receiver got. A system is one
// implementation of the interface system; a figure is one of the entries of
// the list probes; a target is one of the list targets. To look at one thing
// while changing it:
//
//	bin/bench -only direct -offloads on -probes one,reverse -seconds 3 -rounds 5
//
// # The filter
//
// What the filter takes shows beside bin/overlayd-unfiltered, which the build tag
// "unfiltered" makes: everything is the same, but no packet is shown to the filter.
// It is measured with a policy of one rule, and with one of 10,000 among a crowd
// of flows: from the laptop to the gateway and to the VPS, and from the VPS to
// the gateway, 250 sockets each talk UDP to 200 ports. So each of the three
// daemons has 100,000 flows, established and alive: 1,000 datagrams are sent and
// answered every second, and each flow has its turn before a filter would forget
// it. Without a filter there are the same policy and the same crowd.
//
// After every transfer the counters of both ends' daemons (overlayd status
// --json) have to say that so many rules are in force and that 99 % of the flows
// are there; or, without a filter, that there are none. A rule that leads behind
// the gateway counts twice there, as it opens the names of the LAN too.
//
// # Ways in
//
// bench ways, the second half of make bench, measures overlayd without root at
// either end and at both, beside overlayd with interfaces, each in a lab of its
// own, taking turns: throughput of a stream, connections per second, and what the
// daemons need for a thousand connections on which nothing passes. The client
// and the LAN host's server are in this process. A client without root is its
// daemon's socket, by which overlayd nc and ssh connect too.
//
// # Entries
//
// bench entries measures how the laptop's programs get to the LAN host without
// routes, by SOCKS5, a forward and the socket that nc uses, beside plain packets of
// the interface: a stream from the host, connections that are made, used for a
// byte and ended by 16 clients at once, and what an idle one takes of the daemon's
// memory. One laptop has an interface, another runs with --userspace; their labs
// stand at the same time, and rounds take one after the other. The path is direct.
//
// # Recovery
//
// bench recovery lets something happen to overlayd in a lab, and measures how
// soon packets flow again. An event is one entry of the list events: what
// precedes it, what it is, what ends the clock, what makes the world as it was,
// and what was promised. A train of echo requests runs from the laptop to the LAN
// host all the time, one every 10 ms; the clock runs from the beginning of the
// event to the first of ten echoes in a row, all asked for after it. Each round
// begins when the status says that packets go the way that the event is about,
// and a random time after that, so that no timer is always met in the same phase.
// A target is met when the worst round meets it.
package main
