package tun

import (
	"encoding/binary"
	"errors"
)

// splitter cuts what the kernel hands over into packets that fit the link. It
// does no I/O. The zero value holds nothing.
type splitter struct {
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

// load takes a frame: an offload header and a packet. The packet is borrowed,
// and changed.
func (s *splitter) load(frame []byte) error {
	*s = splitter{}
	if len(frame) < offloadSize+20 {
		return errMalformed
	}
	o, p := parseOffload(frame), frame[offloadSize:]
	version := p[0] >> 4
	if version != 4 && version != 6 || version == 6 && len(p) < 40 {
		return errMalformed
	}
	start, at := int(o.sumStart), int(o.sumStart)+int(o.sumAt)
	if o.kind == gsoNone {
		if o.needsSum {
			if at+2 > len(p) {
				return errMalformed
			}
			// What lies there is the sum of the pseudo header.
			putSum(p[at:], final(sum(p[start:], 0)))
		}
		s.packet = p
		return nil
	}
	kind := o.kind &^ gsoECN
	header := start + udpSize
	switch {
	case kind == gsoTCPv4 && version == 4, kind == gsoTCPv6 && version == 6:
		// The kernel's own length of the headers is wrong for what it forwards.
		if len(p) < start+20 {
			return errMalformed
		}
		header = start + int(p[start+12]>>4)*4
		s.proto, at = protoTCP, start+tcpSumAt
		s.seq = binary.BigEndian.Uint32(p[start+4:])
	case kind == gsoUDP:
		s.proto, at = protoUDP, start+udpSumAt
	default:
		return errMalformed
	}
	if start < 20 || version == 6 && start < 40 || at+2 > header || header >= len(p) || o.segment == 0 || start%2 != 0 {
		return errMalformed
	}
	s.packet, s.train = p, true
	s.ipHeader, s.header, s.next, s.segment, s.sumAt = start, header, header, int(o.segment), at
	s.id = binary.BigEndian.Uint16(p[4:])
	s.base = sum(addresses(p), word(uint16(s.proto)))
	p[at], p[at+1] = 0, 0
	return nil
}

// more reports whether cut has something to give.
func (s *splitter) more() bool { return len(s.packet) > 0 }

// cut writes the next packet to dst and returns its length; a packet that does
// not fit is left out, with 0.
func (s *splitter) cut(dst []byte) int {
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
