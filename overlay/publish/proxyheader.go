package publish

import (
	"encoding/binary"
	"net/netip"
)

// proxySignature begins a header of the PROXY protocol, version 2.
const proxySignature = "\r\n\r\n\x00\r\nQUIT\n"

// AppendProxyHeader appends the header of the PROXY protocol, version 2, that
// tells of a TCP connection from one address to another:
//
//	signature 12 | 0x21 version 2, PROXY | 0x11 TCP over IPv4, 0x21 over IPv6 |
//	length 2 | source | destination | source port 2 | destination port 2
//
// in network order. Of addresses that are not of one family it says that they are
// not known (LOCAL).
func AppendProxyHeader(b []byte, from, to netip.AddrPort) []byte {
	b = append(b, proxySignature...)
	src, dst := from.Addr().Unmap(), to.Addr().Unmap()
	if !src.IsValid() || !dst.IsValid() || src.Is4() != dst.Is4() {
		return append(b, 0x20, 0x00, 0, 0)
	}
	kind, size := byte(0x21), 2*16+4
	if src.Is4() {
		kind, size = 0x11, 2*4+4
	}
	b = append(b, 0x21, kind)
	b = binary.BigEndian.AppendUint16(b, uint16(size))
	b = append(b, src.AsSlice()...)
	b = append(b, dst.AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, from.Port())
	return binary.BigEndian.AppendUint16(b, to.Port())
}
