package filter

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

func TestReplies(t *testing.T) {
	g := newRig(t, labRules(), Options{})
	g.connect(alice, nas, 40000, 22)
	g.connect(alice6, nas6, 40000, 22)
	g.in(Pass, udpPacket(alice, nas, 5000, 53, 30))
	g.out(Pass, udpPacket(nas, alice, 53, 5000, 300))
	g.in(Pass, ping(alice, nas, 7))
	g.out(Pass, pong(nas, alice, 7))
	g.in(Pass, ping(alice6, nas6, 7))
	g.out(Pass, pong(nas6, alice6, 7))
	// Answers to nothing, in both directions.
	g.out(DropNoFlow, pong(nas, alice, 8))
	g.in(DropNoFlow, pong(alice, nas, 8))
	g.in(DropNoFlow, tcpPacket(alice, nas, 40001, 22, syn|ack, 1, 1, 0))
	g.in(DropNoFlow, tcpPacket(alice, nas, 40001, 22, rst, 1, 0, 0))
	// The LAN begins nothing.
	g.out(DropNotOwn, tcpPacket(nas, alice, 1234, 80, syn, 1, 0, 0))
	g.out(DropNotOwn, udpPacket(other, alice, 1234, 80, 10))
	g.out(DropNotOwn, ping(nas, alice, 9))
	// This node does, and gets the answers.
	g.out(Pass, ping(gateway, alice, 9))
	g.in(Pass, pong(alice, gateway, 9))
	g.out(Pass, tcpPacket(gateway, alice, 50000, 80, syn, 1, 0, 0))
	g.in(Pass, tcpPacket(alice, gateway, 80, 50000, syn|ack, 1, 2, 0))
	// Having been called is no permission to call.
	g.in(DropDenied, tcpPacket(alice, gateway, 80, 50000, syn, 5, 0, 0))
	g.out(DropNotOwn, tcpPacket(nas, alice, 22, 40000, syn, 5, 0, 0))
	if n := g.counter("flows"); n != 7 {
		t.Errorf("%d flows", n)
	}
}

func TestDenied(t *testing.T) {
	g := newRig(t, labRules(), Options{})
	for _, c := range []struct {
		name   string
		p      []byte
		want   Verdict
		answer string
	}{
		{"SYN", tcpPacket(alice, nas, 1, 80, syn, 100, 0, 0), DropDenied, "rst 80>1 seq 0 ack 101 flags 14"},
		{"SYN of IPv6", tcpPacket(alice6, nas6, 1, 80, syn, 100, 0, 0), DropDenied, "rst 80>1 seq 0 ack 101 flags 14"},
		{"ACK", tcpPacket(alice, nas, 1, 80, ack, 100, 55, 3), DropDenied, "rst 80>1 seq 55 ack 0 flags 4"},
		{"RST", tcpPacket(alice, nas, 1, 80, rst, 100, 0, 0), DropNoFlow, ""},
		{"UDP", udpPacket(alice, nas, 1, 80, 9), DropDenied, "icmp 3/13 from " + gateway},
		{"UDP of IPv6", udpPacket(alice6, nas6, 1, 80, 9), DropDenied, "icmp 1/1 from " + gateway6},
		{"UDP, long", udpPacket(alice, nas, 1, 80, 1300), DropDenied, "icmp 3/13 from " + gateway},
		{"UDP of IPv6, long", udpPacket(alice6, nas6, 1, 80, 1300), DropDenied, "icmp 1/1 from " + gateway6},
		{"echo", ping(alice, other, 1), DropDenied, "icmp 3/13 from " + gateway},
		{"another protocol", ipPacket(alice, nas, 47, make([]byte, 8)), DropDenied, "icmp 3/13 from " + gateway},
		{"a fragment", fragments4(alice, nas, udp, 1, 0, true, udpDatagram(1, 80, 16)), DropDenied, ""},
		{"a stranger", udpPacket("172.18.0.99", nas, 1, 53, 9), DropStranger, ""},
		{"a spoofed host", udpPacket(nas, other, 1, 53, 9), DropSpoofed, ""},
		{"a spoofed gateway", tcpPacket(gateway, nas, 1, 22, syn, 9, 0, 0), DropSpoofed, ""},
		{"an error about nothing", unreachable(alice, nas, udpPacket(nas, alice, 1, 2, 9)), DropICMPUnmatched, ""},
		{"an error about the LAN's own", unreachable(nas, gateway, udpPacket(nas, alice, 1, 2, 9)), DropSpoofed, ""},
		{"a redirect", ipPacket(alice, nas, icmp4, icmpMessage(5, 0, 0, make([]byte, 28))), DropICMPType, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			g.t = t
			answer := g.in(c.want, c.p)
			if got := describe(answer); got != c.answer {
				t.Errorf("the answer is %q, want %q", got, c.answer)
			}
			if answer != nil {
				goodChecksums(t, answer)
			}
		})
	}
}

// describe says what an answer is, by gVisor's reading.
func describe(b []byte) string {
	if b == nil {
		return ""
	}
	payload, proto, src := []byte(nil), 0, ""
	if b[0]>>4 == 4 {
		h := header.IPv4(b)
		payload, proto, src = h.Payload(), int(h.Protocol()), h.SourceAddress().String()
	} else {
		h := header.IPv6(b)
		payload, proto, src = h.Payload(), int(h.NextHeader()), h.SourceAddress().String()
	}
	if proto == tcp {
		h := header.TCP(payload)
		return fmt.Sprintf("rst %d>%d seq %d ack %d flags %x", h.SourcePort(), h.DestinationPort(), h.SequenceNumber(), h.AckNumber(), uint8(h.Flags()))
	}
	return fmt.Sprintf("icmp %d/%d from %s", payload[0], payload[1], netip.MustParseAddr(src))
}

func TestAnswersAreLimited(t *testing.T) {
	g := newRig(t, labRules(), Options{})
	answered := 0
	flood := func() {
		for i := range 1000 {
			if g.in(DropDenied, tcpPacket(alice, nas, uint16(i+1), 80, syn, 100, 0, 0)) != nil {
				answered++
			}
		}
	}
	flood()
	if answered < answerBurst || answered > answerBurst+1 {
		t.Errorf("%d of 1000 answered at once", answered)
	}
	g.now = g.now.Add(100 * time.Millisecond)
	answered = 0
	flood()
	if answered != 10 {
		t.Errorf("%d answered in 100 ms", answered)
	}
	// Another source is not the worse for it.
	rules := labRules()
	rules.Rules = rules.Rules[:1]
	g.swap(rules)
	if g.in(DropDenied, tcpPacket(bob, nas, 1, 80, syn, 100, 0, 0)) == nil {
		t.Error("bob gets no answer")
	}
	// A batch of nothing but denied packets has room for some answers, no more.
	var batch [][]byte
	for i := range 128 {
		batch = append(batch, udpPacket(bob, nas, uint16(i+1), 80, 1200))
	}
	g.now = g.now.Add(time.Minute)
	g.f.In(g.now, batch, &g.b)
	if n := len(g.b.Answers); n == 0 || n > 7 {
		t.Errorf("%d long answers in one batch", n)
	}
}

func TestICMPErrors(t *testing.T) {
	g := newRig(t, labRules(), Options{})
	g.connect(alice, nas, 40000, 22)
	g.in(Pass, udpPacket(alice6, nas6, 5000, 53, 30))
	g.in(Pass, ping(alice, nas, 3))
	g.out(Pass, tcpPacket(gateway, alice, 50000, 80, syn, 1, 0, 0))
	// From the LAN, its routers and this node, about what came in.
	g.out(Pass, unreachable(nas, alice, tcpPacket(alice, nas, 40000, 22, ack, 1, 1, 0)))
	g.out(Pass, unreachable("192.168.1.1", alice, tcpPacket(alice, nas, 40000, 22, ack, 1, 1, 0)))
	g.out(Pass, unreachable(gateway, alice, ping(alice, nas, 3)))
	g.out(Pass, unreachable(nas6, alice6, udpPacket(alice6, nas6, 5000, 53, 30)))
	// From the tunnel, about what went out.
	g.in(Pass, unreachable(alice, nas, tcpPacket(nas, alice, 22, 40000, ack, 1, 1, 0)))
	g.in(Pass, unreachable(alice, gateway, tcpPacket(gateway, alice, 50000, 80, syn, 1, 0, 0)))
	// Not to somebody else, about another flow, the wrong way round, or without ports.
	g.out(DropICMPUnmatched, unreachable(nas, bob, tcpPacket(alice, nas, 40000, 22, ack, 1, 1, 0)))
	g.out(DropICMPUnmatched, unreachable(nas, alice, tcpPacket(alice, nas, 40000, 23, ack, 1, 1, 0)))
	g.in(DropICMPUnmatched, unreachable(alice, nas, tcpPacket(alice, nas, 40000, 22, ack, 1, 1, 0)))
	g.out(DropICMPUnmatched, unreachable(nas, alice, fragments4(alice, nas, tcp, 1, 64, false, make([]byte, 24))))
	g.out(DropICMPUnmatched, unreachable(nas, alice, tcpPacket(alice, nas, 40000, 22, ack, 1, 1, 0)[:24]))
	g.out(DropICMPUnmatched, unreachable(nas, alice, unreachable(alice, nas, tcpPacket(nas, alice, 22, 40000, ack, 1, 1, 0))))
	// Nor about one that was cut.
	g.f.Cut(g.now, func(f Flow) bool { return f.Proto == tcp })
	g.out(DropICMPUnmatched, unreachable(nas, alice, tcpPacket(alice, nas, 40000, 22, ack, 1, 1, 0)))
}

func TestFragments(t *testing.T) {
	g := newRig(t, labRules(), Options{})
	datagram := udpDatagram(5000, 53, 3000)
	piece := func(id uint16, from, to int) []byte {
		return fragments4(alice, nas, udp, id, from, to < len(datagram), datagram[from:to])
	}
	end := len(datagram)
	g.in(Pass, piece(1, 0, 1000))
	g.in(Pass, piece(1, 2000, end))
	g.in(Pass, piece(1, 1000, 2000))
	g.in(DropFragmentOver, piece(1, 1000, 2000))
	g.in(DropFragmentOver, piece(1, 992, 1000))
	g.in(DropFragmentOver, piece(1, 0, 1000))
	g.in(DropFragmentLost, piece(2, 1000, 2000)) // before its first
	g.in(DropFragmentTiny, fragments4(alice, nas, tcp, 3, 0, true, tcpSegment(1, 22, syn, 1, 0, 0)[:16]))
	g.in(DropFragmentOdd, fragments4(alice, nas, udp, 3, 0, true, nil)[:20]) // nothing at all
	g.in(DropFragmentOdd, fragments4(alice, nas, udp, 4, 0, true, datagram[:1001]))
	g.in(DropFragmentOdd, fragments4(alice, nas, udp, 4, 65528, false, datagram[:16]))
	// The header of a denied one, and of another flow behind an allowed first.
	g.in(DropDenied, fragments4(alice, nas, udp, 5, 0, true, udpDatagram(5000, 80, 56)))
	g.in(DropFragmentLost, fragments4(alice, nas, udp, 5, 64, false, make([]byte, 64)))
	g.in(Pass, fragments4(alice, nas, udp, 6, 0, true, udpDatagram(5000, 53, 56)))
	g.in(DropDenied, fragments4(alice, nas, udp, 6, 0, true, udpDatagram(5000, 80, 56)))
	g.in(DropFragmentOver, fragments4(alice, nas, udp, 6, 0, true, udpDatagram(5001, 53, 56)))
	g.in(DropFragmentOver, fragments4(alice, nas, udp, 6, 8, false, make([]byte, 64)))
	// Its first fragment long ago: the receiver has forgotten it too.
	g.now = g.now.Add(31 * time.Second)
	g.in(DropFragmentLost, fragments4(alice, nas, udp, 6, 64, false, make([]byte, 64)))
	// Answers come in fragments as well, and so do echoes.
	g.in(Pass, udpPacket(alice, nas, 5000, 53, 30))
	g.out(Pass, fragments4(nas, alice, udp, 1, 0, true, udpDatagram(53, 5000, 56)))
	g.out(Pass, fragments4(nas, alice, udp, 1, 64, false, make([]byte, 100)))
	g.in(Pass, fragments4(alice, nas, icmp4, 9, 0, true, icmpMessage(echo4, 0, 5, make([]byte, 56))))
	g.in(Pass, fragments4(alice, nas, icmp4, 9, 64, false, make([]byte, 9)))
	g.in(DropFragmentOdd, fragments4(alice, nas, icmp4, 10, 0, true, icmpMessage(3, 3, 5, make([]byte, 56))))
	// Nothing comes through in pieces of a flow that was cut.
	g.f.Cut(g.now, func(Flow) bool { return true })
	g.in(DropCut, fragments4(alice, nas, icmp4, 9, 80, false, make([]byte, 9)))
}

func TestFragments6(t *testing.T) {
	g := newRig(t, labRules(), Options{})
	g.in(Pass, fragments6(alice6, nas6, udp, 1, 0, true, udpDatagram(5000, 53, 56)))
	g.in(Pass, fragments6(alice6, nas6, udp, 1, 64, false, make([]byte, 50)))
	g.in(Pass, fragments6(alice6, nas6, udp, 2, 0, false, udpDatagram(5000, 53, 56))) // the only one
	g.in(DropDenied, fragments6(alice6, nas6, udp, 2, 0, false, udpDatagram(5000, 80, 56)))
	g.in(DropFragmentLost, fragments6(alice6, nas6, udp, 3, 64, false, make([]byte, 50)))
	g.in(DropFragmentTiny, fragments6(alice6, nas6, tcp, 4, 0, true, make([]byte, 16)))
	// The transport hides behind another header, which is not all there.
	g.in(DropFragmentTiny, fragments6(alice6, nas6, dstOpts, 5, 0, true, []byte{udp, 2, 1, 12, 0, 0, 0, 0}))
	// One that claims another protocol than its first is the same datagram.
	g.in(Pass, fragments6(alice6, nas6, udp, 6, 0, true, udpDatagram(5000, 53, 56)))
	g.in(DropFragmentOver, fragments6(alice6, nas6, tcp, 6, 0, true, tcpSegment(1, 22, syn, 1, 0, 44)))
}

func TestExtensionHeaders(t *testing.T) {
	g := newRig(t, labRules(), Options{})
	options := func(next uint8, rest []byte) []byte { return append([]byte{next, 0, 1, 4, 0, 0, 0, 0}, rest...) }
	u := udpDatagram(5000, 53, 8)
	for _, c := range []struct {
		name  string
		first uint8
		b     []byte
		want  Verdict
	}{
		{"hop by hop", hopByHop, options(udp, u), Pass},
		{"destination options", dstOpts, options(udp, u), Pass},
		{"both", hopByHop, options(dstOpts, options(udp, u)), Pass},
		{"both, denied", hopByHop, options(dstOpts, options(udp, udpDatagram(5000, 54, 8))), DropDenied},
		{"hop by hop not first", dstOpts, options(hopByHop, options(udp, u)), DropExtension},
		{"five", dstOpts, options(dstOpts, options(dstOpts, options(dstOpts, options(dstOpts, options(udp, u))))), DropExtension},
		{"routing", routing, options(udp, u), DropRouting},
		{"authentication", auth, options(udp, u), DropExtension},
		{"mobility", mobility, options(udp, u), DropExtension},
		{"experimental", testing1, options(udp, u), DropExtension},
		{"nothing more", noNext, u, DropExtension},
		{"two fragment headers", fragment, append([]byte{fragment, 0, 0, 0, 0, 0, 0, 1}, append([]byte{udp, 0, 0, 0, 0, 0, 0, 1}, u...)...), DropExtension},
		{"ICMP of the other family", icmp4, icmpMessage(echo4, 0, 1, nil), DropTransportOdd},
		{"cut short", hopByHop, []byte{udp, 9, 1, 4, 0, 0, 0, 0}, DropTruncated},
	} {
		t.Run(c.name, func(t *testing.T) {
			g.t = t
			g.in(c.want, ipPacket(alice6, nas6, c.first, c.b))
		})
	}
}

// Every malformed packet has its name.
func TestMalformed(t *testing.T) {
	g := newRig(t, labRules(), Options{})
	change := func(p []byte, f func([]byte)) []byte { f(p); return p }
	ssh := func() []byte { return tcpPacket(alice, nas, 1, 22, syn, 1, 0, 0) }
	ssh6 := func() []byte { return tcpPacket(alice6, nas6, 1, 22, syn, 1, 0, 0) }
	option := func(o ...byte) []byte {
		p := ipPacket(alice, nas, tcp, append(o, tcpSegment(1, 22, syn, 1, 0, 0)...))
		p[0] = 0x40 | uint8(5+len(o)/4)
		return p
	}
	for _, c := range []struct {
		name string
		p    []byte
		want Verdict
	}{
		{"nothing", nil, DropNotIP},
		{"version 5", change(ssh(), func(b []byte) { b[0] = 0x55 }), DropNotIP},
		{"ends early", ssh()[:39], DropTruncated},
		{"half a header", ssh()[:10], DropTruncated},
		{"bytes after it", append(ssh(), 0), DropTrailing},
		{"header length 4", change(ssh(), func(b []byte) { b[0] = 0x44 }), DropHeader},
		{"header beyond the total", change(ssh(), func(b []byte) { b[0] = 0x4f }), DropHeader},
		{"no option", option(1, 1, 1, 0), Pass},
		{"source route", option(131, 4, 4, 0), DropOption},
		{"option of no length", option(7, 0, 0, 0), DropOption},
		{"option too long", option(7, 9, 0, 0), DropOption},
		{"IPv6 ends early", ssh6()[:59], DropTruncated},
		{"half an IPv6 header", ssh6()[:30], DropTruncated},
		{"bytes after IPv6", append(ssh6(), 0), DropTrailing},
		{"from loopback", tcpPacket("127.0.0.1", nas, 1, 22, syn, 1, 0, 0), DropSource},
		{"from multicast", tcpPacket("224.0.0.1", nas, 1, 22, syn, 1, 0, 0), DropSource},
		{"to multicast", udpPacket(alice, "224.0.0.251", 1, 5353, 0), DropMulticast},
		{"to broadcast", udpPacket(alice, "255.255.255.255", 1, 67, 0), DropMulticast},
		{"to multicast of IPv6", udpPacket(alice6, "ff02::fb", 1, 5353, 0), DropMulticast},
		{"of the kernel that looks for its own address", udpPacket("::", "ff02::1:ff00:1", 1, 1, 0), DropMulticast},
		{"to loopback", udpPacket(alice, "127.0.0.1", 1, 53, 0), DropDestination},
		{"to nobody", udpPacket(alice, "0.0.0.0", 1, 53, 0), DropDestination},
		{"to ::1", udpPacket(alice6, "::1", 1, 53, 0), DropDestination},
		{"from ::1", udpPacket("::1", nas6, 1, 53, 0), DropSource},
		{"an IPv4 address in IPv6", change(ssh6(), func(b []byte) {
			copy(b[8:], make([]byte, 10))
			b[18], b[19] = 255, 255
			copy(b[20:], []byte{172, 18, 0, 11})
		}), DropSource},
		{"no room for TCP", ipPacket(alice, nas, tcp, make([]byte, 19)), DropTransportShort},
		{"no room for UDP", ipPacket(alice, nas, udp, make([]byte, 7)), DropTransportShort},
		{"no room for ICMP", ipPacket(alice, nas, icmp4, make([]byte, 7)), DropTransportShort},
		{"TCP header too short", change(ssh(), func(b []byte) { b[32] = 0x40 }), DropTransportOdd},
		{"TCP header too long", change(ssh(), func(b []byte) { b[32] = 0x60 }), DropTransportShort},
		{"SYN and FIN", tcpPacket(alice, nas, 1, 22, syn|fin, 1, 0, 0), DropTransportOdd},
		{"SYN and RST", tcpPacket(alice, nas, 1, 22, syn|rst, 1, 0, 0), DropTransportOdd},
		{"no flags", tcpPacket(alice, nas, 1, 22, 0, 1, 0, 0), DropTransportOdd},
		{"UDP longer than it is", change(udpPacket(alice, nas, 1, 53, 4), func(b []byte) { b[25] = 13 }), DropTransportOdd},
		{"UDP shorter than its header", change(udpPacket(alice, nas, 1, 53, 4), func(b []byte) { b[25] = 7 }), DropTransportOdd},
		{"echo with a code", ipPacket(alice, nas, icmp4, icmpMessage(echo4, 1, 1, nil)), DropTransportOdd},
	} {
		t.Run(c.name, func(t *testing.T) {
			g.t = t
			before := g.f.counts[c.want].Load()
			g.in(c.want, c.p)
			if c.want != Pass && g.f.counts[c.want].Load() != before+1 {
				t.Error("it is not counted")
			}
		})
	}
	for v := range verdicts {
		if verdictNames[v] == "" || v != Pass && !strings.HasPrefix(v.String(), "drop_") {
			t.Errorf("verdict %d has the name %q", v, v)
		}
	}
}

func TestEvents(t *testing.T) {
	g := newRig(t, labRules(), Options{})
	g.connect(alice, nas, 40000, 22)
	g.in(Pass, tcpPacket(alice, nas, 40000, 22, ack|fin, 101, 901, 1000))
	g.out(Pass, tcpPacket(nas, alice, 22, 40000, ack|fin, 901, 1102, 500))
	g.in(Pass, tcpPacket(alice, nas, 40000, 22, ack, 1102, 1402, 0))
	for range 3 {
		g.in(DropDenied, udpPacket(alice, nas, 9, 80, 1)) // told once
	}
	g.now = g.now.Add(endedTCP)
	for range sweepParts {
		g.f.Tick(g.now)
	}
	events := make([]Event, 10)
	events = events[:g.f.Take(events)]
	var got []string
	for _, e := range events {
		got = append(got, fmt.Sprint(e.Kind, " ", e.User, " ", e.Node, " ", e.Remote, " ", e.Local, " ", e.Proto, " ", e.In, " ", e.Out, " ", e.Rule, " ", e.Why))
	}
	if ended := events[len(events)-1]; ended.Silent != endedTCP {
		t.Errorf("its last packet came %v earlier, want %v", ended.Silent, endedTCP)
	}
	want := []string{
		"began alice alice-1 172.18.0.11:40000 192.168.1.201:22 6 40 0 ssh ",
		"denied alice alice-1 172.18.0.11:9 192.168.1.201:80 17 29 0  policy",
		"ended alice alice-1 172.18.0.11:40000 192.168.1.201:22 6 1160 580 ssh closed",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A sink that nobody reads costs events and nothing else.
func TestEventsNeverBlock(t *testing.T) {
	g := newRig(t, labRules(), Options{Events: 4})
	for i := range 10 {
		g.in(Pass, tcpPacket(alice, nas, uint16(40000+i), 22, syn, 1, 0, 0))
	}
	if n := g.counter("events_lost"); n != 6 {
		t.Errorf("%d events lost", n)
	}
	select {
	case <-g.f.Wake():
	default:
		t.Error("nobody was woken")
	}
	if n := g.f.Take(make([]Event, 10)); n != 4 {
		t.Errorf("%d events taken", n)
	}
}

func TestTimeouts(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(*rig)
		live time.Duration
	}{
		{"half open", func(g *rig) { g.in(Pass, tcpPacket(alice, nas, 1, 22, syn, 1, 0, 0)) }, openingTCP},
		{"established", func(g *rig) { g.connect(alice, nas, 1, 22) }, liveTCP},
		{"closing", func(g *rig) {
			g.connect(alice, nas, 1, 22)
			g.in(Pass, tcpPacket(alice, nas, 1, 22, ack|fin, 101, 901, 0))
		}, endingTCP},
		{"reset", func(g *rig) {
			g.connect(alice, nas, 1, 22)
			g.out(Pass, tcpPacket(nas, alice, 22, 1, rst, 901, 0, 0))
		}, endedTCP},
		{"one datagram", func(g *rig) { g.in(Pass, udpPacket(alice, nas, 1, 53, 1)) }, openingUDP},
		{"answered datagram", func(g *rig) {
			g.in(Pass, udpPacket(alice, nas, 1, 53, 1))
			g.out(Pass, udpPacket(nas, alice, 53, 1, 1))
		}, liveUDP},
		{"echo", func(g *rig) { g.in(Pass, ping(alice, nas, 1)) }, openingUDP},
		{"another protocol", func(g *rig) { g.in(Pass, ipPacket(bob, nas, 47, make([]byte, 8))) }, liveOther},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newRig(t, labRules(), Options{})
			c.make(g)
			flows := func(after time.Duration) uint64 {
				for range sweepParts {
					g.f.Tick(g.now.Add(after))
				}
				return g.counter("flows")
			}
			if flows(c.live-time.Second) != 1 {
				t.Error("it ends too early")
			}
			if flows(c.live) != 0 {
				t.Error("it does not end")
			}
		})
	}
}
