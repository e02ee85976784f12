package train

import "encoding/binary"

const (
	protoTCP = 6
	protoUDP = 17

	tcpFIN = 0x01
	tcpPSH = 0x08
	tcpACK = 0x10
	tcpCWR = 0x80

	tcpSumAt = 16 // in the TCP header
	udpSumAt = 6  // in the UDP header
	udpSize  = 8
	fixed6   = 40 // of the IPv6 header without extensions

	// MostBytes is the longest IP packet.
	MostBytes = 65535
)

// Offload is struct virtio_net_hdr, which lies before every packet that is
// exchanged with the kernel's TUN. Its numbers are in the machine's own order.
type Offload struct {
	NeedsSum bool   // the checksum at sumStart+sumOffset is of the pseudo header only
	Kind     uint8  // a train of what: None, TCP4 and the rest
	Header   uint16 // bytes of all headers; a hint
	Segment  uint16 // bytes of payload per packet of the train
	SumStart uint16 // where the transport header begins
	SumAt    uint16 // of the checksum in it
}

// HeaderSize is the length of an Offload in memory.
const HeaderSize = 10

// The kinds of an Offload.
const (
	None = 0 // the packet is whole
	TCP4 = 1
	TCP6 = 4
	UDP  = 5
	ecn  = 0x80 // with the kinds of TCP

	flagNeedsSum = 1
)

func parseOffload(b []byte) Offload {
	return Offload{
		NeedsSum: b[0]&flagNeedsSum != 0,
		Kind:     b[1],
		Header:   binary.NativeEndian.Uint16(b[2:]),
		Segment:  binary.NativeEndian.Uint16(b[4:]),
		SumStart: binary.NativeEndian.Uint16(b[6:]),
		SumAt:    binary.NativeEndian.Uint16(b[8:]),
	}
}

// Put writes it to b.
func (o *Offload) Put(b *[HeaderSize]byte) {
	b[0] = 0
	if o.NeedsSum {
		b[0] = flagNeedsSum
	}
	b[1] = o.Kind
	binary.NativeEndian.PutUint16(b[2:], o.Header)
	binary.NativeEndian.PutUint16(b[4:], o.Segment)
	binary.NativeEndian.PutUint16(b[6:], o.SumStart)
	binary.NativeEndian.PutUint16(b[8:], o.SumAt)
}

// addresses returns both addresses of an IP header, back to back.
func addresses(ip []byte) []byte {
	if ip[0]>>4 == 4 {
		return ip[12:20]
	}
	return ip[8:40]
}

// pseudo is the sum of the pseudo header for a transport packet of n bytes.
func pseudo(ip []byte, proto uint8, n int) uint64 {
	return sum(addresses(ip), word(uint16(proto))+word(uint16(n)))
}

// setLength makes a header that of a packet of n bytes, checksum included.
// ipHeader is how long it is, with options or extension headers.
func setLength(p []byte, ipHeader, n int) {
	if p[0]>>4 == 6 {
		binary.BigEndian.PutUint16(p[4:], uint16(n-fixed6)) // extension headers count as payload
		return
	}
	binary.BigEndian.PutUint16(p[2:], uint16(n))
	p[10], p[11] = 0, 0
	putSum(p[10:], ^fold(sum(p[:ipHeader], 0)))
}

// Sound reports whether a packet's checksums are right, as far as it has any
// that can be told from the packet alone: those of IPv4 and, where it is no
// fragment, of TCP and UDP.
func Sound(p []byte) bool {
	if len(p) < 20 || p[0]>>4 == 6 && len(p) < fixed6 {
		return false
	}
	ipHeader, proto, total := fixed6, p[6], fixed6+int(binary.BigEndian.Uint16(p[4:]))
	if p[0]>>4 == 4 {
		ipHeader, proto, total = int(p[0]&0xf)*4, p[9], int(binary.BigEndian.Uint16(p[2:]))
		if ipHeader < 20 || total < ipHeader || total > len(p) || fold(sum(p[:ipHeader], 0)) != 0xffff {
			return false
		}
		if p[6]&0x3f != 0 || p[7] != 0 {
			return true // a fragment
		}
	}
	if total > len(p) {
		return false
	}
	transport := p[ipHeader:total]
	switch proto {
	case protoTCP:
	case protoUDP:
		if len(transport) >= udpSize && transport[6]|transport[7] == 0 {
			return true // it has none
		}
	default:
		return true
	}
	return fold(sum(transport, pseudo(p, proto, len(transport)))) == 0xffff
}
