package filter

import (
	"encoding/binary"
	"slices"
)

// The longest prohibitions: RFC 1812 section 4.3.2.3 and RFC 4443 section 2.4.
const (
	longestICMP4 = 576
	longestICMP6 = 1280
)

// hops is the time to live of what we send.
const hops = 64

// refuse answers a denied packet, so that its sender sees a refusal and not
// silence: TCP is reset, the rest prohibited. Fragments are not answered, nor
// whatever is an answer itself, nor what is above the limit.
func (c *cursor) refuse(limit *bucket) (answered bool) {
	p := &c.p
	if p.part != whole || p.proto == tcp && p.flags&rst != 0 || p.icmpError() || p.echoReply() {
		return false
	}
	if !c.allowAnswer(limit) {
		return false
	}
	if p.proto == tcp {
		c.appendReset()
	} else {
		c.appendProhibited()
	}
	return true
}

// refuseCut answers a packet of a flow that was cut. This side is told of TCP
// only: what else it sends is answers.
func (c *cursor) refuseCut() {
	p := &c.p
	if c.out {
		if p.proto == tcp && p.part == whole && p.flags&rst == 0 && c.allowAnswer(&c.f.toLocal) {
			c.appendReset()
		}
		return
	}
	if who := c.f.index.Load().sources[p.src]; who != nil {
		c.refuse(&who.load.answers)
	}
}

func (c *cursor) allowAnswer(limit *bucket) bool {
	if cap(c.b.room)-len(c.b.room) < longestICMP6 || len(c.b.Answers) == cap(c.b.Answers) || !limit.allow(c.mono) {
		c.f.limited.Add(1)
		return false
	}
	c.f.answers.Add(1)
	return true
}

// appendReset makes the reset that the destination would send (RFC 9293
// section 3.10.7.1).
func (c *cursor) appendReset() {
	p := &c.p
	seq, acked, flags := p.ack, uint32(0), uint8(rst)
	if p.flags&ack == 0 {
		acked = p.seq + uint32(p.data)
		if p.flags&syn != 0 {
			acked++
		}
		if p.flags&fin != 0 {
			acked++
		}
		seq, flags = 0, rst|ack
	}
	from := len(c.b.room)
	c.b.room = appendTCPReset(c.b.room, p.dst, p.src, p.dport, p.sport, seq, acked, flags, refusalWindow)
	c.b.Answers = append(c.b.Answers, c.b.room[from:])
}

// reset makes the packet that ends a flow at one of its ends.
func (f *flow) reset(toTunnel bool) []byte {
	k := f.key
	if toTunnel {
		return appendTCPReset(nil, k.local, k.remote, k.localPort(), k.remotePort(), f.seqOut, f.seqIn, rst|ack, 0)
	}
	return appendTCPReset(nil, k.remote, k.local, k.remotePort(), k.localPort(), f.seqIn, f.seqOut, rst|ack, 0)
}

func appendTCPReset(b []byte, src, dst addr, sport, dport uint16, seq, acked uint32, flags uint8, window uint16) []byte {
	b = appendIP(b, src, dst, tcp, minTCP)
	b = binary.BigEndian.AppendUint16(b, sport)
	b = binary.BigEndian.AppendUint16(b, dport)
	b = binary.BigEndian.AppendUint32(b, seq)
	b = binary.BigEndian.AppendUint32(b, acked)
	b = append(b, minTCP/4<<4, flags, byte(window>>8), byte(window), 0, 0, 0, 0)
	t := b[len(b)-minTCP:]
	binary.BigEndian.PutUint16(t[16:], checksum(pseudo(src, dst, tcp, minTCP), t))
	return b
}

// appendProhibited makes the ICMP error that says so (RFC 1812 section
// 5.2.7.1, RFC 4443 section 3.1). A peer gets it from this node, if that has such
// an address; this side from the destination, as a kernel drops what comes to it
// from itself.
func (c *cursor) appendProhibited() {
	const (
		unreachable4, prohibited4 = 3, 13
		unreachable6, prohibited6 = 1, 1
	)
	p := &c.p
	src, x := p.dst, c.f.index.Load()
	if i := slices.IndexFunc(x.self, func(a addr) bool { return a.is4() != p.v6 }); i >= 0 && x.sources[p.src] != nil {
		src = x.self[i]
	}
	kind, code, proto, quote := uint8(unreachable4), uint8(prohibited4), uint8(icmp4), longestICMP4-minIPv4-icmpHeader
	if p.v6 {
		kind, code, proto, quote = unreachable6, prohibited6, icmp6, longestICMP6-minIPv6-icmpHeader
	}
	quote = min(quote, len(c.raw))
	from := len(c.b.room)
	b := appendIP(c.b.room, src, p.src, proto, icmpHeader+quote)
	at := len(b)
	b = append(b, kind, code, 0, 0, 0, 0, 0, 0)
	b = append(b, c.raw[:quote]...)
	sum := uint32(0)
	if p.v6 {
		sum = pseudo(src, p.src, icmp6, icmpHeader+quote)
	}
	binary.BigEndian.PutUint16(b[at+2:], checksum(sum, b[at:]))
	c.b.room = b
	c.b.Answers = append(c.b.Answers, b[from:])
}

// appendIP adds a header for a packet with so many bytes after it.
func appendIP(b []byte, src, dst addr, proto uint8, length int) []byte {
	if !src.is4() {
		b = append(b, 0x60, 0, 0, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(length))
		b = append(b, proto, hops)
		for _, v := range [...]uint64{src.hi, src.lo, dst.hi, dst.lo} {
			b = binary.BigEndian.AppendUint64(b, v)
		}
		return b
	}
	at := len(b)
	b = append(b, 0x45, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(minIPv4+length))
	b = append(b, 0, 0, 0x40, 0, hops, proto, 0, 0) // may not be fragmented, so it needs no identifier (RFC 6864)
	b = binary.BigEndian.AppendUint32(b, uint32(src.lo))
	b = binary.BigEndian.AppendUint32(b, uint32(dst.lo))
	binary.BigEndian.PutUint16(b[at+10:], checksum(0, b[at:]))
	return b
}

// pseudo is the sum of the pseudo header (RFC 9293 section 3.1, RFC 8200
// section 8.1); an IPv4 address adds up as in 16 bytes as in 4 once 0xffff is
// taken out, which counts as nothing.
func pseudo(src, dst addr, proto uint8, length int) uint32 {
	sum := uint32(proto) + uint32(length)
	for _, v := range [...]uint64{src.hi, src.lo, dst.hi, dst.lo} {
		sum += uint32(v>>48) + uint32(v>>32&0xffff) + uint32(v>>16&0xffff) + uint32(v&0xffff)
	}
	return sum
}

// checksum is the Internet checksum (RFC 1071) of a sum and bytes.
func checksum(sum uint32, b []byte) uint16 {
	for len(b) >= 2 {
		sum += uint32(b[0])<<8 | uint32(b[1])
		b = b[2:]
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
