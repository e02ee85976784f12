package filter

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// read is what gVisor's header package makes of a packet.
type read struct {
	ok           bool // it has a whole transport header, and nothing that we refuse by policy
	src, dst     netip.Addr
	proto        uint8
	sport, dport uint16
	flags        uint8
	later        bool
}

func gvisorReads(b []byte) (r read) {
	switch header.IPVersion(b) {
	case 4:
		h := header.IPv4(b)
		if !h.IsValid(len(b)) || int(h.TotalLength()) != len(b) {
			return r
		}
		r.src, _ = netip.AddrFromSlice(h.SourceAddressSlice())
		r.dst, _ = netip.AddrFromSlice(h.DestinationAddressSlice())
		r.proto, r.later = h.Protocol(), h.FragmentOffset() != 0
		r.transport(h.Payload())
	case 6:
		if len(b) < header.IPv6MinimumSize {
			return r
		}
		h := header.IPv6(b)
		if !h.IsValid(len(b)) || int(h.PayloadLength())+header.IPv6MinimumSize != len(b) {
			return r
		}
		r.src, _ = netip.AddrFromSlice(h.SourceAddressSlice())
		r.dst, _ = netip.AddrFromSlice(h.DestinationAddressSlice())
		it := header.MakeIPv6PayloadIterator(header.IPv6ExtensionHeaderIdentifier(h.NextHeader()), buffer.MakeWithData(h.Payload()))
		defer it.Release()
		for {
			v, done, err := it.Next()
			if err != nil || done {
				return r
			}
			switch x := v.(type) {
			case header.IPv6FragmentExtHdr:
				r.later = r.later || x.FragmentOffset() != 0
			case header.IPv6RawPayloadHeader:
				r.proto = uint8(x.Identifier)
				r.transport(x.Buf.Flatten())
				x.Buf.Release()
				return r
			}
			v.Release()
		}
	}
	return r
}

func (r *read) transport(b []byte) {
	if r.later {
		r.ok = true
		return
	}
	switch r.proto {
	case tcp:
		h := header.TCP(b)
		if len(b) < header.TCPMinimumSize || int(h.DataOffset()) < header.TCPMinimumSize || int(h.DataOffset()) > len(b) {
			return
		}
		r.sport, r.dport, r.flags = h.SourcePort(), h.DestinationPort(), uint8(h.Flags())
	case udp:
		h := header.UDP(b)
		if len(b) < header.UDPMinimumSize {
			return
		}
		r.sport, r.dport = h.SourcePort(), h.DestinationPort()
	case icmp4, icmp6:
		if len(b) < header.ICMPv4MinimumSize {
			return
		}
	}
	r.ok = true
}

func seeds(f *testing.F, add func([]byte)) {
	f.Helper()
	ssh := tcpPacket(alice, nas, 40000, 22, syn, 1, 0, 0)
	options := append([]byte{udp, 0, 1, 4, 0, 0, 0, 0}, udpDatagram(5000, 53, 8)...)
	for _, p := range [][]byte{
		ssh, tcpPacket(nas, alice, 22, 40000, syn|ack, 9, 2, 0), tcpPacket(alice6, nas6, 1, 22, ack, 1, 1, 40), udpPacket(alice, nas, 5000, 53, 20), udpPacket(alice6, nas6, 5000, 53, 20),
		ping(alice, nas, 3), pong(nas, alice, 3), ping(alice6, nas6, 3), pong(nas6, alice6, 3), unreachable(nas, alice, ssh), unreachable(nas6, alice6, udpPacket(alice6, nas6, 5000, 53, 20)),
		fragments4(alice, nas, udp, 1, 0, true, udpDatagram(5000, 53, 16)), fragments4(alice, nas, udp, 1, 24, false, make([]byte, 9)), fragments4(alice, nas, tcp, 2, 8, false, make([]byte, 16)),
		fragments6(alice6, nas6, udp, 1, 0, true, udpDatagram(5000, 53, 16)), fragments6(alice6, nas6, udp, 1, 24, false, make([]byte, 9)), fragments6(alice6, nas6, udp, 1, 0, false, udpDatagram(5000, 53, 16)),
		ipPacket(alice6, nas6, hopByHop, options), ipPacket(alice6, nas6, dstOpts, options), ipPacket(alice6, nas6, routing, options), ipPacket(bob, nas, 47, make([]byte, 8)),
		ipPacket(alice6, nas6, dstOpts, append([]byte{fragment, 0, 1, 4, 0, 0, 0, 0}, append([]byte{tcp, 0, 0, 1, 0, 0, 0, 1}, tcpSegment(1, 22, syn, 1, 0, 4)...)...)),
	} {
		add(p)
	}
}

// FuzzPacket holds the parser against gVisor's: what ours takes, gVisor's reads
// in the same way, and what ours refuses has a name.
func FuzzPacket(f *testing.F) {
	seeds(f, func(p []byte) { f.Add(p) })
	f.Fuzz(func(t *testing.T, b []byte) {
		var p, quoted packet
		whyQuoted := quoted.parse(b, true)
		why := p.parse(b, false)
		if why >= verdicts || verdictNames[why] == "" {
			t.Fatalf("verdict %d has no name", why)
		}
		if why != Pass {
			return
		}
		if whyQuoted != Pass {
			t.Fatalf("whole it passes, quoted it is %s", whyQuoted)
		}
		r := gvisorReads(b)
		if !r.ok {
			t.Fatalf("we take what gVisor does not read: %x", b)
		}
		if r.src != p.src.netip() || r.dst != p.dst.netip() || r.later != (p.part == laterPart) {
			t.Fatalf("we read %+v, gVisor %+v", p, r)
		}
		if p.part == laterPart {
			return
		}
		if r.proto != p.proto || (p.proto == tcp || p.proto == udp) && (r.sport != p.sport || r.dport != p.dport) || r.flags != p.flags {
			t.Fatalf("we read %+v, gVisor %+v", p, r)
		}
	})
}

// model is a filter that is slow and plain: it remembers which pairs of ends
// were allowed to talk, and nothing ends.
type model struct {
	rules Rules
	flows map[string]bool // by the ends, remote first; true when this side began
	first map[string]string
}

func (m *model) own(a netip.Addr) bool { return slices.Contains(m.rules.Self, a) }

func (m *model) local(a netip.Addr) bool {
	return m.own(a) || slices.ContainsFunc(m.rules.Routes, func(p netip.Prefix) bool { return p.Contains(a) })
}

func (m *model) allowed(r read) bool {
	in := func(sets []Set, ids []string, a netip.Addr) bool {
		return slices.ContainsFunc(sets, func(s Set) bool {
			return slices.Contains(ids, s.ID) && slices.ContainsFunc(s.Prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
		})
	}
	proto := r.proto
	if proto == icmp6 {
		proto = icmp4
	}
	return slices.ContainsFunc(m.rules.Rules, func(x Rule) bool {
		return in(m.rules.From, x.From, r.src) && in(m.rules.To, x.To, r.dst) && slices.ContainsFunc(x.Services, func(s Service) bool {
			return (s.Proto == 0 || s.Proto == proto) && s.First <= r.dport && r.dport <= s.Last
		})
	})
}

// may reports whether a packet may pass at all: what the filter passes beyond
// that is a hole. A packet of this side may pass when it is from this node, or
// when the other side may have asked for it.
func (m *model) may(r read, out bool) bool {
	if out {
		back := read{src: r.dst, dst: r.src, proto: r.proto, sport: r.dport, dport: r.sport}
		return m.own(r.src) || m.local(r.src) && m.allowed(back)
	}
	if m.allowed(r) && !m.local(r.src) {
		return true
	}
	return m.flows[m.ends(r, false)]
}

func (m *model) ends(r read, out bool) string {
	if out {
		r.src, r.dst, r.sport, r.dport = r.dst, r.src, r.dport, r.sport
	}
	return string(binary.BigEndian.AppendUint32(append(append(r.src.AsSlice(), r.dst.AsSlice()...), r.proto), uint32(r.sport)<<16|uint32(r.dport)))
}

// FuzzFilter sends a sequence of packets through the filter, in both
// directions, and holds each that passes against the model.
func FuzzFilter(f *testing.F) {
	seeds(f, func(p []byte) {
		f.Add(append([]byte{0, byte(len(p))}, p...))
		f.Add(append(append([]byte{0, byte(len(p))}, p...), append([]byte{1, byte(len(p))}, p...)...))
	})
	f.Add(slices.Concat([]byte{0, 40}, tcpPacket(alice, nas, 1, 22, syn, 1, 0, 0), []byte{1, 40}, tcpPacket(nas, alice, 22, 1, syn|ack, 1, 2, 0)))
	f.Fuzz(func(t *testing.T, script []byte) {
		rules := labRules()
		g := newRig(t, rules, Options{Flows: 1, Events: 16})
		m := &model{rules: rules, flows: map[string]bool{}, first: map[string]string{}}
		for len(script) >= 2 {
			out, n := script[0]&1 == 1, min(int(script[1]), len(script)-2)
			p := slices.Clone(script[2 : 2+n])
			g.now = g.now.Add(time.Duration(script[0]>>1) * time.Second / 4)
			script = script[2+n:]
			before := slices.Clone(p)
			if out {
				g.f.Out(g.now, [][]byte{p}, &g.b)
			} else {
				g.f.In(g.now, [][]byte{p}, &g.b)
			}
			if !slices.Equal(before, p) {
				t.Fatal("the packet was changed")
			}
			for _, a := range g.b.Answers {
				goodChecksums(t, a)
				if len(a) > longestICMP6 {
					t.Fatalf("an answer of %d bytes", len(a))
				}
			}
			g.f.Tick(g.now)
			if g.b.Verdicts[0] == Pass {
				m.check(t, p, out)
			}
		}
	})
}

// check fails if a packet that passed may not have.
func (m *model) check(t *testing.T, b []byte, out bool) {
	t.Helper()
	r := gvisorReads(b)
	if !r.ok {
		t.Fatalf("what passes cannot be read: %x", b)
	}
	var p packet
	p.parse(b, false)
	datagram := string(append(append(r.src.AsSlice(), r.dst.AsSlice()...), byte(p.fragID>>24), byte(p.fragID>>16), byte(p.fragID>>8), byte(p.fragID)))
	switch {
	case r.later:
		if m.first[datagram] == "" {
			t.Fatalf("a later fragment passes, and its first did not: %x", b)
		}
		return
	case p.icmpError():
		var quoted packet
		if quoted.parse(b[p.transport+icmpHeader:], true) != Pass || quoted.src.netip() != r.dst {
			t.Fatalf("an error passes that quotes nobody's packet: %x", b)
		}
		return
	case r.proto == icmp4 || r.proto == icmp6:
		if !p.echo() {
			t.Fatalf("ICMP of type %d passes", p.icmpType)
		}
	}
	if !m.may(r, out) {
		t.Fatalf("a hole: %+v passes, out %t", r, out)
	}
	if out && m.own(r.src) {
		m.flows[m.ends(r, true)] = true // whatever answers may come in
	}
	if p.part == firstPart {
		m.first[datagram] = "passed"
	}
}
