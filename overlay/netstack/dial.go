package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// backlog is how many connections wait for Accept: as many as Linux lets wait.
const backlog = 4096

var (
	errNoAddress = errors.New("this node has no address yet")
	errNotIPv4   = errors.New("only IPv4 passes the overlay")
)

// Dial connects to an address of the overlay, or of a network that a node
// carries; network is tcp or udp. from is one of the stack's addresses, the zero
// value its first. Errors are those of the system: errors.Is(err,
// syscall.ECONNREFUSED) says that nobody listens there.
func (s *Stack) Dial(ctx context.Context, network string, from netip.Addr, to netip.AddrPort) (net.Conn, error) {
	var c net.Conn
	at, err := s.full(netip.AddrPortFrom(from, 0))
	var there tcpip.FullAddress
	if err == nil {
		there, err = s.full(to)
	}
	if err == nil {
		switch network {
		case "tcp":
			c, err = s.dialTCP(ctx, at, there)
		case "udp":
			if d, derr := s.dialUDP(&at, &there); derr != nil {
				err = derr
			} else {
				c = d
			}
		default:
			err = net.UnknownNetworkError(network)
		}
	}
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: addrOf(network, to), Err: err}
	}
	return c, nil
}

func addrOf(network string, a netip.AddrPort) net.Addr {
	if network == "udp" {
		return net.UDPAddrFromAddrPort(a)
	}
	return net.TCPAddrFromAddrPort(a)
}

// full is an address in the stack's words; one without an IP is the stack's own.
func (s *Stack) full(a netip.AddrPort) (tcpip.FullAddress, error) {
	ip := a.Addr()
	if !ip.IsValid() || ip.IsUnspecified() {
		if ip = s.own(); !ip.IsValid() {
			return tcpip.FullAddress{}, errNoAddress
		}
	}
	if !ip.Is4() {
		return tcpip.FullAddress{}, fmt.Errorf("%s: %w", ip, errNotIPv4)
	}
	return tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom4(ip.As4()), Port: a.Port()}, nil
}

func (s *Stack) dialTCP(ctx context.Context, from, to tcpip.FullAddress) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	wq := new(waiter.Queue)
	ep, terr := s.stack.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, wq)
	if terr != nil {
		return nil, errnoOf(terr)
	}
	account := s.budget.account(netip.Addr{})
	if account == nil {
		s.noRoom()
		ep.Close()
		return nil, syscall.ENOBUFS
	}
	account.holds(ep)
	entry, connected := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	if terr = s.bind(ep, from); terr == nil {
		terr = ep.Connect(to)
	}
	if _, began := terr.(*tcpip.ErrConnectStarted); began {
		select {
		case <-ctx.Done():
			account.close()
			ep.Close()
			return nil, ctx.Err()
		case <-connected:
			terr = ep.LastError()
		}
	}
	if terr != nil {
		account.close()
		ep.Close()
		return nil, errnoOf(terr)
	}
	return s.newStream(wq, ep, account), nil
}

const (
	firstPort, lastPort = 16384, 65535 // of those that dial; Linux takes 32768 to 60999
	mostTaken           = 256          // ports in a row that may be taken
)

// bind gives a connection its port: each has its turn. One that was drawn could be
// one of the last second's, of which the other end has not seen the end yet and
// would refuse the next beginning.
func (s *Stack) bind(ep tcpip.Endpoint, from tcpip.FullAddress) (terr tcpip.Error) {
	for range mostTaken {
		from.Port = uint16(firstPort + s.nextPort.Add(1)%(lastPort-firstPort+1))
		terr = ep.Bind(from)
		if _, taken := terr.(*tcpip.ErrPortInUse); !taken {
			return terr
		}
	}
	return terr
}

// dialUDP makes a socket; to is nil for one that is not connected.
func (s *Stack) dialUDP(from, to *tcpip.FullAddress) (*datagrams, error) {
	wq := new(waiter.Queue)
	ep, terr := s.stack.NewEndpoint(udp.ProtocolNumber, ipv4.ProtocolNumber, wq)
	if terr != nil {
		return nil, errnoOf(terr)
	}
	if terr = ep.Bind(*from); terr == nil && to != nil {
		terr = ep.Connect(*to)
	}
	if terr != nil {
		ep.Close()
		return nil, errnoOf(terr)
	}
	return newDatagrams(&s.denied, wq, ep), nil
}

// Listen accepts connections to an address of this node; network is tcp.
func (s *Stack) Listen(_ context.Context, network string, at netip.AddrPort) (net.Listener, error) {
	l, err := s.listenTCP(at)
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Addr: addrOf(network, at), Err: err}
	}
	return l, nil
}

func (s *Stack) listenTCP(at netip.AddrPort) (net.Listener, error) {
	a, err := s.full(at)
	if err != nil {
		return nil, err
	}
	wq := new(waiter.Queue)
	ep, terr := s.stack.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, wq)
	if terr != nil {
		return nil, errnoOf(terr)
	}
	if terr = ep.Bind(a); terr == nil {
		terr = ep.Listen(backlog)
	}
	if terr != nil {
		ep.Close()
		return nil, errnoOf(terr)
	}
	return &listener{s: s, wq: wq, ep: ep, done: make(chan struct{})}, nil
}

// ListenPacket receives datagrams for an address of this node; network is udp.
func (s *Stack) ListenPacket(_ context.Context, network string, at netip.AddrPort) (net.PacketConn, error) {
	a, err := s.full(at)
	if err == nil {
		var c *datagrams
		if c, err = s.dialUDP(&a, nil); err == nil {
			return c, nil
		}
	}
	return nil, &net.OpError{Op: "listen", Net: network, Addr: addrOf(network, at), Err: err}
}

// ListenICMP returns a socket for ICMP messages of this node: what arrives of
// them, and what is written. Addresses are *net.IPAddr.
func (s *Stack) ListenICMP() (net.PacketConn, error) {
	wq := new(waiter.Queue)
	ep, err := s.stack.NewRawEndpoint(icmp.ProtocolNumber4, ipv4.ProtocolNumber, wq, true)
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: "ip4:icmp", Err: errnoOf(err)}
	}
	return &messages{newDatagrams(&s.denied, wq, ep)}, nil
}
