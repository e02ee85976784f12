package netstack

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// dialFor is how long the host tries to connect. Who is on the other side
	// sends its SYN again meanwhile, and has given up by then as a rule.
	dialFor = 30 * time.Second
	// mostDials is how many connections are made at once, and half of it those
	// of one source.
	mostDials = 1024
	// pieceBytes is what is carried at once. It is taken from a pool when there
	// is something to carry, so that a silent connection has none.
	pieceBytes = 64 << 10
	// probeAfter and probeEvery are how a host that vanished is found out.
	probeAfter = 2 * time.Minute
	probeEvery = 30 * time.Second
)

// piece is a buffer of one of two sizes, from the pool that it goes back to.
type piece struct {
	b    []byte
	home *sync.Pool
}

var (
	pieces      = sync.Pool{}
	smallPieces = sync.Pool{}
)

func init() {
	pieces.New = func() any { return &piece{make([]byte, pieceBytes), &pieces} }
	smallPieces.New = func() any { return &piece{make([]byte, pieceLeast), &smallPieces} }
}

// newPiece returns one that holds at most so many bytes.
func newPiece(most int) *piece {
	if most <= pieceLeast {
		return smallPieces.Get().(*piece)
	}
	return pieces.Get().(*piece)
}

func (p *piece) done() { p.home.Put(p) }

// forward takes what arrives for nobody in the stack.
func (s *Stack) forward() {
	s.dials.of = map[flowKey]uint32{}
	s.dials.source = map[netip.Addr]int{}
	fwd := tcp.NewForwarder(s.stack, windowFirst, math.MaxInt, s.connect) // dials are the bound
	s.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, func(id stack.TransportEndpointID, p *stack.PacketBuffer) bool {
		k := keyOf(protoTCP, id)
		h := header.TCP(p.TransportHeader().Slice())
		if len(h) < header.TCPMinimumSize || h.Flags()&(header.TCPFlagSyn|header.TCPFlagAck) != header.TCPFlagSyn {
			return false // of a connection that is gone: the stack answers with a reset
		}
		if _, ok := s.state.Load().target(k.dst.Addr()); !ok {
			s.count.forbidden.Add(1)
			return false
		}
		if !s.dials.begin(k, h.SequenceNumber()) {
			s.noRoom()
			return true
		}
		took := fwd.HandlePacket(id, p)
		if !took {
			s.dials.end(k)
		}
		return took
	})
	s.forwardUDP()
	s.forwardEcho()
}

// dials are the connections that are being made. One is here from before the
// forwarder has it until after: a SYN that comes again meanwhile is either the
// forwarder's to ignore, or begins anew and ends what it began.
type dials struct {
	mu     sync.Mutex // guards the rest
	of     map[flowKey]uint32
	source map[netip.Addr]int
}

// begin notes a SYN; false: there is no room. One that comes again needs none.
func (d *dials) begin(k flowKey, seq uint32) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, again := d.of[k]; again {
		return true
	}
	src := k.src.Addr()
	if len(d.of) >= mostDials || d.source[src] >= mostDials/2 {
		return false
	}
	d.of[k] = seq
	d.source[src]++
	return true
}

// seq returns the number of a dial's SYN.
func (d *dials) seq(k flowKey) uint32 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.of[k]
}

// end forgets a dial.
func (d *dials) end(k flowKey) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.of[k]; !ok {
		return
	}
	delete(d.of, k)
	src := k.src.Addr()
	if d.source[src]--; d.source[src] == 0 {
		delete(d.source, src)
	}
}

func (s *Stack) noRoom() {
	s.count.full.Add(1)
	s.flows.full.Store(time.Now().UnixNano())
}

func keyOf(proto uint8, id stack.TransportEndpointID) flowKey {
	return flowKey{proto,
		netip.AddrPortFrom(netip.AddrFrom4(id.RemoteAddress.As4()), id.RemotePort),
		netip.AddrPortFrom(netip.AddrFrom4(id.LocalAddress.As4()), id.LocalPort)}
}

// connect is called for a SYN, in a goroutine of its own.
func (s *Stack) connect(r *tcp.ForwarderRequest) {
	k := keyOf(protoTCP, r.ID())
	if !s.enter() {
		r.Complete(false)
		s.dials.end(k)
		return
	}
	defer s.running.Done()
	if c := s.begin(r, k); c != nil {
		c.run()
		c.account.close()
		s.flows.remove(c.flow)
	}
}

// begin makes the connection that a SYN asks for; nil: there is none.
func (s *Stack) begin(r *tcp.ForwarderRequest, k flowKey) *crossing {
	defer s.dials.end(k)
	host, err := s.dialTarget(k)
	if err != nil {
		s.declineTCP(r, k, s.dials.seq(k), err)
		return nil
	}
	defer r.Complete(false)
	c := &crossing{s: s, host: host, account: s.budget.account(k.src.Addr())}
	if c.account == nil {
		s.noRoom()
		c.reset() // it will ask again
		return nil
	}
	c.flow = &flow{key: k, abort: c.tear, account: c.account}
	if !s.flows.add(c.flow, idleTCP, time.Now()) {
		s.count.full.Add(1)
		c.account.close()
		c.reset() // likewise
		return nil
	}
	local := host.LocalAddr().(*net.TCPAddr).AddrPort()
	c.flow.local.Store(&local)
	if _, ok := s.state.Load().target(k.dst.Addr()); ok && s.ctx.Err() == nil { // the flows of what is over were ended before this one was there
		if ep, terr := r.CreateEndpoint(&c.wq); terr == nil { // answers the SYN
			c.mu.Lock()
			c.ep = ep
			c.mu.Unlock()
			c.account.holds(ep)
			return c
		}
	}
	c.reset()
	c.account.close()
	s.flows.remove(c.flow)
	return nil
}

// dialTarget makes the host's connection for a flow.
func (s *Stack) dialTarget(k flowKey) (*net.TCPConn, error) {
	to, ok := s.state.Load().target(k.dst.Addr())
	if !ok {
		return nil, syscall.EACCES
	}
	s.count.dials.Add(1)
	return s.dialer(s.ctx, netip.AddrPortFrom(to, k.dst.Port()))
}

// dialHost connects as any program of the host does.
func dialHost(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	d := net.Dialer{
		Timeout:         dialFor,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: probeAfter, Interval: probeEvery},
	}
	c, err := d.DialContext(ctx, "tcp4", to.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// declineTCP says to who asked what the host was told.
func (s *Stack) declineTCP(r *tcp.ForwarderRequest, k flowKey, seq uint32, err error) {
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) {
		s.count.refused.Add(1)
		r.Complete(true)
		return
	}
	if !s.tell(k, err, quoteTCP(k, seq)) {
		s.count.unanswered.Add(1) // nobody answered the host either
	}
	r.Complete(false)
}

// crossing is a TCP connection on its way from the stack to the host's side.
type crossing struct {
	s    *Stack
	flow *flow
	host *net.TCPConn
	wq   waiter.Queue

	account *account

	mu   sync.Mutex // guards the rest
	ep   tcpip.Endpoint
	torn bool
	half bool // one side has said that it is done
}

// reset ends the host's side as if it had been cut.
func (c *crossing) reset() {
	_ = c.host.SetLinger(0) // an error means that it is over
	c.host.Close()
}

// tear resets both sides.
func (c *crossing) tear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.torn {
		return
	}
	c.torn = true
	c.reset()
	if c.ep != nil {
		c.ep.Abort()
	}
}

// run carries until both sides are done, or one is torn.
func (c *crossing) run() {
	c.mu.Lock()
	if c.torn { // before there was an endpoint
		c.ep.Abort()
		c.mu.Unlock()
		return
	}
	c.mu.Unlock()
	var in sync.WaitGroup
	in.Go(func() { c.direction(c.inward) })
	c.direction(c.outward)
	in.Wait()
	c.settle()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.torn {
		c.torn = true
		c.host.Close()
		c.ep.Close()
	}
}

// settle waits until all has arrived, once both sides have said that they are done.
// Until then it has its place and its room.
func (c *crossing) settle() {
	c.mu.Lock()
	torn := c.torn
	c.mu.Unlock()
	if !torn {
		settle(c.ep, &c.wq, nil) // tear ends it too
	}
}

// direction carries one way to its end. An error tears the other one, too.
func (c *crossing) direction(carry func() error) {
	if err := carry(); err != nil {
		c.tear()
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.half {
		c.half = true
		c.flow.idle.Store(int64(idleHalf))
	}
}

// inward carries from the overlay to the host.
func (c *crossing) inward() error {
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventErr | waiter.EventHUp)
	c.wq.EventRegister(&entry)
	defer c.wq.EventUnregister(&entry)
	for {
		n, err := c.inwardPiece()
		switch {
		case err == errWait:
			<-ready
		case err == io.EOF:
			_ = c.host.CloseWrite() // an error is for the other direction to find
			return nil
		case err != nil:
			return err
		default:
			c.ep.ModerateRecvBuf(n)
			c.account.received()
		}
	}
}

var errWait = errors.New("nothing there")

// inwardPiece carries what is there.
func (c *crossing) inwardPiece() (int, error) {
	p := newPiece(c.account.carries())
	defer p.done()
	w := tcpip.SliceWriter(p.b)
	res, terr := c.ep.Read(&w, tcpip.ReadOptions{})
	switch terr.(type) {
	case nil:
	case *tcpip.ErrWouldBlock:
		return 0, errWait
	case *tcpip.ErrClosedForReceive:
		return 0, io.EOF
	default:
		return 0, errnoOf(terr)
	}
	c.flow.touch(time.Now())
	_, err := c.host.Write(p.b[:res.Count])
	return res.Count, err
}

// outward carries from the host to the overlay.
func (c *crossing) outward() error {
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	c.wq.EventRegister(&entry)
	defer c.wq.EventUnregister(&entry)
	src, err := newSource(c.host)
	if err != nil {
		return err
	}
	var r bytes.Reader
	for {
		b, err := src.next(min(c.s.link.trainPayload(), c.account.carries()))
		if len(b) > 0 {
			c.flow.touch(time.Now())
			r.Reset(b)
			if terr := c.send(&r, ready); terr != nil {
				src.done()
				return errnoOf(terr)
			}
		}
		src.done()
		if err == io.EOF {
			if terr := c.ep.Shutdown(tcpip.ShutdownWrite); terr != nil {
				return errnoOf(terr)
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// send gives the endpoint all of r.
func (c *crossing) send(r *bytes.Reader, ready <-chan struct{}) tcpip.Error {
	for r.Len() > 0 {
		c.account.sends()
		_, terr := c.ep.Write(r, tcpip.WriteOptions{})
		switch terr.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			<-ready
		default:
			return terr
		}
	}
	return nil
}
