package underlay

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// A probe is what two peers tell each other about the ways between them. On the
// wire it is sealed (seal.go); inside is, little endian:
//
//	1 ping     1: id 12 | padding, to the length of a pong at least; more measures
//	                      whether a datagram of that length passes
//	2 pong     1: id 12 | 13: address 18 | 31: got 4
//	3 call-me  1: id 12 | 13: flags 1 | 14: count 1 | 15: mapped 2 | 17: step 2 | 19: next 18 | 37: address 18, count times
//
//	id       random; a pong has its ping's, and ends its life
//	address  16 bytes IPv6 or mapped IPv4, port 2: in a pong where the ping came
//	         from, in a call-me where the sender may be reached
//	got      datagrams of WireGuard that came from that address so far, or by the
//	         relay, if the ping did
//	flags    1: an answer to a call-me, which wants none itself; 2: the sender's
//	         relays answer by TLS only
//	mapped   bit i: address i is a port that a router or the operator forwards
//	step     what the sender's NAT adds to the port for each destination; 0: the
//	         ports of new destinations cannot be foretold
//	next     where the next destination would see the sender, unless step is 0
type probe struct {
	kind       probeKind
	fill       int // of a ping that is sent: its length here, padding included; 0: the least
	id         probeID
	observed   netip.AddrPort   // of a pong
	got        uint32           // of a pong
	answer     bool             // of a call-me
	noUDP      bool             // of a call-me
	candidates []netip.AddrPort // of a call-me
	mapped     uint16           // of a call-me
	next       netip.AddrPort   // of a call-me
	step       int16            // of a call-me
}

type probeKind byte

const (
	probePing   probeKind = 1
	probePong   probeKind = 2
	probeCallMe probeKind = 3
)

type probeID [12]byte

const (
	probeAddressSize = 18
	// pingSize is a pong's length: who sends a ping from a stranger's address
	// makes us send that stranger no more than came.
	pingSize   = 1 + len(probeID{}) + probeAddressSize + 4
	callMeSize = 1 + len(probeID{}) + 2 + 2 + 2 + probeAddressSize
	flagAnswer = 1
	flagNoUDP  = 2
	// mostCandidates is how many addresses a node tells, and believes.
	mostCandidates = 16
)

var errProbe = errors.New("malformed probe")

// Append appends the probe's bytes.
func (m probe) Append(b []byte) []byte {
	start := len(b)
	b = append(b, byte(m.kind))
	b = append(b, m.id[:]...)
	switch m.kind {
	case probePing:
		b = append(b, make([]byte, max(pingSize, m.fill)-(len(b)-start))...)
	case probePong:
		b = appendProbeAddress(b, m.observed)
		b = binary.LittleEndian.AppendUint32(b, m.got)
	case probeCallMe:
		flags := byte(0)
		if m.answer {
			flags = flagAnswer
		}
		if m.noUDP {
			flags |= flagNoUDP
		}
		list := m.candidates[:min(len(m.candidates), mostCandidates)]
		b = append(b, flags, byte(len(list)))
		b = binary.LittleEndian.AppendUint16(b, m.mapped)
		b = binary.LittleEndian.AppendUint16(b, uint16(m.step))
		b = appendProbeAddress(b, m.next)
		for _, a := range list {
			b = appendProbeAddress(b, a)
		}
	}
	return b
}

// parseProbe reads what Append wrote.
func parseProbe(b []byte) (probe, error) {
	if len(b) < min(pingSize, callMeSize) {
		return probe{}, errProbe
	}
	m := probe{kind: probeKind(b[0]), id: probeID(b[1:])}
	body := b[1+len(m.id):]
	switch {
	case m.kind == probePing && len(b) >= pingSize:
		return m, nil
	case m.kind == probePong && len(b) == pingSize:
		m.observed = parseProbeAddress(body)
		m.got = binary.LittleEndian.Uint32(body[probeAddressSize:])
		return m, nil
	case m.kind == probeCallMe && body[1] <= mostCandidates && len(b) == callMeSize+int(body[1])*probeAddressSize:
		m.answer, m.noUDP = body[0]&flagAnswer != 0, body[0]&flagNoUDP != 0
		m.mapped = binary.LittleEndian.Uint16(body[2:])
		if m.step = int16(binary.LittleEndian.Uint16(body[4:])); m.step != 0 {
			m.next = parseProbeAddress(body[6:])
		}
		for rest := b[callMeSize:]; len(rest) > 0; rest = rest[probeAddressSize:] {
			m.candidates = append(m.candidates, parseProbeAddress(rest))
		}
		return m, nil
	}
	return probe{}, errProbe
}

// appendProbeAddress writes an address without its zone, which means nothing to
// the other side.
func appendProbeAddress(b []byte, a netip.AddrPort) []byte {
	ip := [16]byte{}
	if a.IsValid() {
		ip = a.Addr().As16()
	}
	b = append(b, ip[:]...)
	return binary.LittleEndian.AppendUint16(b, a.Port())
}

func parseProbeAddress(b []byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b)).Unmap(), binary.LittleEndian.Uint16(b[16:]))
}
