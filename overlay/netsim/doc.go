// Package netsim is an internet of UDP in memory, for tests: hosts, NATs of
// every kind, loss, latency, and a clock that only moves when nothing is left
// to do at its time.
//
//	w := netsim.New(1)
//	home := w.NAT(netsim.PortRestricted, netip.MustParseAddr("198.51.100.2"))
//	laptop := home.Host(netip.MustParseAddr("10.0.0.2")).Listen(4000, func(src netip.AddrPort, b []byte) { … })
//	laptop.Send(server, []byte("hello"))
//	w.Run(time.Second)
//
// Everything runs in the caller's goroutine, and the same seed gives the same
// run.
package netsim
