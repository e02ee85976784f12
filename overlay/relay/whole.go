package relay

import "time"

const (
	// longProbe is from where on a probe measures how much a path carries: below
	// it, every path of IPv4 does in one piece (RFC 791, section 3.1).
	longProbe = 512
	// probesPerPort limits long probes per sender, and probesTotal over all: each
	// turns fragmentation off for what the socket sends in the same microseconds.
	// A node that measures its paths to many peers at once sends a burst.
	probesPerPort, probeBurst     = 100, 200
	probesTotal, probesTotalBurst = 2000, 2000
)

// sendWhole forwards long probes, each in one piece or not at all, and returns
// how many it did.
func (r *reader) sendWhole(src origin, to *leg, train []byte, size int) (sent int) {
	for len(train) > 0 {
		b := train[:min(size, len(train))]
		train = train[len(b):]
		since := time.Since(r.door.start)
		switch {
		case !r.door.probePorts.allow(r.door.probePorts.port(src.addr), since), !r.door.probeAll.allow(0, since):
			r.count.add(dropProbeLimit, 1)
		case r.out.shard.sendWhole(to, b):
			sent++
		}
	}
	return sent
}

// sendWhole sends one datagram that arrives in one piece or not at all, and
// reports whether the kernel took it.
func (s *shard) sendWhole(to *leg, b []byte) bool {
	k := s.socket(to.addr)
	return k != nil && k.SendWhole(to.addr, b) == nil
}
