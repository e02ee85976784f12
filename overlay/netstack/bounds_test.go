package netstack

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// syn is a packet that asks for a connection.
func syn(from, to netip.AddrPort) []byte {
	k := flowKey{protoTCP, from, to}
	b := append(quote(k, header.TCPMinimumSize), make([]byte, header.TCPMinimumSize-8)...)
	h := header.TCP(b[header.IPv4MinimumSize:])
	h.Encode(&header.TCPFields{
		SrcPort: from.Port(), DstPort: to.Port(), SeqNum: 1, DataOffset: header.TCPMinimumSize,
		Flags: header.TCPFlagSyn, WindowSize: 65535,
	})
	sum := header.PseudoHeaderChecksum(header.TCPProtocolNumber, tcpip.AddrFrom4(from.Addr().As4()), tcpip.AddrFrom4(to.Addr().As4()), header.TCPMinimumSize)
	h.SetChecksum(^checksum.Checksum(h, sum))
	binary.BigEndian.PutUint16(b[4:], from.Port())
	ip := header.IPv4(b)
	ip.SetChecksum(0)
	ip.SetChecksum(^ip.CalculateChecksum())
	return b
}

// lone is a gateway's stack whose packets go nowhere.
func lone(t *testing.T) *Stack {
	t.Helper()
	s := newStack(t, Options{})
	apply(t, s, State{Addrs: []netip.Addr{gateway}, MTU: testMTU, Overlay: overlay, Serves: []netip.Prefix{lan}, Host: home})
	nowhere := newStack(t, Options{})
	var wires sync.WaitGroup
	wires.Go(func() { wire(s, nowhere) })
	t.Cleanup(func() {
		s.Close()
		nowhere.Close()
		wires.Wait()
	})
	return s
}

// TestAskedAgain: a SYN that comes again while the answer to the first is on its
// way takes no place for good.
func TestAskedAgain(t *testing.T) {
	s := lone(t)
	s.dialer = func(context.Context, netip.AddrPort) (*net.TCPConn, error) { return nil, syscall.EHOSTUNREACH }
	var asking sync.WaitGroup
	for range 4 {
		asking.Go(func() {
			for i := range 4000 {
				p := syn(netip.AddrPortFrom(laptop, uint16(1+i/4)), netip.AddrPortFrom(lanHost, 80))
				s.Write([][]byte{p}, 0)
			}
		})
	}
	asking.Wait()
	left := func() int {
		s.dials.mu.Lock()
		defer s.dials.mu.Unlock()
		return len(s.dials.of) + len(s.dials.source)
	}
	until(t, "no dial is left", func() bool { return left() == 0 })
}

// TestCloseInHandshake: who asked and then says nothing does not hold Close up.
func TestCloseInHandshake(t *testing.T) {
	s := lone(t)
	port, accepted := hostListener(t)
	s.Write([][]byte{syn(netip.AddrPortFrom(laptop, 4000), netip.AddrPortFrom(gateway, port))}, 0)
	take(t, accepted)
	until(t, "the flow is there", func() bool { return s.flows.number(protoTCP) == 1 })
	began := time.Now()
	s.Close()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
}

// TestClosedMeanwhile: a connection that is made while the stack is closed, or the
// network taken away, does not stay.
func TestClosedMeanwhile(t *testing.T) {
	for name, stop := range map[string]func(s *Stack){
		"closed": func(s *Stack) { go s.Close(); <-s.ctx.Done() },
		"withdrawn": func(s *Stack) {
			apply(t, s, State{Addrs: []netip.Addr{gateway}, MTU: testMTU, Overlay: overlay})
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := lone(t)
			port, accepted := hostListener(t)
			s.dialer = func(_ context.Context, to netip.AddrPort) (*net.TCPConn, error) {
				c, err := dialHost(context.Background(), to)
				stop(s)
				return c, err
			}
			s.Write([][]byte{syn(netip.AddrPortFrom(laptop, 4000), netip.AddrPortFrom(gateway, port))}, 0)
			far := take(t, accepted)
			if _, err := far.Read(make([]byte, 1)); err == nil || isTimeout(err) {
				t.Errorf("the host's side goes on: %v", err)
			}
		})
	}
}

// TestNoBroadcast: a datagram for a whole network is no more passed on than by a
// router.
func TestNoBroadcast(t *testing.T) {
	p := newPair(t, Options{})
	apply(t, p.gateway, State{Addrs: []netip.Addr{gateway}, MTU: testMTU, Overlay: overlay, Host: netip.MustParseAddr("127.255.255.255")})
	c := p.mustDial(t, "udp", netip.AddrPortFrom(gateway, 9))
	if _, err := c.Write([]byte("everybody?")); err != nil {
		t.Fatal(err)
	}
	until(t, "it is refused", func() bool { return p.gateway.count.forbidden.Load() == 1 })
	if n := p.gateway.flows.number(protoUDP); n != 0 {
		t.Errorf("%d flows", n)
	}
}
