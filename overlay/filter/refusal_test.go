package filter

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// TestRefused: who begins a flow can tell a policy's refusal from a closed port,
// and from an unreachable host.
func TestRefused(t *testing.T) {
	remote := func(host string, port uint16) netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr(host), port)
	}
	laptop := func(t *testing.T) *rig {
		return newRig(t, Rules{Self: []netip.Addr{netip.MustParseAddr(alice), netip.MustParseAddr(alice6)}}, Options{})
	}
	for _, c := range []struct {
		name   string
		proto  uint8
		sent   []byte
		to     netip.AddrPort
		answer func([]byte) []byte // nil: what the gateway's filter says
		want   bool
	}{
		{"tcp by policy", tcp, tcpPacket(alice, nas, 50000, 80, syn, 1, 0, 0), remote(nas, 80), nil, true},
		{"tcp of IPv6 by policy", tcp, tcpPacket(alice6, nas6, 50000, 80, syn, 1, 0, 0), remote(nas6, 80), nil, true},
		{"udp by policy", udp, udpPacket(alice, nas, 50000, 80, 9), remote(nas, 80), nil, true},
		{"udp of IPv6 by policy", udp, udpPacket(alice6, nas6, 50000, 80, 9), remote(nas6, 80), nil, true},
		{"a closed port", tcp, tcpPacket(alice, nas, 50000, 22, syn, 1, 0, 0), remote(nas, 22), func([]byte) []byte {
			return tcpPacket(nas, alice, 22, 50000, rst|ack, 0, 2, 0)
		}, false},
		{"a closed port of UDP", udp, udpPacket(alice, nas, 50000, 53, 9), remote(nas, 53), func(sent []byte) []byte {
			return unreachable(nas, alice, sent)
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			near, far := laptop(t), newRig(t, labRules(), Options{})
			near.out(Pass, c.sent)
			if near.f.Refused(c.proto, c.to, near.now) {
				t.Error("it is refused before anybody answered")
			}
			var answer []byte
			if c.answer != nil {
				answer = c.answer(c.sent)
			} else {
				answer = far.in(DropDenied, c.sent)
			}
			near.in(Pass, answer)
			if got := near.f.Refused(c.proto, c.to, near.now); got != c.want {
				t.Errorf("refused: %t, want %t", got, c.want)
			}
			if near.f.Refused(c.proto, c.to, near.now.Add(time.Nanosecond)) {
				t.Error("an old refusal counts for a new flow")
			}
			if near.f.Refused(c.proto, netip.AddrPortFrom(c.to.Addr(), 1), near.now) {
				t.Error("a refusal counts for another port")
			}
		})
	}
}

// TestRefusals: what was refused is listed once each, the newest first, as long
// as it is not too old.
func TestRefusals(t *testing.T) {
	near := newRig(t, Rules{Self: []netip.Addr{netip.MustParseAddr(alice)}}, Options{})
	closed := labRules()
	closed.Rules = nil
	far := newRig(t, closed, Options{})
	try := func(sent []byte) {
		t.Helper()
		near.out(Pass, sent)
		near.in(Pass, far.in(DropDenied, sent))
		near.now, far.now = near.now.Add(time.Second), far.now.Add(time.Second)
	}
	began := near.now
	try(tcpPacket(alice, nas, 50000, 80, syn, 1, 0, 0))
	try(ping(alice, nas, 7))
	try(ping(alice, nas, 8))
	try(udpPacket(alice, nas, 50000, 53, 9))
	try(tcpPacket(alice, nas, 50001, 80, syn, 1, 0, 0))
	texts := func(since time.Time) (list []string) {
		for _, r := range near.f.Refusals(since) {
			list = append(list, fmt.Sprint(r.Proto, " ", r.Remote, " ", r.At.Sub(began)))
		}
		return list
	}
	want := []string{"6 " + nas + ":80 4s", "17 " + nas + ":53 3s", "1 " + nas + ":0 2s"}
	if got := texts(began); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := texts(began.Add(3 * time.Second)); !slices.Equal(got, want[:2]) {
		t.Errorf("of late %q, want %q", got, want[:2])
	}
}

// TestCarried: what a member begins that this node carries needs a rule, is refused
// without one, and is told of as that member's.
func TestCarried(t *testing.T) {
	const phone = "172.18.0.30"
	r := labRules()
	r.Hosted = []netip.Addr{netip.MustParseAddr(phone), netip.MustParseAddr("172.18.0.31")} // the second is on this machine
	r.Sources = append(r.Sources, Source{Address: netip.MustParseAddr(phone), Node: "phone", User: "carol"})
	r.From, r.To = append(r.From, Set{"carried", ips(phone)}), append(r.To, Set{"far", ips("10.9.0.1")})
	r.Rules = append(r.Rules, Rule{Name: "far", From: []string{"carried"}, To: []string{"far"}, Services: []Service{{tcp, 22, 22}}})
	g := newRig(t, r, Options{})
	g.out(Pass, tcpPacket(phone, "10.9.0.1", 40000, 22, syn, 1, 0, 0))
	g.out(Pass, tcpPacket("172.18.0.31", "10.9.0.1", 40000, 80, syn, 1, 0, 0))
	if answer := g.out(DropDenied, tcpPacket(phone, "10.9.0.1", 40001, 80, syn, 1, 0, 0)); len(answer) == 0 {
		t.Error("it is refused without an answer")
	}
	events := make([]Event, 4)
	if n := g.f.Take(events); n != 1 || events[0].Kind != FlowDenied || events[0].User != "carol" || events[0].Local != netip.MustParseAddrPort("10.9.0.1:80") {
		t.Errorf("told of %+v", events[:n])
	}
}

// TestLeads: whoever a rule lets reach some port of a host, at whatever time.
func TestLeads(t *testing.T) {
	r := labRules()
	r.Sources = append(r.Sources, Source{Address: netip.MustParseAddr("172.18.0.99"), Node: "carol-1", User: "carol"})
	f := newRig(t, r, Options{}).f
	for _, c := range []struct {
		from, to string
		want     bool
	}{
		{alice, nas, true}, {alice6, nas6, true}, {alice, "192.168.1.77", false}, {alice, gateway, false}, {bob, "192.168.1.77", true},
		{bob, "192.168.2.1", false}, {"172.18.0.99", nas, false}, {"198.51.100.1", nas, false},
	} {
		if got := f.Leads(netip.MustParseAddr(c.from), netip.MustParseAddr(c.to)); got != c.want {
			t.Errorf("%s to %s: %t", c.from, c.to, got)
		}
	}
}

// TestRefusedByNobody: what nobody here began is not noted, or a peer could say
// what it likes.
func TestRefusedByNobody(t *testing.T) {
	g := newRig(t, labRules(), Options{})
	g.connect(alice, nas, 40000, 22)
	p := tcpPacket(alice, nas, 40000, 22, rst, 101, 0, 0)
	p[20+14], p[20+15] = refusalWindow>>8, refusalWindow&0xff
	g.in(Pass, p)
	if g.f.Refused(tcp, netip.MustParseAddrPort(alice+":40000"), g.now) {
		t.Error("a flow from the tunnel is noted as refused")
	}
}
