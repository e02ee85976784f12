package netstack

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"syscall"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// quoted is how much of a packet an error quotes (RFC 792): the IP header and
// eight bytes, which name a connection.
const quoted = header.IPv4MinimumSize + 8

// quoteTCP is the beginning of a SYN, as its sender knows it.
func quoteTCP(k flowKey, seq uint32) []byte {
	b := quote(k, header.TCPMinimumSize)
	binary.BigEndian.PutUint32(b[24:], seq)
	return b
}

// quoteUDP is the beginning of a datagram.
func quoteUDP(k flowKey) []byte {
	b := quote(k, header.UDPMinimumSize)
	binary.BigEndian.PutUint16(b[24:], header.UDPMinimumSize)
	return b
}

// quoteEcho is the beginning of an echo request.
func quoteEcho(k flowKey, seq uint16) []byte {
	b := quote(k, header.ICMPv4MinimumSize)
	h := header.ICMPv4(b[header.IPv4MinimumSize:])
	clear(h)
	h.SetType(header.ICMPv4Echo)
	h.SetIdent(k.src.Port())
	h.SetSequence(seq)
	h.SetChecksum(^checksum.Checksum(h, 0))
	return b
}

func quote(k flowKey, transport int) []byte {
	b := make([]byte, quoted)
	header.IPv4(b).Encode(&header.IPv4Fields{
		TotalLength: uint16(header.IPv4MinimumSize + transport), TTL: ipv4.DefaultTTL, Protocol: k.proto,
		SrcAddr: tcpip.AddrFrom4(k.src.Addr().As4()), DstAddr: tcpip.AddrFrom4(k.dst.Addr().As4()),
	})
	h := header.IPv4(b)
	h.SetChecksum(^h.CalculateChecksum())
	binary.BigEndian.PutUint16(b[20:], k.src.Port())
	binary.BigEndian.PutUint16(b[22:], k.dst.Port())
	return b
}

// tell passes on to the sender of a flow, whose packet is quoted, what the host was
// told of the way there, and reports whether that was anything.
func (s *Stack) tell(k flowKey, err error, quote []byte) bool {
	switch {
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.EHOSTDOWN):
		s.count.unreachable.Add(1)
		s.unreachable(s.own(), k.src.Addr(), header.ICMPv4HostUnreachable, quote)
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EADDRNOTAVAIL):
		s.count.unreachable.Add(1)
		s.unreachable(s.own(), k.src.Addr(), header.ICMPv4NetUnreachable, quote)
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		s.count.forbidden.Add(1)
		s.unreachable(s.own(), k.src.Addr(), header.ICMPv4AdminProhibited, quote)
	default:
		return false
	}
	return true
}

// unreachable tells to why a packet of his went nowhere.
func (s *Stack) unreachable(from, to netip.Addr, code header.ICMPv4Code, quote []byte) {
	s.complain(from, to, header.ICMPv4DstUnreachable, code, quote)
}

// complain sends an ICMP error, unless there were too many of late.
func (s *Stack) complain(from, to netip.Addr, kind header.ICMPv4Type, code header.ICMPv4Code, quote []byte) {
	if !s.stack.AllowICMPMessage() {
		return
	}
	b := make([]byte, header.ICMPv4MinimumSize+len(quote))
	h := header.ICMPv4(b)
	h.SetType(kind)
	h.SetCode(code)
	copy(b[header.ICMPv4MinimumSize:], quote)
	s.sendICMP(from, to, b)
}

// sendICMP sends a message, of which it makes the checksum, from an address of
// this node or of whom it answers for.
func (s *Stack) sendICMP(from, to netip.Addr, b []byte) {
	if !from.Is4() || !to.Is4() {
		return
	}
	h := header.ICMPv4(b)
	h.SetChecksum(0)
	h.SetChecksum(^checksum.Checksum(b, 0))
	r, err := s.stack.FindRoute(nic, tcpip.AddrFrom4(from.As4()), tcpip.AddrFrom4(to.As4()), ipv4.ProtocolNumber, false)
	if err != nil {
		return // the address is gone: nobody to speak for
	}
	defer r.Release()
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: int(r.MaxHeaderLength()) + header.ICMPv4MinimumSize,
		Payload:            buffer.MakeWithData(b[header.ICMPv4MinimumSize:]),
	})
	defer p.DecRef()
	p.TransportProtocolNumber = header.ICMPv4ProtocolNumber
	copy(p.TransportHeader().Push(header.ICMPv4MinimumSize), b)
	// An error means that it is lost, as packets are.
	_ = r.WritePacket(stack.NetworkHeaderParams{Protocol: header.ICMPv4ProtocolNumber, TTL: ipv4.DefaultTTL}, p)
}

// expired reports whether a packet for somebody behind us has come to the end of
// its way here, and tells its sender so: who traces a route sees this node.
func (s *Stack) expired(p []byte) bool {
	if len(p) < header.IPv4MinimumSize || p[8] > 1 {
		return false
	}
	h, st := header.IPv4(p), s.state.Load()
	dst := netip.AddrFrom4(h.DestinationAddress().As4())
	if len(st.Serves) == 0 || slices.Contains(st.Addrs, dst) {
		return false
	}
	// No errors about errors, nor about what is not the beginning of a packet.
	if frag := h.FragmentOffset(); frag == 0 && len(p) >= quoted && (h.Protocol() != protoICMP || p[20] == byte(header.ICMPv4Echo)) {
		s.complain(s.own(), netip.AddrFrom4(h.SourceAddress().As4()), header.ICMPv4TimeExceeded, header.ICMPv4TTLExceeded, p[:quoted])
	}
	return true
}
