package netstack

import (
	"errors"
	"net/netip"
	"syscall"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// TestProhibited: a datagram that is prohibited on its way is an error of the next Read,
// once; the socket goes on.
func TestProhibited(t *testing.T) {
	p := newPair(t, Options{})
	c := p.mustDial(t, "udp", netip.MustParseAddrPort("10.9.9.9:53"))
	buf := make([]byte, 16)
	for range 2 {
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(buf); !errors.Is(err, syscall.EHOSTUNREACH) {
			t.Errorf("a datagram is prohibited, and Read says %v", err)
		}
	}
	c.Close()
	if n := len(p.laptop.denied.of); n != 0 {
		t.Errorf("%d sockets are remembered", n)
	}
}

// refusal is an ICMP error of a router about a datagram of the laptop's.
func refusal(code header.ICMPv4Code, k flowKey) []byte {
	b := quote(flowKey{protoICMP, netip.AddrPortFrom(gateway, 0), netip.AddrPortFrom(laptop, 0)}, header.ICMPv4MinimumSize)
	h := header.ICMPv4(b[header.IPv4MinimumSize:])
	clear(h)
	h.SetType(header.ICMPv4DstUnreachable)
	h.SetCode(code)
	return append(b, quoteUDP(k)...)
}

func TestParseRefusal(t *testing.T) {
	from, to := netip.AddrPortFrom(laptop, 4000), netip.AddrPortFrom(lanHost, 53)
	datagram := flowKey{protoUDP, from, to}
	for name, tt := range map[string]struct {
		packet []byte
		errno  syscall.Errno // 0: it is none
	}{
		"by an admin":        {refusal(header.ICMPv4AdminProhibited, datagram), syscall.EHOSTUNREACH},
		"the host":           {refusal(header.ICMPv4HostProhibited, datagram), syscall.EHOSTUNREACH},
		"the network":        {refusal(header.ICMPv4NetProhibited, datagram), syscall.ENETUNREACH},
		"may be there later": {refusal(header.ICMPv4HostUnreachable, datagram), 0},
		"the stack tells it": {refusal(header.ICMPv4PortUnreachable, datagram), 0},
		"a connection":       {refusal(header.ICMPv4AdminProhibited, flowKey{protoTCP, from, to}), 0},
		"cut off":            {refusal(header.ICMPv4AdminProhibited, datagram)[:50], 0},
		"no error":           {quoteUDP(datagram), 0},
	} {
		k, errno, ok := parseRefusal(tt.packet)
		if ok != (tt.errno != 0) || errno != tt.errno || ok && k != (refused{from, to}) {
			t.Errorf("%s: %v %v %t", name, k, errno, ok)
		}
	}
}

func FuzzParseRefusal(f *testing.F) {
	f.Add(refusal(header.ICMPv4AdminProhibited, flowKey{protoUDP, netip.AddrPortFrom(laptop, 4000), netip.AddrPortFrom(lanHost, 53)}))
	f.Fuzz(func(t *testing.T, p []byte) {
		if k, errno, ok := parseRefusal(p); ok && (errno == 0 || !k.from.IsValid() || !k.to.IsValid()) {
			t.Errorf("%v %v", k, errno)
		}
	})
}
