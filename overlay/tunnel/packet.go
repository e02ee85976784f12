package tunnel

import (
	"encoding/binary"
	"net/netip"
)

// What the tunnel must know of IPv4 (RFC 791), IPv6 (RFC 8200), TCP (RFC 9293)
// and ICMP (RFC 792, RFC 4443).
const (
	header4 = 20 // without options
	header6 = 40
	least6  = 1280 // every path of IPv6 carries it

	protoICMP   = 1
	protoTCP    = 6
	protoICMPv6 = 58

	flagSYN   = 1 << 1 // in byte 13 of TCP's header
	headerTCP = 20     // without options

	dontFragment   = 0x4000 // in bytes 6 and 7 of IPv4's header
	moreFragments  = 0x2000
	fragmentOffset = 0x1fff // in units of 8 bytes
)

// addresses returns a packet's source and destination; ok is false for what is
// no IP packet.
func addresses(p []byte) (src, dst netip.Addr, ok bool) {
	switch {
	case len(p) >= header4 && p[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(p[12:])), netip.AddrFrom4([4]byte(p[16:])), true
	case len(p) >= header6 && p[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(p[8:])), netip.AddrFrom16([16]byte(p[24:])), true
	}
	return src, dst, false
}

// payload returns where a packet's transport header begins and of which protocol
// it is; ok is false where there is none: in later fragments, behind extension
// headers, in what is malformed.
func payload(p []byte) (start int, proto byte, ok bool) {
	switch {
	case len(p) >= header4 && p[0]>>4 == 4:
		start = int(p[0]&15) * 4
		if start < header4 || start > len(p) || binary.BigEndian.Uint16(p[6:])&fragmentOffset != 0 {
			return 0, 0, false
		}
		return start, p[9], true
	case len(p) >= header6 && p[0]>>4 == 6:
		return header6, p[6], true
	}
	return 0, 0, false
}

// isSYN reports whether a packet opens or accepts a TCP connection.
func isSYN(p []byte) bool {
	start, proto, ok := payload(p)
	return ok && proto == protoTCP && len(p) >= start+headerTCP && p[start+13]&flagSYN != 0
}

// clampMSS lowers the segment size that a SYN names, so that segments of it fit
// packets of mtu bytes. It reports whether anything was changed.
func clampMSS(p []byte, mtu int) bool {
	start, _, _ := payload(p)
	most := mtu - headerTCP - header4
	if p[0]>>4 == 6 {
		most = mtu - headerTCP - header6
	}
	tcp := p[start:]
	end := min(int(tcp[12]>>4)*4, len(tcp))
	for at := headerTCP; at < end; {
		switch kind := tcp[at]; kind {
		case 0: // the end
			return false
		case 1: // padding
			at++
			continue
		}
		if at+1 >= end || tcp[at+1] < 2 || at+int(tcp[at+1]) > end {
			return false
		}
		if tcp[at] == 2 && tcp[at+1] == 4 { // the segment size
			mss := binary.BigEndian.Uint16(tcp[at+2:])
			if int(mss) <= most {
				return false
			}
			binary.BigEndian.PutUint16(tcp[at+2:], uint16(most))
			was, is := mss, uint16(most)
			if at%2 == 1 { // it lies across two words of the sum
				was, is = was<<8|was>>8, is<<8|is>>8
			}
			sum := binary.BigEndian.Uint16(tcp[16:])
			binary.BigEndian.PutUint16(tcp[16:], updateSum(sum, was, is))
			return true
		}
		at += int(tcp[at+1])
	}
	return false
}

// updateSum corrects a checksum for a word that was changed (RFC 1624).
func updateSum(sum, was, is uint16) uint16 {
	return ^fold(uint32(^sum) + uint32(^was) + uint32(is))
}

func fold(sum uint32) uint16 {
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// add adds bytes to an Internet checksum (RFC 1071).
func add(sum uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

// remedy is what becomes of a packet that is too long.
type remedy int

const (
	remedyNone   remedy = iota // it goes as it is
	remedyTell                 // so does it, and its sender is told
	remedyDivide               // it goes in pieces
)

// treat says what to do with a packet that goes to a peer whose way carries mtu
// bytes.
func treat(p []byte, mtu int) remedy {
	if len(p) <= mtu {
		return remedyNone
	}
	if p[0]>>4 == 6 {
		if len(p) <= least6 || !tellable(p) {
			return remedyNone
		}
		return remedyTell
	}
	if binary.BigEndian.Uint16(p[6:])&dontFragment == 0 {
		if p[0]&15 != header4/4 || int(binary.BigEndian.Uint16(p[2:])) != len(p) {
			return remedyNone // with options, or malformed
		}
		return remedyDivide
	}
	if !tellable(p) {
		return remedyNone
	}
	return remedyTell
}

// tellable reports whether an ICMP error may answer a packet (RFC 1122, section
// 3.2.2; RFC 4443, section 2.4): not another ICMP error, nor what comes from or
// goes to many.
func tellable(p []byte) bool {
	src, dst, ok := addresses(p)
	start, proto, first := payload(p)
	if !ok || !first || src.IsUnspecified() || src.IsMulticast() || dst.IsMulticast() || dst == broadcast {
		return false
	}
	if len(p) == start {
		return proto != protoICMP && proto != protoICMPv6
	}
	switch kind := p[start]; proto {
	case protoICMP:
		return kind == 8 || kind == 0 || kind == 13 || kind == 14 // echoes and timestamps
	case protoICMPv6:
		return kind >= 128 // informational
	}
	return true
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

const (
	// quote4 and quote6 bound how much of a packet an ICMP error gives back: with
	// it, it is no longer than every host takes (RFC 1812, section 4.3.2.3; RFC
	// 4443, section 2.4).
	quote4 = 576 - header4 - 8
	quote6 = least6 - header6 - 8
	// hops is the usual life of a packet.
	hops = 64
)

// appendTooBig appends the ICMP error that tells a packet's sender how long packets may be. It
// comes from where the packet was going: that address is behind the tunnel, so
// no host thinks its own was forged, and NAT knows the connection by it.
func appendTooBig(b, p []byte, mtu int) []byte {
	start := len(b)
	if p[0]>>4 == 6 {
		mtu = max(mtu, least6)
		quote := p[:min(len(p), quote6)]
		b = append(b, 0x60, 0, 0, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(8+len(quote)))
		b = append(b, protoICMPv6, hops)
		b = append(b, p[24:40]...)
		b = append(b, p[8:24]...)
		b = append(b, 2, 0, 0, 0) // packet too big
		b = binary.BigEndian.AppendUint32(b, uint32(mtu))
		b = append(b, quote...)
		message := b[start+header6:]
		sum := add(add(uint32(len(message))+protoICMPv6, b[start+8:start+header6]), message)
		binary.BigEndian.PutUint16(message[2:], ^fold(sum))
		return b
	}
	return appendError4(b, p, [4]byte(p[16:20]), 3, 4, uint16(mtu)) // destination unreachable, fragmentation needed
}

// appendExpired appends the ICMP error that tells the sender of an IPv4 packet
// that its life ended here.
func appendExpired(b, p []byte, self netip.Addr) []byte {
	return appendError4(b, p, self.As4(), 11, 0, 0) // time exceeded in transit
}

// appendError4 appends an ICMP error about an IPv4 packet; word is the last of
// its header.
func appendError4(b, p []byte, from [4]byte, kind, code byte, word uint16) []byte {
	start := len(b)
	quote := p[:min(len(p), quote4)]
	b = append(b, 0x45, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(header4+8+len(quote)))
	b = append(b, 0, 0, 0, 0, hops, protoICMP, 0, 0)
	b = append(b, from[:]...)
	b = append(b, p[12:16]...)
	binary.BigEndian.PutUint16(b[start+10:], ^fold(add(0, b[start:start+header4])))
	b = append(b, kind, code, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, word)
	b = append(b, quote...)
	message := b[start+header4:]
	binary.BigEndian.PutUint16(message[2:], ^fold(add(0, message)))
	return b
}

// divide makes fragments of an IPv4 packet without options that is longer than
// mtu: the first stays where it lies, the others go to bufs, each behind offset
// bytes. It returns how many those are; 0, when there is no room, leaves the
// packet as it is.
func divide(p []byte, mtu int, bufs [][]byte, sizes []int, offset int) (others int) {
	step := (mtu - header4) &^ 7
	if step <= 0 {
		return 0
	}
	body := p[header4:]
	others = (len(body)+step-1)/step - 1
	if others > len(bufs) {
		return 0
	}
	flags := binary.BigEndian.Uint16(p[6:])
	for i := range others {
		at := (i + 1) * step
		piece := body[at:min(at+step, len(body))]
		b := bufs[i][offset : offset+header4+len(piece)]
		copy(b, p[:header4])
		copy(b[header4:], piece)
		f := flags + uint16(at/8)
		if i < others-1 {
			f |= moreFragments
		}
		finish(b, f)
		sizes[i] = len(b)
	}
	if others > 0 {
		finish(p[:header4+step], flags|moreFragments)
	}
	return others
}

// finish writes a fragment's length, flags and checksum.
func finish(p []byte, flags uint16) {
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	binary.BigEndian.PutUint16(p[6:], flags)
	binary.BigEndian.PutUint16(p[10:], 0)
	binary.BigEndian.PutUint16(p[10:], ^fold(add(0, p[:header4])))
}
