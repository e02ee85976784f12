package train

import (
	"encoding/binary"
	"errors"
)

// Splitter cuts what the kernel hands over into packets that fit the link. It
// does no I/O. The zero value holds nothing.
type Splitter struct {
	packet   []byte // borrowed until it is used up
	next     int    // where the rest of the payload begins
	header   int    // bytes of all headers
	ipHeader int    // bytes of the IP header
	segment  int    // bytes of payload per packet
	proto    uint8
	sumAt    int    // of the transport checksum, in the packet
	base     uint64 // sum of the pseudo header without its length
	seq      uint32 // TCP: of the next packet
	id       uint16 // IPv4: of the next packet
	train    bool   // false: the packet is whole
}

var errMalformed = errors.New("malformed packet from the kernel")

// Load takes a frame: an offload header and a packet. The packet is borrowed,
// and changed.
func (s *Splitter) Load(frame []byte) error {
	*s = Splitter{}
	if len(frame) < HeaderSize+20 {
		return errMalformed
	}
	o, p := parseOffload(frame), frame[HeaderSize:]
	version := p[0] >> 4
	if version != 4 && version != 6 || version == 6 && len(p) < 40 {
		return errMalformed
	}
	start, at := int(o.SumStart), int(o.SumStart)+int(o.SumAt)
	if o.Kind == None {
		if o.NeedsSum {
			if at+2 > len(p) {
				return errMalformed
			}
			// What lies there is the sum of the pseudo header.
			putSum(p[at:], final(sum(p[start:], 0)))
		}
		s.packet = p
		return nil
	}
	kind := o.Kind &^ ecn
	header := start + udpSize
	switch {
	case kind == TCP4 && version == 4, kind == TCP6 && version == 6:
		// The kernel's own length of the headers is wrong for what it forwards.
		if len(p) < start+20 {
			return errMalformed
		}
		header = start + int(p[start+12]>>4)*4
		s.proto, at = protoTCP, start+tcpSumAt
		s.seq = binary.BigEndian.Uint32(p[start+4:])
	case kind == UDP:
		s.proto, at = protoUDP, start+udpSumAt
	default:
		return errMalformed
	}
	if start < 20 || version == 6 && start < 40 || at+2 > header || header >= len(p) || o.Segment == 0 || start%2 != 0 {
		return errMalformed
	}
	s.packet, s.train = p, true
	s.ipHeader, s.header, s.next, s.segment, s.sumAt = start, header, header, int(o.Segment), at
	s.id = binary.BigEndian.Uint16(p[4:])
	s.base = sum(addresses(p), word(uint16(s.proto)))
	p[at], p[at+1] = 0, 0
	return nil
}

// More reports whether Cut has something to give.
func (s *Splitter) More() bool { return len(s.packet) > 0 }

// Cut writes the next packet to dst and returns its length; a packet that does
// not fit is left out, with 0.
func (s *Splitter) Cut(dst []byte) int {
	p := s.packet
	if !s.train {
		s.packet = nil
		if len(dst) < len(p) {
			return 0
		}
		return copy(dst, p)
	}
	payload := p[s.next:min(s.next+s.segment, len(p))]
	first, last := s.next == s.header, s.next+len(payload) == len(p)
	s.next += len(payload)
	if last {
		s.packet = nil
	}
	n := s.header + len(payload)
	if len(dst) < n {
		s.packet = nil
		return 0
	}
	copy(dst, p[:s.header])
	if dst[0]>>4 == 4 {
		binary.BigEndian.PutUint16(dst[4:], s.id)
		s.id++
	}
	setLength(dst, s.ipHeader, n)
	transport := dst[s.ipHeader:s.header]
	if s.proto == protoTCP {
		binary.BigEndian.PutUint32(transport[4:], s.seq)
		s.seq += uint32(len(payload))
		if !last {
			transport[13] &^= tcpFIN | tcpPSH
		}
		if !first {
			transport[13] &^= tcpCWR
		}
	} else {
		binary.BigEndian.PutUint16(transport[4:], uint16(n-s.ipHeader))
	}
	acc := sum(transport, add(s.base, word(uint16(n-s.ipHeader))))
	putSum(dst[s.sumAt:], final(copySum(dst[s.header:], payload, acc)))
	return n
}
