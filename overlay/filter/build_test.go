package filter

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	gvisorsum "gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// The world of the tests: a gateway with a LAN behind it, of both families.
const (
	alice, alice6 = "172.18.0.11", "fd00::11"
	bob           = "172.18.0.13"
	gateway       = "172.18.0.200"
	gateway6      = "fd00::200"
	nas, nas6     = "192.168.1.201", "fd01::201"
	other         = "192.168.1.7"
)

var start = time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)

type deadline time.Time

func (d deadline) Active(at time.Time) (bool, time.Time) {
	if at.Before(time.Time(d)) {
		return true, time.Time(d)
	}
	return false, time.Time{}
}

func ips(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			a := netip.MustParseAddr(s)
			p = netip.PrefixFrom(a, a.BitLen())
		}
		out = append(out, p)
	}
	return out
}

// labRules lets alice reach the nas by ssh, DNS and ping, and bob everything.
func labRules() Rules {
	return Rules{
		Self:   []netip.Addr{netip.MustParseAddr(gateway), netip.MustParseAddr(gateway6)},
		Routes: ips("192.168.1.0/24", "fd01::/64"),
		Sources: []Source{
			{Address: netip.MustParseAddr(alice), Node: "alice-1", User: "alice"},
			{Address: netip.MustParseAddr(alice6), Node: "alice-1", User: "alice"},
			{Address: netip.MustParseAddr(bob), Node: "bob-1", User: "bob"},
		},
		From: []Set{{"user:alice", ips(alice, alice6)}, {"user:bob", ips(bob)}},
		To:   []Set{{"nas", ips(nas, nas6)}, {"all", ips(gateway, gateway6, "192.168.1.0/24", "fd01::/64")}},
		Rules: []Rule{
			{Name: "ssh", From: []string{"user:alice"}, To: []string{"nas"}, Services: []Service{{tcp, 22, 22}, {udp, 53, 53}, {icmp4, 0, 65535}}},
			{Name: "admin", From: []string{"user:bob"}, To: []string{"all"}, Services: []Service{{0, 0, 65535}}},
		},
	}
}

// rig is a filter with its rules and a time that moves.
type rig struct {
	t   testing.TB
	f   *Filter
	now time.Time
	b   Batch
}

func newRig(t testing.TB, r Rules, o Options) *rig {
	t.Helper()
	g := &rig{t: t, f: New(o, start.Add(-2*adoptFor)), now: start}
	g.swap(r)
	return g
}

func (g *rig) swap(r Rules) Cut {
	g.t.Helper()
	c, err := g.f.Swap(g.now, r)
	if err != nil {
		g.t.Fatal(err)
	}
	return c
}

func (g *rig) pass(out bool, want Verdict, p []byte) (answer []byte) {
	g.t.Helper()
	if out {
		g.f.Out(g.now, [][]byte{p}, &g.b)
	} else {
		g.f.In(g.now, [][]byte{p}, &g.b)
	}
	if g.b.Verdicts[0] != want {
		g.t.Errorf("the verdict is %s, want %s", g.b.Verdicts[0], want)
	}
	if len(g.b.Answers) == 1 {
		return g.b.Answers[0]
	}
	return nil
}

func (g *rig) in(want Verdict, p []byte) []byte  { g.t.Helper(); return g.pass(false, want, p) }
func (g *rig) out(want Verdict, p []byte) []byte { g.t.Helper(); return g.pass(true, want, p) }

func (g *rig) counter(name string) uint64 {
	g.t.Helper()
	for _, c := range g.f.Counters() {
		if c.Name == name {
			return c.Value
		}
	}
	g.t.Fatalf("there is no counter %s", name)
	return 0
}

// connect makes an established connection.
func (g *rig) connect(src, dst string, sport, dport uint16) {
	g.t.Helper()
	g.in(Pass, tcpPacket(src, dst, sport, dport, syn, 100, 0, 0))
	g.out(Pass, tcpPacket(dst, src, dport, sport, syn|ack, 900, 101, 0))
	g.in(Pass, tcpPacket(src, dst, sport, dport, ack, 101, 901, 0))
}

func address(s string) tcpip.Address {
	a := netip.MustParseAddr(s)
	return tcpip.AddrFromSlice(a.AsSlice())
}

// ipPacket puts an IP header before a payload, as gVisor makes it.
func ipPacket(src, dst string, proto uint8, payload []byte) []byte {
	if netip.MustParseAddr(src).Is4() {
		b := make([]byte, header.IPv4MinimumSize, header.IPv4MinimumSize+len(payload))
		header.IPv4(b).Encode(&header.IPv4Fields{TotalLength: uint16(len(b) + len(payload)), TTL: 64, Protocol: proto, SrcAddr: address(src), DstAddr: address(dst)})
		header.IPv4(b).SetChecksum(^header.IPv4(b).CalculateChecksum())
		return append(b, payload...)
	}
	b := make([]byte, header.IPv6MinimumSize, header.IPv6MinimumSize+len(payload))
	header.IPv6(b).Encode(&header.IPv6Fields{PayloadLength: uint16(len(payload)), TransportProtocol: tcpip.TransportProtocolNumber(proto), HopLimit: 64, SrcAddr: address(src), DstAddr: address(dst)})
	return append(b, payload...)
}

func tcpSegment(sport, dport uint16, flags uint8, seq, acked uint32, data int) []byte {
	b := make([]byte, header.TCPMinimumSize+data)
	header.TCP(b).Encode(&header.TCPFields{SrcPort: sport, DstPort: dport, SeqNum: seq, AckNum: acked, DataOffset: header.TCPMinimumSize, Flags: header.TCPFlags(flags), WindowSize: 1000})
	return b
}

func tcpPacket(src, dst string, sport, dport uint16, flags uint8, seq, acked uint32, data int) []byte {
	return ipPacket(src, dst, tcp, tcpSegment(sport, dport, flags, seq, acked, data))
}

func udpDatagram(sport, dport uint16, data int) []byte {
	b := make([]byte, header.UDPMinimumSize+data)
	header.UDP(b).Encode(&header.UDPFields{SrcPort: sport, DstPort: dport, Length: uint16(len(b))})
	return b
}

func udpPacket(src, dst string, sport, dport uint16, data int) []byte {
	return ipPacket(src, dst, udp, udpDatagram(sport, dport, data))
}

func icmpMessage(kind, code uint8, id uint16, data []byte) []byte {
	b := append([]byte{kind, code, 0, 0, 0, 0, 0, 1}, data...)
	binary.BigEndian.PutUint16(b[4:], id)
	return b
}

func ping(src, dst string, id uint16) []byte {
	if netip.MustParseAddr(src).Is6() {
		return ipPacket(src, dst, icmp6, icmpMessage(echo6, 0, id, make([]byte, 56)))
	}
	return ipPacket(src, dst, icmp4, icmpMessage(echo4, 0, id, make([]byte, 56)))
}

func pong(src, dst string, id uint16) []byte {
	if netip.MustParseAddr(src).Is6() {
		return ipPacket(src, dst, icmp6, icmpMessage(echoReply6, 0, id, make([]byte, 56)))
	}
	return ipPacket(src, dst, icmp4, icmpMessage(echoReply4, 0, id, make([]byte, 56)))
}

// unreachable is an ICMP error that quotes a packet.
func unreachable(src, dst string, quoted []byte) []byte {
	if netip.MustParseAddr(src).Is6() {
		return ipPacket(src, dst, icmp6, icmpMessage(1, 4, 0, quoted))
	}
	return ipPacket(src, dst, icmp4, icmpMessage(3, 3, 0, quoted[:min(len(quoted), 28)]))
}

// fragments4 is one piece of an IPv4 datagram; at is in bytes.
func fragments4(src, dst string, proto uint8, id uint16, at int, more bool, piece []byte) []byte {
	b := ipPacket(src, dst, proto, piece)
	binary.BigEndian.PutUint16(b[4:], id)
	v := uint16(at / 8)
	if more {
		v |= 0x2000
	}
	binary.BigEndian.PutUint16(b[6:], v)
	return b
}

// fragments6 is one piece of an IPv6 datagram.
func fragments6(src, dst string, proto uint8, id uint32, at int, more bool, piece []byte) []byte {
	h := make([]byte, 8, 8+len(piece))
	h[0] = proto
	v := uint16(at)
	if more {
		v |= 1
	}
	binary.BigEndian.PutUint16(h[2:], v)
	binary.BigEndian.PutUint32(h[4:], id)
	return ipPacket(src, dst, fragment, append(h, piece...))
}

// goodChecksums reports whether a packet that we made is right in every sum.
func goodChecksums(t *testing.T, b []byte) {
	t.Helper()
	var src, dst tcpip.Address
	var payload []byte
	var proto tcpip.TransportProtocolNumber
	if header.IPVersion(b) == 4 {
		h := header.IPv4(b)
		if !h.IsValid(len(b)) || !h.IsChecksumValid() || int(h.TotalLength()) != len(b) {
			t.Errorf("a bad IPv4 header: %x", b)
			return
		}
		src, dst, payload, proto = h.SourceAddress(), h.DestinationAddress(), h.Payload(), h.TransportProtocol()
	} else {
		h := header.IPv6(b)
		if !h.IsValid(len(b)) || int(h.PayloadLength())+40 != len(b) {
			t.Errorf("a bad IPv6 header: %x", b)
			return
		}
		src, dst, payload, proto = h.SourceAddress(), h.DestinationAddress(), h.Payload(), h.TransportProtocol()
	}
	sum := uint16(0)
	if proto != header.ICMPv4ProtocolNumber {
		sum = header.PseudoHeaderChecksum(proto, src, dst, uint16(len(payload)))
	}
	if v := gvisorsum.Checksum(payload, sum); v != 0xffff {
		t.Errorf("a bad checksum of protocol %d: %#x", proto, v)
	}
}

// flagged returns a TCP packet of IPv4 with other flags.
func flagged(p []byte, flags uint8) []byte {
	p[minIPv4+13] = flags
	return p
}
