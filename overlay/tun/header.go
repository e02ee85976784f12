package tun

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

	// mostBytes is the longest IP packet.
	mostBytes = 65535
)

// offload is struct virtio_net_hdr, which lies before every packet that is
// exchanged with the kernel. Its numbers are in the machine's own order.
type offload struct {
	needsSum bool   // the checksum at sumStart+sumOffset is of the pseudo header only
	kind     uint8  // a train of what: gso...
	header   uint16 // bytes of all headers; a hint
	segment  uint16 // bytes of payload per packet of the train
	sumStart uint16 // where the transport header begins
	sumAt    uint16 // of the checksum in it
}

const (
	offloadSize = 10

	gsoNone  = 0
	gsoTCPv4 = 1
	gsoTCPv6 = 4
	gsoUDP   = 5
	gsoECN   = 0x80 // with the kinds of TCP

	flagNeedsSum = 1
)

func parseOffload(b []byte) offload {
	return offload{
		needsSum: b[0]&flagNeedsSum != 0,
		kind:     b[1],
		header:   binary.NativeEndian.Uint16(b[2:]),
		segment:  binary.NativeEndian.Uint16(b[4:]),
		sumStart: binary.NativeEndian.Uint16(b[6:]),
		sumAt:    binary.NativeEndian.Uint16(b[8:]),
	}
}

func (o *offload) put(b *[offloadSize]byte) {
	b[0] = 0
	if o.needsSum {
		b[0] = flagNeedsSum
	}
	b[1] = o.kind
	binary.NativeEndian.PutUint16(b[2:], o.header)
	binary.NativeEndian.PutUint16(b[4:], o.segment)
	binary.NativeEndian.PutUint16(b[6:], o.sumStart)
	binary.NativeEndian.PutUint16(b[8:], o.sumAt)
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
