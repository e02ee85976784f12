package train

import (
	"bytes"
	"encoding/binary"
)

const (
	// lookBack is how many recent trains a packet is compared with. Batches that
	// mix more flows than this gain little from joining.
	lookBack = 16
	// MostPieces is the longest train: the kernel takes no more of UDP, and 64 KiB
	// hold no more of TCP in packets of usual length.
	MostPieces = 64
)

// Joiner makes trains of packets. It does no I/O and copies no payload.
type Joiner struct {
	UDP bool // make trains of UDP, too; set before the first Add

	trains []Train
	n      int // of trains in use
}

// Train is one or more packets that are taken for one. Payloads lie where they came.
type Train struct {
	Head  []byte           // the first packet
	Rest  [][]byte         // the payloads of the others
	Frame [HeaderSize]byte // what the kernel wants before Head; written by Finish

	flow   flow   // of head; proto 0: it is not joined with anything
	length int    // of the joined packet
	next   uint32 // TCP: the sequence number that follows
	sound  bool   // head's checksum was verified
	closed bool   // nothing may follow
}

// flow is what a packet's headers say of the train it may belong to.
type flow struct {
	proto    uint8
	ipHeader int
	header   int // bytes of all headers
	payload  int
}

// Trains returns what was added, until Reset.
func (j *Joiner) Trains() []Train { return j.trains[:j.n] }

// Len returns how many bytes the joined packet has.
func (t *Train) Len() int { return t.length }

// Reset forgets the trains of the last batch, and the buffers they lie in.
func (j *Joiner) Reset() {
	for i := range j.trains[:j.n] {
		t := &j.trains[i]
		clear(t.Rest)
		t.Head, t.Rest = nil, t.Rest[:0]
	}
	j.n = 0
}

// Add takes the next packet, which is borrowed until Reset. Packets of a flow that
// can be joined stay in order; one that cannot, such as a bare acknowledgement,
// may be overtaken.
func (j *Joiner) Add(p []byte) {
	f := classify(p, j.UDP)
	if f.proto != 0 {
		for i := j.n - 1; i >= 0 && i >= j.n-lookBack; i-- {
			t := &j.trains[i]
			if t.flow.proto != f.proto || !t.sameFlow(p, f) {
				continue
			}
			if t.follow(p, f) {
				return
			}
			break // an older train of the flow would be overtaken
		}
	}
	if j.n == len(j.trains) {
		j.trains = append(j.trains, Train{})
	}
	t := &j.trains[j.n]
	j.n++
	rest := t.Rest[:0]
	*t = Train{Head: p, Rest: rest, flow: f, length: len(p)}
	if f.proto == protoTCP {
		tcp := p[f.ipHeader:]
		t.next = binary.BigEndian.Uint32(tcp[4:]) + uint32(f.payload)
		t.closed = tcp[13]&tcpPSH != 0
	}
}

// classify returns a packet's flow, of proto 0 when it can be in no train:
// anything but whole TCP segments and UDP datagrams with payload behind plain
// headers.
func classify(p []byte, udp bool) (f flow) {
	if len(p) < 28 {
		return flow{}
	}
	switch {
	case p[0] == 0x45: // no options
		f.ipHeader, f.proto = 20, p[9]
		if int(binary.BigEndian.Uint16(p[2:])) != len(p) || p[6]&0x3f != 0 || p[7] != 0 { // a fragment
			return flow{}
		}
	case p[0]>>4 == 6 && len(p) >= 48:
		f.ipHeader, f.proto = 40, p[6]
		if int(binary.BigEndian.Uint16(p[4:]))+40 != len(p) {
			return flow{}
		}
	default:
		return flow{}
	}
	transport := p[f.ipHeader:]
	switch {
	case f.proto == protoTCP && len(transport) >= 20:
		f.header = f.ipHeader + int(transport[12]>>4)*4
		if f.header < f.ipHeader+20 || transport[13]&^tcpPSH != tcpACK {
			return flow{}
		}
	case f.proto == protoUDP && udp:
		f.header = f.ipHeader + udpSize
		if int(binary.BigEndian.Uint16(transport[4:])) != len(transport) || transport[6]|transport[7] == 0 {
			return flow{}
		}
	default:
		return flow{}
	}
	if f.payload = len(p) - f.header; f.payload <= 0 {
		return flow{}
	}
	return f
}

// sameFlow reports whether p has the addresses and ports of the train. Only
// then does it matter what comes first.
func (t *Train) sameFlow(p []byte, f flow) bool {
	h := t.Head
	return h[0] == p[0] && t.flow.ipHeader == f.ipHeader && bytes.Equal(addresses(h), addresses(p)) &&
		[4]byte(h[f.ipHeader:]) == [4]byte(p[f.ipHeader:])
}

// follow appends p if the kernel would cut it off again just as it is.
func (t *Train) follow(p []byte, f flow) bool {
	h := t.Head
	if t.closed || f.header != t.flow.header || f.payload > t.flow.payload || t.length+f.payload > MostBytes || len(t.Rest) == MostPieces-1 {
		return false
	}
	if f.ipHeader == 20 {
		if h[1] != p[1] || h[6] != p[6] || h[8] != p[8] { // type of service, don't-fragment, TTL
			return false
		}
		// Numbers that tell fragments apart must be those that cutting makes.
		if p[6]&0x40 == 0 && binary.BigEndian.Uint16(p[4:]) != binary.BigEndian.Uint16(h[4:])+uint16(len(t.Rest)+1) {
			return false
		}
	} else if [4]byte(h) != [4]byte(p) || h[7] != p[7] { // traffic class and flow label, hop limit
		return false
	}
	transport, first := p[f.ipHeader:f.header], h[f.ipHeader:f.header]
	push := false
	if f.proto == protoTCP {
		if binary.BigEndian.Uint32(transport[4:]) != t.next ||
			[4]byte(first[8:]) != [4]byte(transport[8:]) || // acknowledged
			[2]byte(first[14:]) != [2]byte(transport[14:]) || // window
			!bytes.Equal(first[20:], transport[20:]) { // options
			return false
		}
		push = transport[13]&tcpPSH != 0
	}
	// The kernel will take the checksum for verified.
	if !t.sound {
		if !intact(h, t.flow) {
			t.closed = true
			return false
		}
		t.sound = true
	}
	if !intact(p, f) {
		return false
	}
	t.Rest = append(t.Rest, p[f.header:])
	t.length += f.payload
	t.next += uint32(f.payload)
	t.closed = push || f.payload < t.flow.payload
	if push {
		first[13] |= tcpPSH
	}
	return true
}

// intact verifies a packet's checksums.
func intact(p []byte, f flow) bool {
	if f.ipHeader == 20 && fold(sum(p[:20], 0)) != 0xffff {
		return false
	}
	transport := p[f.ipHeader:]
	return fold(sum(transport, pseudo(p, f.proto, len(transport)))) == 0xffff
}

// Finish writes the headers of a train, of which head's are changed.
func (t *Train) Finish() {
	if len(t.Rest) == 0 {
		t.Frame = [HeaderSize]byte{}
		return
	}
	f := t.flow
	o := Offload{NeedsSum: true, Header: uint16(f.header), Segment: uint16(f.payload), SumStart: uint16(f.ipHeader)}
	setLength(t.Head, f.ipHeader, t.length)
	transport := t.Head[f.ipHeader:]
	switch {
	case f.proto == protoUDP:
		o.Kind, o.SumAt = UDP, udpSumAt
		binary.BigEndian.PutUint16(transport[4:], uint16(t.length-f.ipHeader))
	case f.ipHeader == 20:
		o.Kind, o.SumAt = TCP4, tcpSumAt
	default:
		o.Kind, o.SumAt = TCP6, tcpSumAt
	}
	putSum(transport[o.SumAt:], fold(pseudo(t.Head, f.proto, t.length-f.ipHeader)))
	o.Put(&t.Frame)
}
