package filter

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// TestNowhere: what this side begins to where no peer is, is refused at once, as
// whoever received it would; everything else goes on as before.
func TestNowhere(t *testing.T) {
	r := labRules()
	r.Hosted = []netip.Addr{netip.MustParseAddr("172.18.0.30")} // on this machine
	g := newRig(t, r, Options{})
	g.out(Pass, tcpPacket(gateway, "10.9.0.1", 50000, 80, syn, 100, 0, 0)) // nobody has said what is carried
	g.f.Carry([]netip.Prefix{netip.MustParsePrefix(alice + "/32"), netip.MustParsePrefix("10.8.0.0/16"), netip.MustParsePrefix("::/0")})
	for _, c := range []struct {
		name   string
		p      []byte
		want   Verdict
		answer string
	}{
		{"a peer", tcpPacket(gateway, alice, 50000, 80, syn, 100, 0, 0), Pass, ""},
		{"behind a peer", udpPacket(gateway, "10.8.3.4", 1, 53, 9), Pass, ""},
		{"IPv6", udpPacket(gateway6, alice6, 1, 53, 9), Pass, ""},
		{"TCP from before there was a filter", tcpPacket(gateway, "10.9.0.1", 50003, 80, ack|psh, 100, 7, 10), DropNowhere, "rst 80>50003 seq 7 ack 0 flags 4"},
		{"TCP", tcpPacket(gateway, "10.9.0.1", 50001, 80, syn, 100, 0, 0), DropNowhere, "rst 80>50001 seq 0 ack 101 flags 14"},
		{"TCP of a seat", tcpPacket("172.18.0.30", bob, 50001, 80, syn, 100, 0, 0), DropNowhere, "rst 80>50001 seq 0 ack 101 flags 14"},
		{"UDP", udpPacket(gateway, bob, 1, 53, 9), DropNowhere, "icmp 3/13 from " + bob},
		{"echo", ping(gateway, "10.9.0.2", 1), DropNowhere, "icmp 3/13 from 10.9.0.2"},
		{"a fragment", fragments4(gateway, bob, udp, 1, 0, true, udpDatagram(1, 80, 16)), DropNowhere, ""},
		{"a reset", tcpPacket(gateway, "10.9.0.1", 50002, 80, rst, 100, 0, 0), DropNoFlow, ""},
		{"a flow from before", tcpPacket(gateway, "10.9.0.1", 50000, 80, syn, 100, 0, 0), Pass, ""},
		{"from a host behind", tcpPacket(nas, "10.9.0.1", 50000, 80, syn, 100, 0, 0), DropNotOwn, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			g.t = t
			answer := g.out(c.want, c.p)
			if got := describe(answer); got != c.answer {
				t.Errorf("the answer is %q, want %q", got, c.answer)
			}
			if answer != nil {
				goodChecksums(t, answer)
			}
		})
	}
	list := g.f.Refusals(g.now)
	if len(list) != 4 || !list[3].Nowhere || list[3].Remote != netip.MustParseAddrPort("10.9.0.1:80") || list[0].Remote.Port() != 0 {
		t.Errorf("refused %+v", list)
	}
	if n := testing.AllocsPerRun(100, func() {
		g.f.Out(g.now, [][]byte{udpPacketTo}, &g.b)
	}); n > 0 {
		t.Errorf("%v allocations for a packet that goes nowhere", n)
	}
}

// TestNowhereForAnother: what a member that this machine carries is refused is no
// refusal of this machine's own, nor does it use up the answers for this machine.
func TestNowhereForAnother(t *testing.T) {
	r := labRules()
	r.Hosted = []netip.Addr{netip.MustParseAddr(bob)}
	r.To[1].Prefixes = append(r.To[1].Prefixes, netip.MustParsePrefix("10.9.0.0/16"))
	g := newRig(t, r, Options{})
	g.f.Carry([]netip.Prefix{netip.MustParsePrefix(alice + "/32")})
	for range 2 * answerBurst {
		g.out(DropNowhere, tcpPacket(bob, "10.9.0.1", 50000, 80, syn, 100, 0, 0))
	}
	if got := describe(g.out(DropNowhere, udpPacket(gateway, "10.9.0.1", 1, 53, 9))); got != "icmp 3/13 from 10.9.0.1" {
		t.Errorf("this machine gets %q", got)
	}
	if list := g.f.Refusals(g.now); len(list) != 1 || list[0].Proto != udp {
		t.Errorf("refused %+v", list)
	}
}

// TestCarriedAgainstPrefixes compares the look-up with the plain question.
func TestCarriedAgainstPrefixes(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	random := func() netip.Addr {
		b := [16]byte{byte(r.IntN(2)), byte(r.IntN(2)), byte(r.IntN(2)), byte(r.IntN(2))}
		if r.IntN(2) == 0 {
			return netip.AddrFrom4([4]byte(b[:4]))
		}
		return netip.AddrFrom16(b)
	}
	f := newRig(t, labRules(), Options{}).f
	for range 500 {
		var list []netip.Prefix
		for range r.IntN(5) {
			a := random()
			list = append(list, netip.PrefixFrom(a, r.IntN(a.BitLen()+1)).Masked())
		}
		f.Carry(list)
		for range 20 {
			a := random()
			want := slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
			if got := f.carried.Load().leads(addrOf(a)); got != want {
				t.Fatalf("%v carry %s: %t", list, a, got)
			}
		}
	}
}

var udpPacketTo = udpPacket(gateway, bob, 1, 53, 9)
