package tunnel

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

var (
	here4, there4 = netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.1.0.2")
	here6, there6 = netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
)

// packet makes an IP packet of size bytes with a transport header in front of
// random bytes, and right checksums.
func packet(r *rand.Rand, src, dst netip.Addr, proto byte, transport []byte, size int, df bool) []byte {
	var p []byte
	if src.Is4() {
		flags := uint16(0)
		if df {
			flags = dontFragment
		}
		p = append([]byte{0x45, 0, 0, 0, 0x12, 0x34, 0, 0, 64, proto, 0, 0}, src.AsSlice()...)
		p = append(p, dst.AsSlice()...)
		p = append(p, transport...)
		for len(p) < size {
			p = append(p, byte(r.Uint32()))
		}
		finish4(p, flags)
	} else {
		p = append([]byte{0x60, 0, 0, 0, 0, 0, proto, 64}, src.AsSlice()...)
		p = append(p, dst.AsSlice()...)
		p = append(p, transport...)
		for len(p) < size {
			p = append(p, byte(r.Uint32()))
		}
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-header6))
	}
	if start, _, _ := payload(p); proto == protoTCP {
		binary.BigEndian.PutUint16(p[start+16:], 0)
		binary.BigEndian.PutUint16(p[start+16:], ^sumOf(p))
	}
	return p
}

func finish4(p []byte, flags uint16) {
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	binary.BigEndian.PutUint16(p[6:], flags)
	binary.BigEndian.PutUint16(p[10:], 0)
	binary.BigEndian.PutUint16(p[10:], ^plainSum(p[:header4]))
}

// plainSum is the Internet checksum by the book, before it is inverted.
func plainSum(b []byte) uint16 {
	sum := uint32(0)
	for i, c := range b {
		if i%2 == 0 {
			sum += uint32(c) << 8
		} else {
			sum += uint32(c)
		}
		if sum > 0xffff {
			sum -= 0xffff
		}
	}
	return uint16(sum)
}

// sumOf is that of a transport message with its pseudo header: 0xffff when the
// checksum in it is right.
func sumOf(p []byte) uint16 {
	start, proto, _ := payload(p)
	src, dst, _ := addresses(p)
	b := append(src.AsSlice(), dst.AsSlice()...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(p)-start))
	b = append(b, 0, 0, 0, proto)
	return plainSum(append(b, p[start:]...))
}

// tcp makes a TCP header with options.
func tcp(flags byte, options ...byte) []byte {
	for len(options)%4 != 0 {
		options = append(options, 1)
	}
	h := []byte{0x12, 0x34, 0, 80, 1, 2, 3, 4, 0, 0, 0, 0, byte(5+len(options)/4) << 4, flags, 0xff, 0xff, 0, 0, 0, 0}
	return append(h, options...)
}

func TestClampMSS(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, c := range []struct {
		name    string
		flags   byte
		options []byte
		want    []byte // options after, with 1192 = 4*256 + 168; nil: the same
	}{
		{"alone", flagSYN, []byte{2, 4, 5, 180}, []byte{2, 4, 4, 168}},
		{"of a usual SYN", flagSYN, []byte{2, 4, 5, 180, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7}, []byte{2, 4, 4, 168, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7}},
		{"across two words", flagSYN | 16, []byte{1, 2, 4, 5, 180, 1, 1, 1}, []byte{1, 2, 4, 4, 168, 1, 1, 1}},
		{"small already", flagSYN, []byte{2, 4, 2, 0}, nil},
		{"no SYN", 16, []byte{2, 4, 5, 180}, nil},
		{"none", flagSYN, []byte{4, 2, 1, 1}, nil},
		{"behind the end", flagSYN, []byte{0, 2, 4, 5, 180, 0, 0, 0}, nil},
		{"too long", flagSYN, []byte{2, 40, 5, 180}, nil},
		{"without length", flagSYN, []byte{1, 1, 1, 2}, nil},
		{"length zero", flagSYN, []byte{8, 0, 2, 4}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, pair := range [][2]netip.Addr{{here4, there4}, {here6, there6}} {
				mtu := 1232
				if pair[0].Is6() {
					mtu += 20
				}
				p := packet(r, pair[0], pair[1], protoTCP, tcp(c.flags, c.options...), 0, true)
				before := bytes.Clone(p)
				if got := isSYN(p); got != (c.flags&flagSYN != 0) {
					t.Fatalf("isSYN %v", got)
				}
				changed := isSYN(p) && clampMSS(p, mtu)
				if changed != (c.want != nil) {
					t.Errorf("changed %v", changed)
				}
				if c.want == nil {
					if !bytes.Equal(p, before) {
						t.Error("the packet is another one")
					}
					continue
				}
				start, _, _ := payload(p)
				got := p[start+headerTCP:]
				want := append(bytes.Clone(c.want), got[len(c.want):]...)
				if !bytes.Equal(got, want) {
					t.Errorf("options % x, want % x", got, want)
				}
				if sumOf(p) != 0xffff {
					t.Errorf("the checksum is wrong: %04x", sumOf(p))
				}
			}
		})
	}
}

// TestTooBig lets another implementation read what is sent to a sender.
func TestTooBig(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 1))
	p := packet(r, here4, there4, protoTCP, tcp(16), 1400, true)
	b := appendTooBig(nil, p, 1232)
	h, err := ipv4.ParseHeader(b)
	if err != nil || h.Src.String() != there4.String() || h.Dst.String() != here4.String() || h.TotalLen != len(b) || len(b) > 576 || plainSum(b[:header4]) != 0xffff {
		t.Fatalf("%v %v", h, err)
	}
	m, err := icmp.ParseMessage(protoICMP, b[header4:])
	if err != nil || m.Type != ipv4.ICMPTypeDestinationUnreachable || m.Code != 4 || plainSum(b[header4:]) != 0xffff {
		t.Fatalf("%+v %v", m, err)
	}
	if body := m.Body.(*icmp.DstUnreach); !bytes.HasPrefix(p, body.Data) || len(body.Data) < header4+8 {
		t.Errorf("it does not quote the packet: % x", body.Data[:40])
	}
	if mtu := binary.BigEndian.Uint16(b[header4+6:]); mtu != 1232 {
		t.Errorf("mtu %d", mtu)
	}

	p = packet(r, here6, there6, protoTCP, tcp(16), 1400, true)
	b = appendTooBig(nil, p, 1232)
	if src, dst, _ := addresses(b); src != there6 || dst != here6 || len(b) > least6 || sumOf(b) != 0xffff {
		t.Fatalf("%v to %v, %d bytes, sum %04x", src, dst, len(b), sumOf(b))
	}
	m, err = icmp.ParseMessage(protoICMPv6, b[header6:])
	if err != nil || m.Type != ipv6.ICMPTypePacketTooBig {
		t.Fatalf("%+v %v", m, err)
	}
	if body := m.Body.(*icmp.PacketTooBig); body.MTU != least6 || !bytes.HasPrefix(p, body.Data) {
		t.Errorf("mtu %d: IPv6 has none below 1280", body.MTU)
	}
}

func TestTreat(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 1))
	icmpError := []byte{3, 4, 0, 0, 0, 0, 5, 0}
	broken := packet(r, here4, there4, 17, make([]byte, 8), 1400, false)
	broken[3]-- // it is longer than it says
	for _, c := range []struct {
		name string
		p    []byte
		want remedy
	}{
		{"fits", packet(r, here4, there4, 17, make([]byte, 8), 1232, true), remedyNone},
		{"DF", packet(r, here4, there4, 17, make([]byte, 8), 1233, true), remedyTell},
		{"no DF", packet(r, here4, there4, 17, make([]byte, 8), 1233, false), remedyDivide},
		{"an ICMP error", packet(r, here4, there4, protoICMP, icmpError, 1400, true), remedyNone},
		{"an echo", packet(r, here4, there4, protoICMP, []byte{8, 0, 0, 0, 0, 0, 0, 0}, 1400, true), remedyTell},
		{"to many", packet(r, here4, netip.MustParseAddr("224.0.0.1"), 17, make([]byte, 8), 1400, true), remedyNone},
		{"to all", packet(r, here4, broadcast, 17, make([]byte, 8), 1400, true), remedyNone},
		{"from nobody", packet(r, netip.IPv4Unspecified(), there4, 17, make([]byte, 8), 1400, true), remedyNone},
		{"a length that is not its own", broken, remedyNone},
		{"IPv6", packet(r, here6, there6, 17, make([]byte, 8), 1300, false), remedyTell},
		{"IPv6, of the least length", packet(r, here6, there6, 17, make([]byte, 8), 1280, false), remedyNone},
		{"an ICMPv6 error", packet(r, here6, there6, protoICMPv6, []byte{2, 0, 0, 0, 0, 0, 5, 0}, 1400, false), remedyNone},
	} {
		if got := treat(c.p, 1232); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// TestDivide puts the fragments together again, also those of a fragment.
func TestDivide(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 1))
	for range 2000 {
		mtu := 512 + r.IntN(900)
		size := mtu + 1 + r.IntN(3000)
		p := packet(r, here4, there4, 17, make([]byte, 8), size, false)
		flags := uint16(0)
		if r.IntN(2) == 0 { // from the middle of a larger one
			flags = moreFragments | uint16(r.IntN(100))
		}
		finish4(p, flags)
		whole := bytes.Clone(p)
		const offset = 16
		bufs, sizes := make([][]byte, 8), make([]int, 8)
		for i := range bufs {
			bufs[i] = make([]byte, 1<<16)
		}
		n := divide(p, mtu, bufs, sizes, offset)
		if n == 0 {
			t.Fatalf("%d bytes in %d: nothing", size, mtu)
		}
		pieces := [][]byte{p[:header4+(mtu-header4)&^7]}
		for i := range n {
			pieces = append(pieces, bufs[i][offset:offset+sizes[i]])
		}
		var body []byte
		for i, f := range pieces {
			at := int(binary.BigEndian.Uint16(f[6:])&fragmentOffset)*8 - int(flags&fragmentOffset)*8
			last := i == len(pieces)-1
			more := binary.BigEndian.Uint16(f[6:])&moreFragments != 0
			if len(f) > mtu || at != len(body) || int(binary.BigEndian.Uint16(f[2:])) != len(f) || plainSum(f[:header4]) != 0xffff ||
				more != (!last || flags&moreFragments != 0) || !bytes.Equal(f[12:20], whole[12:20]) || !bytes.Equal(f[4:6], whole[4:6]) {
				t.Fatalf("fragment %d of %d bytes at %d is wrong: % x", i, len(f), at, f[:header4])
			}
			body = append(body, f[header4:]...)
		}
		if !bytes.Equal(body, whole[header4:]) {
			t.Fatal("the pieces are not the packet")
		}
		p = bytes.Clone(whole)
		if divide(p, mtu, bufs[:0], sizes[:0], offset) != 0 || !bytes.Equal(p, whole) {
			t.Fatal("without room the packet was changed")
		}
	}
}

// FuzzPacket feeds anything to what looks into packets: nothing may fail, nothing
// grow, and a right checksum stays right.
func FuzzPacket(f *testing.F) {
	r := rand.New(rand.NewPCG(5, 1))
	f.Add(packet(r, here4, there4, protoTCP, tcp(flagSYN, 1, 2, 4, 5, 180), 0, true), 1232)
	f.Add(packet(r, here6, there6, protoTCP, tcp(flagSYN, 2, 4, 5, 180), 0, true), 1280)
	f.Add(packet(r, here4, there4, 17, make([]byte, 8), 1400, false), 576)
	f.Add([]byte{0x4f}, 600)
	f.Fuzz(func(t *testing.T, p []byte, mtu int) {
		if mtu < 512 || mtu > 1500 || len(p) > 1<<14 {
			return
		}
		if isSYN(p) {
			right := sumOf(p)
			before := bytes.Clone(p)
			clampMSS(p, mtu)
			// The two forms of zero are the same sum.
			if now := sumOf(p); now != right && now%0xffff != right%0xffff {
				t.Errorf("the sum was %04x, is %04x: % x to % x", right, now, before, p)
			}
		}
		const most = 40
		bufs, sizes := make([][]byte, most), make([]int, most)
		for i := range bufs {
			bufs[i] = make([]byte, 2048)
		}
		switch treat(p, mtu) {
		case remedyTell:
			if b := appendTooBig(nil, p, mtu); len(b) > least6 {
				t.Errorf("an error of %d bytes", len(b))
			}
		case remedyDivide:
			divide(p, mtu, bufs, sizes, 16)
		}
	})
}
