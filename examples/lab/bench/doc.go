// Command bench measures overlayd side by side with what else could carry a
// laptop's packets to the LAN: a wireguard-go hub on the VPS, which decrypts
// there, and plain routing as the floor. Each system has a lab of its own; all
// stand at the same time, and every figure is taken from one system after the
// other before the next figure is, round after round. A machine that drifts
// within minutes then slows neighbours alike, and the ratio of neighbours in a
// round is what counts. All of it happens twice: with the wires' offloads as
// they are, and with none (see lab.Options.NoOffload).
//
// Figures are medians of the rounds. CPU time is utime and stime of
// /proc/PID/stat, per 10^9 bytes that iperf3's receiver got. A system is one
// implementation of the interface system; a figure is one of the entries of
// the list figures; a target is one of the list targets.
package main
