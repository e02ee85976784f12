package filter

import "encoding/binary"

// train is what packets have in common that come one behind the other in one
// direction of one flow, as those of a transfer do: IPv4 without options, whole,
// TCP that only acknowledges or UDP. A packet of it changes nothing but what is
// counted, so that neither all of its headers nor its flow are looked up anew.
type train struct {
	proto     uint8  // 0: there is none
	addresses uint64 // the bytes of the source's and the destination's
	ports     uint32
}

// trainHeaders is the least that a packet of a train has: IPv4 and UDP.
const trainHeaders = minIPv4 + udpHeader

// couple begins a train with a packet that has passed and did not change its flow's
// phase.
func (t *train) couple(p *packet, raw []byte) {
	if p.v6 || p.part != whole || p.transport != minIPv4 || p.proto != udp && (p.proto != tcp || !acknowledges(p.flags)) {
		return
	}
	t.proto, t.addresses, t.ports = p.proto, binary.BigEndian.Uint64(raw[12:]), binary.BigEndian.Uint32(raw[minIPv4:])
}

// acknowledges reports whether TCP's flags are those of a connection that goes on.
func acknowledges(flags uint8) bool { return flags&(fin|syn|rst|ack) == ack }

// goesOn reports whether a packet, well-formed as parse has it, is the train's
// next, and where the header of its transport ends.
func (t *train) goesOn(b []byte) (data int, ok bool) {
	if t.proto == 0 || len(b) < trainHeaders || b[0] != 4<<4|minIPv4/4 || b[9] != t.proto ||
		int(binary.BigEndian.Uint16(b[2:])) != len(b) || binary.BigEndian.Uint16(b[6:])&0x3fff != 0 ||
		binary.BigEndian.Uint64(b[12:]) != t.addresses || binary.BigEndian.Uint32(b[minIPv4:]) != t.ports {
		return 0, false
	}
	if t.proto == udp {
		length := int(binary.BigEndian.Uint16(b[minIPv4+4:]))
		return trainHeaders, length >= udpHeader && length <= len(b)-minIPv4
	}
	if len(b) < minIPv4+minTCP {
		return 0, false
	}
	data = minIPv4 + int(b[minIPv4+12]>>4)*4
	return data, data >= minIPv4+minTCP && data <= len(b) && acknowledges(b[minIPv4+13])
}

// roll counts the next packet of the cursor's train, whose flow it still has.
func (c *cursor) roll(raw []byte, data int) {
	f := c.flow()
	if c.train.proto == tcp {
		f.expect(binary.BigEndian.Uint32(raw[minIPv4+4:])+uint32(len(raw)-data), c.out)
	}
	f.add(len(raw), c.out) // seen it was with the train's first, in the same batch
}
