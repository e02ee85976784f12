package netstack

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
)

const (
	// probePort is asked for a connection where no echo request may be sent. Its
	// service, echo, has not been in use for long: a refusal is the usual answer.
	probePort = 7
	// probeFor is how long an answer is waited for: longer than it takes until a
	// neighbour that does not answer ARP counts as unreachable (3 s).
	probeFor = 4 * time.Second
)

// forwardEcho takes echo requests for others. Those for this node the stack
// answers itself.
func (s *Stack) forwardEcho() {
	s.stack.SetTransportProtocolHandler(icmp.ProtocolNumber4, func(_ stack.TransportEndpointID, p *stack.PacketBuffer) bool {
		h := header.ICMPv4(p.TransportHeader().Slice())
		if len(h) < header.ICMPv4MinimumSize || h.Type() != header.ICMPv4Echo {
			return false
		}
		ip := p.Network()
		src, dst := netip.AddrFrom4(ip.SourceAddress().As4()), netip.AddrFrom4(ip.DestinationAddress().As4())
		st := s.state.Load()
		if slices.Contains(st.Addrs, dst) {
			return false
		}
		k := flowKey{protoICMP, netip.AddrPortFrom(src, h.Ident()), netip.AddrPortFrom(dst, 0)}
		if _, ok := st.target(dst); !ok {
			s.count.forbidden.Add(1)
			s.unreachable(s.own(), src, header.ICMPv4AdminProhibited, quoteEcho(k, h.Sequence()))
			return true
		}
		message := append(slices.Clone([]byte(h)), p.Data().AsRange().ToSlice()...)
		s.echo(k, message)
		return true
	})
}

// echo passes a request on. It does not wait.
func (s *Stack) echo(k flowKey, message []byte) {
	f := s.flows.get(k)
	if f == nil {
		e := &echoes{s: s, stop: make(chan struct{})}
		f = &flow{key: k, abort: e.end, take: e.take}
		e.flow = f
		if !s.flows.add(f, idleEcho, time.Now()) {
			s.count.full.Add(1)
			return
		}
		if !s.goRun(e.run) {
			s.flows.remove(f)
			return
		}
	}
	if f.take != nil {
		f.touch(time.Now())
		f.take(message)
	}
}

// echoes are the echo requests that one sender makes to one target.
type echoes struct {
	s    *Stack
	flow *flow
	once sync.Once
	stop chan struct{} // closed by end
	last atomic.Uint32 // sequence number of the newest request
	busy atomic.Bool   // a probe is under way

	mu      sync.Mutex // guards the rest
	conn    net.Conn   // a ping socket; nil: there is none yet, or we may not have one
	waiting []byte     // the request that came before there was one
	denied  bool       // we may not
}

func (e *echoes) end() { e.once.Do(func() { close(e.stop) }) }

// take sends a request.
func (e *echoes) take(message []byte) {
	e.last.Store(uint32(header.ICMPv4(message).Sequence()))
	e.mu.Lock()
	conn, denied := e.conn, e.denied
	if conn == nil && !denied {
		e.waiting = message
	}
	e.mu.Unlock()
	switch {
	case denied:
		e.probe(message)
	case conn != nil:
		if _, err := conn.Write(message); err != nil {
			e.tell(err)
		}
	}
}

// run reads answers until end is called.
func (e *echoes) run() {
	defer e.s.flows.remove(e.flow)
	to, ok := e.s.state.Load().target(e.flow.key.dst.Addr())
	if !ok {
		return
	}
	conn, err := openPing(to)
	e.mu.Lock()
	e.conn, e.denied = conn, err != nil
	first := e.waiting
	e.waiting = nil
	e.mu.Unlock()
	if first != nil {
		e.take(first)
	}
	if err != nil {
		<-e.stop
		return
	}
	var reader sync.WaitGroup
	reader.Go(func() { e.read(conn) })
	<-e.stop
	conn.Close()
	reader.Wait()
}

func (e *echoes) read(conn net.Conn) {
	src, err := newSource(conn)
	if err != nil {
		return
	}
	for {
		b, err := src.next(pieceBytes)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			e.tell(err)
		} else {
			e.answer(b)
		}
		src.done()
		select {
		case <-e.stop:
			return
		default:
		}
	}
}

// answer gives a reply to who asked.
func (e *echoes) answer(b []byte) {
	if len(b) >= header.IPv4MinimumSize && b[0]>>4 == 4 { // some systems hand over the IP header
		b = b[min(int(header.IPv4(b).HeaderLength()), len(b)):]
	}
	h := header.ICMPv4(b)
	if len(b) < header.ICMPv4MinimumSize || h.Type() != header.ICMPv4EchoReply {
		return
	}
	k := e.flow.key
	e.flow.touch(time.Now())
	h.SetIdent(k.src.Port())
	e.s.sendICMP(k.dst.Addr(), k.src.Addr(), b)
}

// tell passes on what the host was told.
func (e *echoes) tell(err error) {
	k := e.flow.key
	e.s.tell(k, err, quoteEcho(k, uint16(e.last.Load())))
}

// probe finds out by TCP whether the target is there, and answers for it if it
// says so itself: it accepts, or refuses. One at a time.
func (e *echoes) probe(message []byte) {
	if e.busy.Swap(true) {
		return
	}
	if !e.s.goRun(func() {
		defer e.busy.Store(false)
		d := net.Dialer{Timeout: probeFor}
		to := netip.AddrPortFrom(e.flow.key.dst.Addr(), probePort)
		c, err := d.DialContext(e.s.ctx, "tcp4", to.String())
		if err == nil {
			c.Close()
		}
		if err == nil || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) {
			message[0] = byte(header.ICMPv4EchoReply)
			binary.BigEndian.PutUint16(message[2:], 0)
			e.answer(message)
			return
		}
		e.tell(err)
	}) {
		e.busy.Store(false)
	}
}
