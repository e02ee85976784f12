package underlay

import (
	"encoding/binary"
	"errors"
	"math"
	"net/netip"
	"time"

	"overlayd/overlay/relay"
)

// A probe is what two peers tell each other about the ways between them. On the
// wire it is sealed (seal.go); inside is, little endian:
//
//	1 ping     1: id 12 | padding, to the length of a pong at least; more measures
//	                      whether a datagram of that length passes
//	2 pong     1: id 12 | 13: address 18 | 31: got 4
//	3 call-me  1: id 12 | 13: flags 1 | 14: count 1 | 15: mapped 2 | 17: step 2 | 19: next 18 | 37: address 18, count times
//	4 notice   1: id 12 | 13: flags 1 | 14: count 1 | 15: place 8, count times
//
//	id       random; a pong has its ping's, and ends its life; of a notice a
//	         number that grows, in the first 8 bytes
//	address  16 bytes IPv6 or mapped IPv4, port 2: in a pong where the ping came
//	         from, in a call-me where the sender may be reached
//	got      datagrams of WireGuard that came from that address so far, or by the
//	         relay, if the ping did
//	flags    of a call-me, 1: an answer to one, which wants none itself, 2: the
//	         sender's relays answer by TLS only; of a notice, 1: the sender wants
//	         to know the same
//	mapped   bit i: address i is a port that a router or the operator forwards
//	step     what the sender's NAT adds to the port for each destination; 0: the
//	         ports of new destinations cannot be foretold
//	next     where the next destination would see the sender, unless step is 0
//	place    a relay at which the sender is: the label of its node 3, flags 1
//	         (1: it is doubted), cost in microseconds 4
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
	ask        bool             // of a notice
	places     []presence       // of a notice
}

type probeKind byte

const (
	probePing   probeKind = 1
	probePong   probeKind = 2
	probeCallMe probeKind = 3
	probeNotice probeKind = 4
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
	flagAsk    = 1

	noticeSize  = 1 + len(probeID{}) + 2
	placeSize   = 3 + 1 + 4
	flagDoubted = 1
	// mostPlaces is how many relays a node tells, and believes.
	mostPlaces = 16
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
	case probeNotice:
		flags := byte(0)
		if m.ask {
			flags = flagAsk
		}
		list := m.places[:min(len(m.places), mostPlaces)]
		b = append(b, flags, byte(len(list)))
		for _, p := range list {
			b = appendPlace(b, p)
		}
	}
	return b
}

// parseProbe reads what Append wrote.
func parseProbe(b []byte) (probe, error) {
	if len(b) < noticeSize {
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
	case m.kind == probeNotice && body[1] <= mostPlaces && len(body) == 2+int(body[1])*placeSize:
		m.ask = body[0]&flagAsk != 0
		for rest := body[2:]; len(rest) > 0; rest = rest[placeSize:] {
			m.places = append(m.places, parsePlace(rest))
		}
		return m, nil
	}
	return probe{}, errProbe
}

func appendPlace(b []byte, p presence) []byte {
	flags := byte(0)
	if p.doubted {
		flags = flagDoubted
	}
	b = append(b, byte(p.Relay), byte(p.Relay>>8), byte(p.Relay>>16), flags)
	return binary.LittleEndian.AppendUint32(b, uint32(min(p.Cost.Microseconds(), math.MaxUint32)))
}

func parsePlace(b []byte) presence {
	return presence{Place{
		Relay: relay.Label(b[0]) | relay.Label(b[1])<<8 | relay.Label(b[2])<<16,
		Cost:  time.Duration(binary.LittleEndian.Uint32(b[4:])) * time.Microsecond,
	}, b[3]&flagDoubted != 0}
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
