package train

import (
	"encoding/binary"
	"math/bits"
)

// The Internet checksum (RFC 1071) does not mind the byte order in which it is
// summed, only that in which it is stored: sums here are of words as they lie in
// memory, and are stored the same way. What is summed apart from the start must
// begin at an even offset.

// sum adds b to acc. It takes 64 bytes a turn: the carry stays in its flag then.
func sum(b []byte, acc uint64) uint64 {
	for len(b) >= 64 {
		var carry uint64
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b), 0)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b[8:]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b[16:]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b[24:]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b[32:]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b[40:]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b[48:]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b[56:]), carry)
		acc += carry
		b = b[64:]
	}
	return sumTail(b, acc)
}

// copySum copies src to dst, which has room, and adds it to acc: in one go, for
// the bytes of a train are read from memory only once then.
func copySum(dst, src []byte, acc uint64) uint64 {
	dst = dst[:len(src)]
	for len(src) >= 64 && len(dst) >= 64 {
		var carry uint64
		a, b := binary.NativeEndian.Uint64(src), binary.NativeEndian.Uint64(src[8:])
		c, d := binary.NativeEndian.Uint64(src[16:]), binary.NativeEndian.Uint64(src[24:])
		acc, carry = bits.Add64(acc, a, 0)
		acc, carry = bits.Add64(acc, b, carry)
		acc, carry = bits.Add64(acc, c, carry)
		acc, carry = bits.Add64(acc, d, carry)
		e, f := binary.NativeEndian.Uint64(src[32:]), binary.NativeEndian.Uint64(src[40:])
		g, h := binary.NativeEndian.Uint64(src[48:]), binary.NativeEndian.Uint64(src[56:])
		acc, carry = bits.Add64(acc, e, carry)
		acc, carry = bits.Add64(acc, f, carry)
		acc, carry = bits.Add64(acc, g, carry)
		acc, carry = bits.Add64(acc, h, carry)
		acc += carry
		binary.NativeEndian.PutUint64(dst, a)
		binary.NativeEndian.PutUint64(dst[8:], b)
		binary.NativeEndian.PutUint64(dst[16:], c)
		binary.NativeEndian.PutUint64(dst[24:], d)
		binary.NativeEndian.PutUint64(dst[32:], e)
		binary.NativeEndian.PutUint64(dst[40:], f)
		binary.NativeEndian.PutUint64(dst[48:], g)
		binary.NativeEndian.PutUint64(dst[56:], h)
		src, dst = src[64:], dst[64:]
	}
	copy(dst, src)
	return sumTail(src, acc)
}

// sumTail adds fewer than 64 bytes.
func sumTail(b []byte, acc uint64) uint64 {
	for len(b) >= 8 {
		acc = add(acc, binary.NativeEndian.Uint64(b))
		b = b[8:]
	}
	if len(b) == 0 {
		return acc
	}
	var last [8]byte // padded with zeros at its end, as an odd packet is
	copy(last[:], b)
	return add(acc, binary.NativeEndian.Uint64(last[:]))
}

// add adds with the carry going round.
func add(acc, v uint64) uint64 {
	acc, carry := bits.Add64(acc, v, 0)
	return acc + carry
}

// fold makes a sum one of 16 bits.
func fold(acc uint64) uint16 {
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>16 + acc&0xffff
	acc = acc>>16 + acc&0xffff
	acc = acc>>16 + acc&0xffff
	return uint16(acc)
}

// final makes a sum a transport checksum. Of its two zeros it is the one that
// does not mean that there is no checksum (RFC 768).
func final(acc uint64) uint16 {
	if v := ^fold(acc); v != 0 {
		return v
	}
	return 0xffff
}

// word is a 16-bit number of the network's order as it lies in memory.
func word(v uint16) uint64 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return uint64(binary.NativeEndian.Uint16(b[:]))
}

// putSum stores a folded sum or its complement.
func putSum(b []byte, v uint16) { binary.NativeEndian.PutUint16(b, v) }
