package filter

import (
	"encoding/binary"
	"net/netip"
)

// addr is an IP address in a form that compares and hashes fast: IPv6 as it
// is, IPv4 mapped into it (RFC 4291 section 2.5.5.2).
type addr struct{ hi, lo uint64 }

const mapped = 0xffff << 32

func addr4(b []byte) addr { return addr{0, mapped | uint64(binary.BigEndian.Uint32(b))} }
func addr6(b []byte) addr { return addr{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])} }

func addrOf(a netip.Addr) addr {
	b := a.As16()
	return addr6(b[:])
}

func (a addr) is4() bool { return a.hi == 0 && a.lo>>32 == 0xffff }

func (a addr) netip() netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], a.hi)
	binary.BigEndian.PutUint64(b[8:], a.lo)
	return netip.AddrFrom16(b).Unmap()
}

// mask keeps the first bits of the 128.
func (a addr) mask(bits int) addr {
	switch {
	case bits <= 0:
		return addr{}
	case bits <= 64:
		return addr{a.hi &^ (1<<(64-bits) - 1), 0}
	}
	return addr{a.hi, a.lo &^ (1<<(128-bits) - 1)}
}

// The protocols and headers that are looked at.
const (
	hopByHop = 0
	icmp4    = 1
	tcp      = 6
	udp      = 17
	routing  = 43
	fragment = 44
	auth     = 51
	icmp6    = 58
	noNext   = 59
	dstOpts  = 60
	mobility = 135
	hostID   = 139
	shim6    = 140
	testing1 = 253
	testing2 = 254
)

// The flags of TCP.
const (
	fin = 1 << iota
	syn
	rst
	psh
	ack
)

// part says how much of a datagram a packet is.
type part uint8

const (
	whole part = iota
	firstPart
	laterPart
)

// packet is what the filter knows of one IP packet. With laterPart, nothing of
// the transport is known.
type packet struct {
	src, dst addr
	v6       bool
	part     part
	proto    uint8
	flags    uint8 // TCP's
	icmpType uint8
	icmpCode uint8

	sport, dport uint16 // TCP and UDP; both are the identifier of an echo
	seq, ack     uint32
	transport    int // where its header begins
	data         int // bytes of TCP data

	fragID       uint32
	fragAt       int // where it belongs in the datagram
	fragLen      int
	moreToCome   bool
	networkBytes int // its whole length
}

// parse reads a packet, or says why it may not pass, whatever the rules. A
// packet quoted by an ICMP error may end early; of its transport only the first
// eight bytes are looked at, which is what there must be (RFC 792).
func (p *packet) parse(b []byte, quoted bool) Verdict {
	*p = packet{networkBytes: len(b)}
	if len(b) == 0 {
		return DropNotIP
	}
	var next uint8
	var at int
	var why Verdict
	switch b[0] >> 4 {
	case 4:
		next, at, why = p.ipv4(b, quoted)
	case 6:
		next, at, why = p.ipv6(b, quoted)
	default:
		return DropNotIP
	}
	if why != Pass {
		return why
	}
	p.proto, p.transport = next, at
	if p.part == laterPart {
		return Pass
	}
	why = p.readTransport(b[at:], quoted)
	if p.part == firstPart && (why == DropTransportShort || why == DropTruncated) {
		return DropFragmentTiny
	}
	return why
}

// minIPv4, minIPv6 and fragmentHeader are lengths in bytes.
const (
	minIPv4        = 20
	minIPv6        = 40
	fragmentHeader = 8
)

func (p *packet) ipv4(b []byte, quoted bool) (proto uint8, at int, why Verdict) {
	if len(b) < minIPv4 {
		return 0, 0, DropTruncated
	}
	header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	switch {
	case header < minIPv4 || total < header:
		return 0, 0, DropHeader
	case len(b) < header || total > len(b) && !quoted:
		return 0, 0, DropTruncated
	case total < len(b):
		return 0, 0, DropTrailing
	}
	if header > minIPv4 && !goodOptions(b[minIPv4:header]) {
		return 0, 0, DropOption
	}
	p.src, p.dst = addr4(b[12:]), addr4(b[16:])
	if why := p.addresses4(b[12], b[16]); why != Pass {
		return 0, 0, why
	}
	if frag := binary.BigEndian.Uint16(b[6:]); frag&0x3fff != 0 {
		p.fragID = uint32(binary.BigEndian.Uint16(b[4:]))
		if why := p.place(int(frag&0x1fff)*8, total-header, frag&0x2000 != 0); why != Pass {
			return 0, 0, why
		}
	}
	return b[9], header, Pass
}

func (p *packet) addresses4(src, dst byte) Verdict {
	switch {
	case dst >= 224: // the limited broadcast too; its sender may not have an address yet
		return DropMulticast
	case src == 0, src == 127, src >= 224:
		return DropSource
	case dst == 0, dst == 127:
		return DropDestination
	}
	return Pass
}

// goodOptions refuses options that do not fit and those that route: a packet
// goes where its destination says.
func goodOptions(b []byte) bool {
	const end, nop, looseRoute, strictRoute = 0, 1, 131, 137
	for len(b) > 0 {
		switch b[0] {
		case end:
			return true
		case nop:
			b = b[1:]
			continue
		case looseRoute, strictRoute:
			return false
		}
		if len(b) < 2 || b[1] < 2 || int(b[1]) > len(b) {
			return false
		}
		b = b[b[1]:]
	}
	return true
}

// place notes where a fragment belongs.
func (p *packet) place(at, length int, more bool) Verdict {
	const longest = 65535
	p.fragAt, p.fragLen, p.moreToCome = at, length, more
	switch {
	case length == 0, more && length%8 != 0, at+length > longest:
		return DropFragmentOdd
	case at == 0:
		p.part = firstPart
	default:
		p.part = laterPart
	}
	return Pass
}

func (p *packet) ipv6(b []byte, quoted bool) (next uint8, at int, why Verdict) {
	if len(b) < minIPv6 {
		return 0, 0, DropTruncated
	}
	total := minIPv6 + int(binary.BigEndian.Uint16(b[4:]))
	switch {
	case total > len(b) && !quoted:
		return 0, 0, DropTruncated
	case total < len(b):
		return 0, 0, DropTrailing // a jumbogram too
	}
	p.v6, p.src, p.dst = true, addr6(b[8:]), addr6(b[24:])
	if why := p.addresses6(b[8], b[24]); why != Pass {
		return 0, 0, why
	}
	return p.extensions(b)
}

func (p *packet) addresses6(src, dst byte) Verdict {
	low := func(a addr) bool { return a.hi == 0 && a.lo>>32 == 0 } // ::, ::1, and the form that embeds IPv4
	switch {
	case dst == 0xff:
		return DropMulticast
	case src == 0xff, low(p.src), p.src.is4():
		return DropSource
	case low(p.dst), p.dst.is4():
		return DropDestination
	}
	return Pass
}

// mostExtensions is how many extension headers a packet may have. RFC 8200
// section 4.1 has an order for one each, with two of destination options; two
// of them are refused here anyway.
const mostExtensions = 4

// extensions walks to the transport's header.
func (p *packet) extensions(b []byte) (next uint8, at int, why Verdict) {
	next, at = b[6], minIPv6
	fragmented := false
	for n := 0; ; n++ {
		switch next {
		case hopByHop, dstOpts:
			if n == mostExtensions || next == hopByHop && n > 0 {
				return 0, 0, DropExtension
			}
			if len(b) < at+8 || len(b) < at+8+int(b[at+1])*8 {
				return 0, 0, p.short()
			}
			next, at = b[at], at+8+int(b[at+1])*8
		case fragment:
			if fragmented || n == mostExtensions {
				return 0, 0, DropExtension
			}
			if len(b) < at+fragmentHeader {
				return 0, 0, DropTruncated
			}
			fragmented = true
			frag := binary.BigEndian.Uint16(b[at+2:])
			p.fragID = binary.BigEndian.Uint32(b[at+4:])
			next, at = b[at], at+fragmentHeader
			if frag&^uint16(6) == 0 {
				break // the only one: RFC 6946 has it taken for itself
			}
			if why := p.place(int(frag&^7), len(b)-at, frag&1 != 0); why != Pass || p.part == laterPart {
				return next, at, why
			}
		case routing:
			return 0, 0, DropRouting
		case auth, noNext, mobility, hostID, shim6, testing1, testing2:
			return 0, 0, DropExtension
		default:
			return next, at, Pass
		}
	}
}

// short is what a packet is that ends inside a header.
func (p *packet) short() Verdict {
	if p.part == firstPart {
		return DropFragmentTiny
	}
	return DropTruncated
}

// The lengths of transport headers, in bytes.
const (
	minTCP     = 20
	udpHeader  = 8
	icmpHeader = 8
)

func (p *packet) readTransport(b []byte, quoted bool) Verdict {
	switch p.proto {
	case tcp:
		return p.readTCP(b, quoted)
	case udp:
		if len(b) < udpHeader {
			return DropTransportShort
		}
		p.sport, p.dport = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
		length := int(binary.BigEndian.Uint16(b[4:]))
		if !quoted && (length < udpHeader || p.part == whole && length > len(b)) {
			return DropTransportOdd
		}
	case icmp4, icmp6:
		if (p.proto == icmp6) != p.v6 {
			return DropTransportOdd
		}
		if len(b) < icmpHeader {
			return DropTransportShort
		}
		p.icmpType, p.icmpCode = b[0], b[1]
		if p.echo() {
			if p.icmpCode != 0 {
				return DropTransportOdd
			}
			p.sport = binary.BigEndian.Uint16(b[4:])
			p.dport = p.sport
		} else if p.part != whole {
			return DropFragmentOdd // errors are short
		}
	}
	return Pass
}

func (p *packet) readTCP(b []byte, quoted bool) Verdict {
	const quotedTCP = 8 // ports and sequence number
	if len(b) < quotedTCP || !quoted && len(b) < minTCP {
		return DropTransportShort
	}
	p.sport, p.dport = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	p.seq = binary.BigEndian.Uint32(b[4:])
	if quoted {
		return Pass
	}
	p.ack, p.flags = binary.BigEndian.Uint32(b[8:]), b[13]
	header := int(b[12]>>4) * 4
	switch {
	case header < minTCP:
		return DropTransportOdd
	case header > len(b):
		return DropTransportShort
	}
	p.data = len(b) - header
	switch p.flags & (fin | syn | rst | ack) {
	case 0, fin, syn | fin, syn | rst, syn | fin | ack, syn | rst | ack, syn | fin | rst, syn | fin | rst | ack:
		return DropTransportOdd
	}
	return Pass
}

// The types of ICMP messages.
const (
	echoReply4, echo4 = 0, 8
	echo6, echoReply6 = 128, 129
)

func (p *packet) echo() bool { return p.echoRequest() || p.echoReply() }

func (p *packet) echoRequest() bool {
	return p.proto == icmp4 && p.icmpType == echo4 || p.proto == icmp6 && p.icmpType == echo6
}

func (p *packet) echoReply() bool {
	return p.proto == icmp4 && p.icmpType == echoReply4 || p.proto == icmp6 && p.icmpType == echoReply6
}

// icmpError reports whether it tells of what became of another packet.
func (p *packet) icmpError() bool {
	switch p.proto {
	case icmp4:
		return p.icmpType == 3 || p.icmpType == 11 || p.icmpType == 12
	case icmp6:
		return p.icmpType >= 1 && p.icmpType <= 4
	}
	return false
}

// opens reports whether a packet is one that begins a flow of its own: without
// it an answer could make its own permission.
func (p *packet) opens() bool {
	switch p.proto {
	case tcp:
		return p.flags&(syn|ack|rst) == syn
	case icmp4, icmp6:
		return p.echoRequest()
	}
	return true
}

// key names a flow, the same for both directions: remote is the side in the
// tunnel.
type key struct {
	remote, local addr
	ports         uint32 // the remote one first
	proto         uint32 // and ownEcho
}

// ownEcho marks the echoes that this side began: both sides may use the same
// identifier at once.
const ownEcho = 1 << 8

func (p *packet) key(out bool) key {
	k := key{remote: p.src, local: p.dst, ports: uint32(p.sport)<<16 | uint32(p.dport), proto: uint32(p.proto)}
	if out {
		k.remote, k.local, k.ports = p.dst, p.src, uint32(p.dport)<<16|uint32(p.sport)
	}
	if p.proto == icmp4 || p.proto == icmp6 {
		if p.echoRequest() == out {
			k.proto |= ownEcho
		}
	}
	return k
}

func (k key) protocol() uint8    { return uint8(k.proto) }
func (k key) remotePort() uint16 { return uint16(k.ports >> 16) }
func (k key) localPort() uint16  { return uint16(k.ports) }
