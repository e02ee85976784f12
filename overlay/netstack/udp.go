package netstack

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// forwardUDP takes datagrams that belong to no socket of the stack.
func (s *Stack) forwardUDP() {
	fwd := udp.NewForwarder(s.stack, s.exchange)
	s.stack.SetTransportProtocolHandler(udp.ProtocolNumber, func(id stack.TransportEndpointID, p *stack.PacketBuffer) bool {
		dst := netip.AddrFrom4(id.LocalAddress.As4())
		st := s.state.Load()
		if _, ok := st.target(dst); !ok {
			for _, own := range st.Addrs {
				if own == dst {
					return false // the stack says that nobody listens
				}
			}
			s.count.forbidden.Add(1)
			s.unreachable(s.own(), netip.AddrFrom4(id.RemoteAddress.As4()), header.ICMPv4AdminProhibited, quoteUDP(keyOf(protoUDP, id)))
			return true
		}
		return fwd.HandlePacket(id, p)
	})
}

// exchange begins a flow with its first datagram. It is called by who delivers
// packets, and does not wait.
func (s *Stack) exchange(r *udp.ForwarderRequest) {
	k := keyOf(protoUDP, r.ID())
	to, ok := s.state.Load().target(k.dst.Addr())
	if !ok {
		return
	}
	x := &talk{s: s, stop: make(chan struct{})}
	x.flow = &flow{key: k, abort: x.end}
	if !s.flows.add(x.flow, idleUDPOnce, time.Now()) {
		s.count.full.Add(1)
		return
	}
	host, err := dialDatagrams(s.ctx, netip.AddrPortFrom(to, k.dst.Port()))
	if err != nil {
		s.flows.remove(x.flow)
		x.tell(err)
		return
	}
	ep, terr := r.CreateEndpoint(&x.wq)
	if terr != nil {
		s.flows.remove(x.flow)
		host.Close()
		return
	}
	local := host.LocalAddr().(*net.UDPAddr).AddrPort()
	x.flow.local.Store(&local)
	x.host, x.ep = host, ep
	if !s.goRun(x.run) {
		s.flows.remove(x.flow)
		host.Close()
		ep.Close()
	}
}

// talk is a flow of datagrams between the stack and the host's side.
type talk struct {
	s    *Stack
	flow *flow
	host *net.UDPConn
	ep   tcpip.Endpoint
	wq   waiter.Queue
	once sync.Once
	stop chan struct{} // closed by end
}

func (x *talk) end() { x.once.Do(func() { close(x.stop) }) }

// run carries until end is called.
func (x *talk) run() {
	var back sync.WaitGroup
	back.Go(x.outward)
	x.inward()
	x.host.Close() // ends outward
	back.Wait()
	x.ep.Close()
	x.s.flows.remove(x.flow)
}

// inward carries from the overlay to the host.
func (x *talk) inward() {
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventErr | waiter.EventHUp)
	x.wq.EventRegister(&entry)
	defer x.wq.EventUnregister(&entry)
	for {
		select {
		case <-x.stop: // whoever still sends does not put it off
			return
		default:
		}
		if x.inwardOne() {
			continue
		}
		select {
		case <-x.stop:
			return
		case <-ready:
		}
	}
}

// inwardOne carries a datagram, if there is one.
func (x *talk) inwardOne() bool {
	p := newPiece(pieceBytes)
	defer p.done()
	w := tcpip.SliceWriter(p.b)
	res, terr := x.ep.Read(&w, tcpip.ReadOptions{})
	if terr != nil {
		return false
	}
	x.flow.touch(time.Now())
	if _, err := x.host.Write(p.b[:res.Count]); err != nil {
		x.tell(err) // of an earlier one, as a rule; this one was not sent
	}
	return true
}

// outward carries from the host to the overlay.
func (x *talk) outward() {
	src, err := newSource(x.host)
	if err != nil {
		return
	}
	var r bytes.Reader
	for {
		b, err := src.next(pieceBytes)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			x.tell(err)
		} else {
			x.flow.touch(time.Now())
			x.flow.idle.Store(int64(idleUDP))
			r.Reset(b)
			_, _ = x.ep.Write(&r, tcpip.WriteOptions{}) // without room it is lost, as datagrams are
		}
		src.done()
		select {
		case <-x.stop:
			return
		default:
		}
	}
}

// tell passes on what the host was told of a datagram.
func (x *talk) tell(err error) {
	k := x.flow.key
	if errors.Is(err, syscall.ECONNREFUSED) { // the target itself said so
		x.s.count.refused.Add(1)
		x.s.unreachable(k.dst.Addr(), k.src.Addr(), header.ICMPv4PortUnreachable, quoteUDP(k))
		return
	}
	x.s.tell(k, err, quoteUDP(k))
}

// dialDatagrams opens a socket of the host, which hears of errors. Go lets sockets
// send to a whole network; a router does not pass such datagrams on.
func dialDatagrams(ctx context.Context, to netip.AddrPort) (*net.UDPConn, error) {
	d := net.Dialer{Control: func(network, address string, c syscall.RawConn) error {
		return errors.Join(hearErrors(network, address, c), noBroadcast(c))
	}}
	c, err := d.DialContext(ctx, "udp4", to.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}
