// Package lab builds the three machines of overlayd, and what lies between
// them, out of Linux network namespaces on one host:
//
//	laptop ── home NAT ──┐                       ┌── gateway  192.168.1.200
//	10.0.77.2            internet ── lab NAT ────┤
//	                     │           192.168.1.1 └── LAN host 192.168.1.201
//	                     VPS 203.0.113.10
//
// Nobody can reach the LAN from outside, and the LAN host runs nothing of ours
// and has no route to the overlay. [Options] can add a second VPS, 198.18.0.10.
// [New] makes the machines, [Lab.Close] takes
// them away together with every process in them. Names carry the process's id
// (ovl-4711-laptop), so several labs can stand side by side, and the next lab
// removes what a killed one left behind.
//
// A test runs programs in a machine ([Machine.Command], [Machine.Start]),
// opens sockets in it ([Machine.Listen], [Machine.DialContext]), and watches
// its wires ([Machine.Capture]):
//
//	l, err := lab.New(ctx, lab.Options{Home: lab.Hard, Lab: lab.Hard, Overlayd: bin})
//	defer l.Close()
//	net, err := l.Join(ctx) // the three commands of the README
//	out, err := l.Laptop.Run(ctx, "ping", "-c", "3", lab.HostAddr)
//
// Each machine keeps its overlayd's state directory and socket below [Lab.Dir];
// they are handed over as OVERLAYD_STATE_DIR and OVERLAYD_SOCKET, so that the
// command lines are those of the real world.
//
// The kernel is spoken to through ip, iptables, ethtool and sysctl; install.sh
// beside this file installs them. All of it needs Linux and root.
package lab
