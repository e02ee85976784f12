package train

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
)

// packet describes one to make.
type packet struct {
	v6, udp      bool
	sport, dport uint16
	seq          uint32
	id           uint16
	flags        byte
	fragmentable bool
	options      int // bytes of TCP options
	payload      []byte
}

// bytes makes the packet, with its checksums.
func (k packet) bytes() []byte {
	ipHeader, transport := 20, 20+k.options
	if k.v6 {
		ipHeader = 40
	}
	if k.udp {
		transport = udpSize
	}
	p := make([]byte, ipHeader+transport, ipHeader+transport+len(k.payload))
	p = append(p, k.payload...)
	proto := byte(protoTCP)
	if k.udp {
		proto = protoUDP
	}
	if k.v6 {
		p[0], p[6], p[7] = 0x60, proto, 64
		copy(p[8:], bytes.Repeat([]byte{0xfd, 1}, 16))
	} else {
		p[0], p[8], p[9] = 0x45, 64, proto
		if !k.fragmentable {
			p[6] = 0x40
		}
		binary.BigEndian.PutUint16(p[4:], k.id)
		copy(p[12:], []byte{172, 18, 0, 11, 192, 168, 1, 201})
	}
	setLength(p, ipHeader, len(p))
	h := p[ipHeader:]
	binary.BigEndian.PutUint16(h, k.sport)
	binary.BigEndian.PutUint16(h[2:], k.dport)
	sumAt := udpSumAt
	if k.udp {
		binary.BigEndian.PutUint16(h[4:], uint16(len(h)))
	} else {
		sumAt = tcpSumAt
		binary.BigEndian.PutUint32(h[4:], k.seq)
		h[12] = byte(transport/4) << 4
		h[13] = k.flags
		binary.BigEndian.PutUint16(h[14:], 500)
		for i := range k.options {
			h[20+i] = 1 // NOP
		}
	}
	// The slow way, bytes in the network's order: what the tests compare with.
	acc := uint32(proto) + uint32(len(h))
	for _, b := range [][]byte{addresses(p), h} {
		for i := 0; i < len(b); i += 2 {
			acc += uint32(b[i]) << 8
			if i+1 < len(b) {
				acc += uint32(b[i+1])
			}
		}
	}
	for acc > 0xffff {
		acc = acc>>16 + acc&0xffff
	}
	v := ^uint16(acc)
	if v == 0 {
		v = 0xffff
	}
	binary.BigEndian.PutUint16(h[sumAt:], v)
	return p
}

// joined joins packets, and splits the trains again as the kernel would.
func joined(t *testing.T, packets [][]byte) (trains int, out [][]byte) {
	t.Helper()
	j := Joiner{UDP: true}
	for _, p := range packets {
		j.Add(bytes.Clone(p))
	}
	for i := range j.Trains() {
		tr := &j.trains[i]
		tr.Finish()
		frame := append(bytes.Clone(tr.Frame[:]), tr.Head...)
		for _, r := range tr.Rest {
			frame = append(frame, r...)
		}
		if len(frame) > HeaderSize+MostBytes {
			t.Fatalf("a train of %d bytes", len(frame))
		}
		var s Splitter
		if err := s.Load(frame); err != nil {
			t.Fatalf("train %d: %v", i, err)
		}
		for s.More() {
			dst := make([]byte, MostBytes)
			n := s.Cut(dst)
			if n == 0 {
				t.Fatal("a packet was left out")
			}
			out = append(out, dst[:n])
		}
	}
	return j.n, out
}

// stream makes n segments of size bytes in a row.
func stream(n, size int, k packet) (out [][]byte) {
	for range n {
		k.payload = make([]byte, size)
		for i := range k.payload {
			k.payload[i] = byte(rand.Uint32())
		}
		out = append(out, k.bytes())
		k.seq += uint32(size)
		k.id++
	}
	return out
}

func TestJoin(t *testing.T) {
	tcp := packet{sport: 1, dport: 2, seq: 0xfffff000, flags: tcpACK}
	udp := packet{udp: true, sport: 1, dport: 2}
	v6 := func(k packet) packet { k.v6 = true; return k }
	with := func(k packet, change func(*packet)) packet { change(&k); return k }
	odd := stream(1, 333, with(tcp, func(k *packet) { k.seq += 4 * 1380 }))[0]
	broken := stream(4, 1000, tcp)
	broken[2][len(broken[2])-1] ^= 1
	first := stream(4, 1000, tcp)
	first[0][len(first[0])-1] ^= 1
	for _, c := range []struct {
		name    string
		packets [][]byte
		trains  int
	}{
		{"tcp", stream(40, 1380, tcp), 1},
		{"tcp6", stream(40, 1380, v6(tcp)), 1},
		{"udp", stream(40, 1200, udp), 1},
		{"udp6", stream(40, 1200, v6(udp)), 1},
		{"one", stream(1, 100, tcp), 1},
		{"a short one ends it", append(append(stream(4, 1380, tcp), odd), stream(1, 1380, with(tcp, func(k *packet) { k.seq += 4*1380 + 333 }))...), 2},
		{"options", stream(4, 1000, with(tcp, func(k *packet) { k.options = 12 })), 1},
		{"other options", slices.Concat(stream(1, 1000, tcp), stream(1, 1000, with(tcp, func(k *packet) { k.options = 12; k.seq += 1000 }))), 2},
		{"a gap", slices.Concat(stream(2, 1000, tcp), stream(2, 1000, with(tcp, func(k *packet) { k.seq += 3000 }))), 2},
		{"two flows", slices.Concat(stream(2, 1000, tcp), stream(2, 1000, with(tcp, func(k *packet) { k.dport = 3 }))), 2},
		{"FIN", stream(3, 1000, with(tcp, func(k *packet) { k.flags |= tcpFIN })), 3},
		{"PSH ends it", stream(3, 1000, with(tcp, func(k *packet) { k.flags |= tcpPSH })), 3},
		{"no payload", stream(3, 0, tcp), 3},
		{"64 KiB", stream(60, 1380, tcp), 2},
		{"66 datagrams", stream(66, 10, udp), 2},
		{"numbered fragments", stream(4, 1000, with(tcp, func(k *packet) { k.fragmentable = true })), 1},
		{"other numbers", slices.Concat(stream(1, 1000, with(udp, func(k *packet) { k.fragmentable = true })), stream(1, 1000, with(udp, func(k *packet) { k.fragmentable = true; k.id = 9 }))), 2},
		{"a broken one", broken, 3},
		{"the first is broken", first, 2},
		{"garbage", [][]byte{{0x45}, {0x60, 1, 2}, make([]byte, 100), bytes.Repeat([]byte{0x45}, 60), bytes.Repeat([]byte{0x60}, 60)}, 5},
	} {
		trains, out := joinedAnyway(t, c.packets)
		if trains != c.trains {
			t.Errorf("%s: %d trains, want %d", c.name, trains, c.trains)
		}
		if c.name == "garbage" {
			continue
		}
		if !same(out, c.packets) {
			t.Errorf("%s: %d packets went in, other %d came out", c.name, len(c.packets), len(out))
		}
	}
}

// joinedAnyway is joined for packets that no Splitter would take.
func joinedAnyway(t *testing.T, packets [][]byte) (int, [][]byte) {
	for _, p := range packets {
		if len(p) < 20 || p[0]>>4 != 4 && p[0]>>4 != 6 {
			j := Joiner{UDP: true}
			for _, p := range packets {
				j.Add(p)
			}
			return j.n, nil
		}
	}
	return joined(t, packets)
}

// same compares packets in order; the numbers of packets that must not be
// fragmented mean nothing (RFC 6864) and may differ.
func same(got, want [][]byte) bool {
	return slices.EqualFunc(got, want, func(a, b []byte) bool { return bytes.Equal(plain(a), plain(b)) })
}

// plain returns p without the number that means nothing.
func plain(p []byte) []byte {
	p = bytes.Clone(p)
	if len(p) >= 20 && p[0] == 0x45 && p[6]&0x40 != 0 {
		p[4], p[5] = 0, 0
		setLength(p, 20, int(binary.BigEndian.Uint16(p[2:])))
	}
	return p
}

// TestSplit cuts trains as the kernel makes them, and compares with the packets
// that a network card would send.
func TestSplit(t *testing.T) {
	for _, c := range []struct {
		name    string
		k       packet
		size, n int
	}{
		{"tcp", packet{sport: 1, dport: 2, seq: 0xffffff00, id: 0xfffe, flags: tcpACK | tcpPSH | tcpFIN | tcpCWR, options: 12}, 1380, 45},
		{"tcp6", packet{v6: true, sport: 1, dport: 2, flags: tcpACK}, 1360, 45},
		{"udp", packet{udp: true, sport: 1, dport: 2}, 1200, 50},
		{"udp6", packet{udp: true, v6: true, sport: 1, dport: 2}, 1, 64},
		{"one", packet{sport: 1, dport: 2, flags: tcpACK}, 100, 1},
	} {
		var want [][]byte
		k := c.k
		whole := make([]byte, c.size*c.n-c.size/2)
		for i := range whole {
			whole[i] = byte(rand.Uint32())
		}
		for i := range c.n {
			k.payload = whole[i*c.size : min((i+1)*c.size, len(whole))]
			k.flags = c.k.flags
			if i > 0 {
				k.flags &^= tcpCWR
			}
			if i < c.n-1 {
				k.flags &^= tcpFIN | tcpPSH
			}
			want = append(want, k.bytes())
			k.seq += uint32(len(k.payload))
			k.id++
		}
		k = c.k
		k.payload = whole
		p := k.bytes()
		f := flow{ipHeader: 20, proto: protoTCP}
		o := Offload{NeedsSum: true, Kind: TCP4 | ecn, Segment: uint16(c.size), SumStart: 20, SumAt: tcpSumAt}
		if k.v6 {
			o.Kind, o.SumStart, f.ipHeader = TCP6, 40, 40
		}
		if k.udp {
			o.Kind, o.SumAt, f.proto = UDP, udpSumAt, protoUDP
		}
		var h [HeaderSize]byte
		o.Put(&h)
		var s Splitter
		if err := s.Load(append(h[:], p...)); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		for i := range want {
			dst := make([]byte, 2000)
			if n := s.Cut(dst); !bytes.Equal(dst[:n], want[i]) {
				t.Fatalf("%s: packet %d of %d is\n%x, want\n%x", c.name, i, c.n, dst[:n], want[i])
			}
		}
		if s.More() {
			t.Errorf("%s: there is more", c.name)
		}
	}
}

// TestSplitWhole finishes the checksum of a packet that is no train.
// TestSplitExtended: extension headers count as payload of the IPv6 header, and
// not for the checksum.
func TestSplitExtended(t *testing.T) {
	const extra = 8 // a header of options for the destination
	plain := packet{v6: true, seq: 7, flags: tcpACK, payload: bytes.Repeat([]byte("ab"), 1000)}.bytes()
	p := slices.Concat(plain[:fixed6], []byte{protoTCP, 0, 1, 4, 0, 0, 0, 0}, plain[fixed6:])
	p[6] = 60
	setLength(p, fixed6+extra, len(p))
	o := Offload{NeedsSum: true, Kind: TCP6, Segment: 1200, SumStart: fixed6 + extra, SumAt: tcpSumAt}
	var frame [HeaderSize]byte
	o.Put(&frame)
	var s Splitter
	if err := s.Load(append(frame[:], p...)); err != nil {
		t.Fatal(err)
	}
	for i, payload := range []int{1200, 800} {
		dst := make([]byte, MostBytes)
		got := dst[:s.Cut(dst)]
		if want := extra + 20 + payload; len(got) != fixed6+want || int(binary.BigEndian.Uint16(got[4:])) != want {
			t.Errorf("packet %d of %d bytes says %d", i, len(got), binary.BigEndian.Uint16(got[4:]))
		}
		transport := got[fixed6+extra:]
		if fold(sum(transport, pseudo(got, protoTCP, len(transport)))) != 0xffff {
			t.Errorf("packet %d has a wrong checksum", i)
		}
	}
}

func TestSplitWhole(t *testing.T) {
	for _, k := range []packet{{sport: 1, dport: 2, flags: tcpACK, payload: []byte("odd")}, {v6: true, udp: true, payload: []byte("even")}} {
		want := k.bytes()
		p := bytes.Clone(want)
		o := Offload{NeedsSum: true, SumStart: 20, SumAt: tcpSumAt}
		proto := uint8(protoTCP)
		if k.v6 {
			o.SumStart = 40
		}
		if k.udp {
			o.SumAt, proto = udpSumAt, protoUDP
		}
		putSum(p[o.SumStart+o.SumAt:], fold(pseudo(p, proto, len(p)-int(o.SumStart))))
		var h [HeaderSize]byte
		o.Put(&h)
		var s Splitter
		dst := make([]byte, 100)
		if err := s.Load(append(h[:], p...)); err != nil {
			t.Fatal(err)
		}
		if n := s.Cut(dst); !bytes.Equal(dst[:n], want) || s.More() {
			t.Errorf("%x, want %x", dst[:n], want)
		}
		_ = s.Load(append(make([]byte, HeaderSize), want...))
		if n := s.Cut(make([]byte, 10)); n != 0 || s.More() {
			t.Error("a packet was cut off")
		}
	}
}

// TestCopySum compares with one byte after the other, at every length.
func TestCopySum(t *testing.T) {
	src := make([]byte, 300)
	for i := range src {
		src[i] = byte(rand.Uint32()) | 0x80
	}
	for n := range len(src) {
		slow := uint64(0)
		for i, b := range src[:n] {
			if i%2 == 0 {
				slow += word(uint16(b) << 8)
			} else {
				slow += word(uint16(b))
			}
		}
		dst := make([]byte, n)
		if got := fold(copySum(dst, src[:n], 7)); got != fold(slow+7) || !bytes.Equal(dst, src[:n]) {
			t.Fatalf("%d bytes: %x, want %x", n, got, fold(slow+7))
		}
		if got := fold(sum(src[:n], ^uint64(0))); got != fold(add(slow, ^uint64(0))) {
			t.Fatalf("%d bytes: %x", n, got)
		}
	}
}

// FuzzSplit loads whatever the kernel might say.
func FuzzSplit(f *testing.F) {
	for _, k := range []packet{{flags: tcpACK, payload: make([]byte, 100)}, {v6: true, udp: true, payload: make([]byte, 100)}} {
		for _, kind := range []uint8{None, TCP4, TCP6, UDP} {
			o := Offload{NeedsSum: true, Kind: kind, Segment: 10, SumStart: 20, SumAt: tcpSumAt}
			if k.v6 {
				o.SumStart, o.SumAt = 40, udpSumAt
			}
			var h [HeaderSize]byte
			o.Put(&h)
			f.Add(append(h[:], k.bytes()...))
		}
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		var s Splitter
		if s.Load(bytes.Clone(frame)) != nil {
			return
		}
		dst := make([]byte, 2000)
		for n := 0; s.More(); n++ {
			if s.Cut(dst); n > MostBytes {
				t.Fatal("there is no end")
			}
		}
	})
}

// FuzzJoin makes batches of packets that nearly fit together, and wants each
// flow's packets back as they went in.
func FuzzJoin(f *testing.F) {
	f.Add([]byte("\x00\x01\x02\x03\x04\x05\x06\x07\x08"), uint16(1000))
	f.Fuzz(func(t *testing.T, script []byte, size uint16) {
		var packets [][]byte
		next := map[bool]uint32{}
		for i, c := range script[:min(len(script), 100)] {
			k := packet{v6: c&1 != 0, udp: c&2 != 0, sport: uint16(c >> 2 & 1), flags: tcpACK, seq: next[c&1 != 0], id: uint16(i), fragmentable: c&0x80 != 0}
			k.payload = bytes.Repeat([]byte{byte(i)}, int(size%1400)>>(c>>3&1))
			if c&0x30 == 0x30 {
				k.flags |= tcpPSH
			}
			if c&0xc0 == 0xc0 {
				k.options = 4
			}
			next[k.v6] += uint32(len(k.payload))
			p := k.bytes()
			if c&0x78 == 0x78 {
				p[len(p)-1] ^= 0xff
			}
			packets = append(packets, p)
		}
		_, out := joined(t, packets)
		split := func(all [][]byte) map[string][][]byte {
			flows := map[string][][]byte{}
			for _, p := range all {
				h := 20
				if p[0]>>4 == 6 {
					h = 40
				}
				if len(p) == h+20 || len(p) == h+24 || len(p) == h+8 {
					continue // without payload: may overtake
				}
				key := string(p[h:h+4]) + string(addresses(p))
				if h == 20 && p[9] == protoUDP || h == 40 && p[6] == protoUDP {
					key += "udp"
				}
				flows[key] = append(flows[key], p)
			}
			return flows
		}
		got, want := split(out), split(packets)
		if len(out) != len(packets) {
			t.Fatalf("%d packets went in, %d came out", len(packets), len(out))
		}
		for key := range want {
			if !same(got[key], want[key]) {
				t.Fatalf("a flow's packets differ")
			}
		}
	})
}

func TestAllocatesNothing(t *testing.T) {
	packets := stream(40, 1380, packet{flags: tcpACK})
	j := Joiner{}
	var s Splitter
	frame := append(make([]byte, HeaderSize), packets[0]...)
	dst := make([]byte, 2000)
	if n := testing.AllocsPerRun(100, func() {
		for _, p := range packets {
			j.Add(p)
		}
		j.Reset()
		_ = s.Load(frame)
		s.Cut(dst)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkJoin(b *testing.B) {
	packets := stream(40, 1380, packet{flags: tcpACK})
	j := Joiner{}
	b.SetBytes(40 * 1380)
	for b.Loop() {
		for _, p := range packets {
			j.Add(p)
		}
		j.Reset()
	}
}

func BenchmarkSplit(b *testing.B) {
	k := packet{flags: tcpACK, payload: make([]byte, 40*1380)}
	o := Offload{NeedsSum: true, Kind: TCP4, Segment: 1380, SumStart: 20, SumAt: tcpSumAt}
	var h [HeaderSize]byte
	o.Put(&h)
	frame := append(h[:], k.bytes()...)
	dst := make([]byte, 2000)
	b.SetBytes(40 * 1380)
	var s Splitter
	for b.Loop() {
		if s.Load(frame) != nil {
			b.Fatal("not loaded")
		}
		for s.More() {
			s.Cut(dst)
		}
	}
}
