package netstack

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/waiter"
)

// past is a deadline that is over: it wakes whoever waits.
var past = time.Unix(1, 0)

// listener is a TCP listener.
type listener struct {
	s     *Stack
	wq    *waiter.Queue
	ep    tcpip.Endpoint
	close sync.Once
	done  chan struct{} // closed by Close
}

// Accept waits for a connection.
func (l *listener) Accept() (net.Conn, error) {
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventErr | waiter.EventHUp)
	l.wq.EventRegister(&entry)
	defer l.wq.EventUnregister(&entry)
	for {
		ep, wq, err := l.ep.Accept(nil)
		select {
		case <-l.done:
			if ep != nil {
				ep.Close()
			}
			return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
		default:
		}
		if err == nil {
			if c := l.s.accepted(wq, ep); c != nil {
				return c, nil
			}
			continue
		}
		if _, wait := err.(*tcpip.ErrWouldBlock); !wait {
			return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: errnoOf(err)}
		}
		select {
		case <-l.done:
		case <-ready:
		}
	}
}

// Close ends the listener and the connections that wait for Accept.
func (l *listener) Close() error {
	l.close.Do(func() {
		close(l.done)
		l.ep.Close()
	})
	return nil
}

// Addr returns what it listens on.
func (l *listener) Addr() net.Addr {
	a, err := l.ep.GetLocalAddress()
	if err != nil {
		return &net.TCPAddr{}
	}
	return &net.TCPAddr{IP: a.Addr.AsSlice(), Port: int(a.Port)}
}

// accepted is a connection that somebody made; nil: there is no room for it.
func (s *Stack) accepted(wq *waiter.Queue, ep tcpip.Endpoint) net.Conn {
	var src netip.Addr
	if a, err := ep.GetRemoteAddress(); err == nil {
		src = netip.AddrFrom4(a.Addr.As4())
	}
	account := s.budget.account(src)
	if account == nil {
		s.noRoom()
		ep.Abort()
		return nil
	}
	account.holds(ep)
	return s.newStream(wq, ep, account)
}

// stream is a TCP connection with the system's errors.
type stream struct {
	*gonet.TCPConn
	s             *Stack
	wq            *waiter.Queue
	ep            tcpip.Endpoint
	account       *account
	local, remote net.Addr // known for as long as anybody asks
	closed        atomic.Bool
}

func (s *Stack) newStream(wq *waiter.Queue, ep tcpip.Endpoint, a *account) *stream {
	c := &stream{TCPConn: gonet.NewTCPConn(wq, ep), s: s, wq: wq, ep: ep, account: a, local: &net.TCPAddr{}, remote: &net.TCPAddr{}}
	if a, err := ep.GetLocalAddress(); err == nil {
		c.local = &net.TCPAddr{IP: a.Addr.AsSlice(), Port: int(a.Port)}
	}
	if a, err := ep.GetRemoteAddress(); err == nil {
		c.remote = &net.TCPAddr{IP: a.Addr.AsSlice(), Port: int(a.Port)}
	}
	return c
}

// LocalAddr returns the connection's own end.
func (c *stream) LocalAddr() net.Addr { return c.local }

// RemoteAddr returns the other one.
func (c *stream) RemoteAddr() net.Addr { return c.remote }

func (c *stream) wrap(op string, err error) error { return wrap(op, "tcp", err, &c.closed) }

// Read returns io.EOF once the other end has said that it is done.
func (c *stream) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	n, err := c.TCPConn.Read(b)
	c.account.received()
	return n, c.wrap("read", err)
}

// Write waits for room in the send buffer.
func (c *stream) Write(b []byte) (int, error) {
	c.account.sends()
	n, err := c.TCPConn.Write(b)
	return n, c.wrap("write", err)
}

// CloseWrite says that no more will be written.
func (c *stream) CloseWrite() error { return c.wrap("close", c.TCPConn.CloseWrite()) }

// SetLinger is that of net.TCPConn: with 0, Close resets the connection.
func (c *stream) SetLinger(sec int) error {
	c.ep.SocketOptions().SetLinger(tcpip.LingerOption{Enabled: sec >= 0, Timeout: time.Duration(max(sec, 0)) * time.Second})
	return nil
}

// Close wakes whoever reads or writes. What was written still arrives.
func (c *stream) Close() error {
	if c.closed.Swap(true) {
		return net.ErrClosed
	}
	_ = c.TCPConn.SetDeadline(past)
	err := c.TCPConn.Close()
	if settled(c.ep) || !c.s.goRun(func() {
		settle(c.ep, c.wq, c.s.ctx.Done())
		c.account.close()
	}) {
		c.account.close()
	}
	return err
}

// alarm is a deadline that can be waited for.
type alarm struct {
	mu    sync.Mutex // guards the rest
	timer *time.Timer
	over  chan struct{} // closed when the deadline is over; nil: there is none
	moved chan struct{} // closed when another one is set; nil: nobody has asked
}

// wait returns a channel that is closed when the deadline is over, and one that
// is closed when that is not the deadline any more.
func (a *alarm) wait() (over, moved <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.moved == nil {
		a.moved = make(chan struct{})
	}
	return a.over, a.moved
}

func (a *alarm) set(t time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.timer != nil {
		a.timer.Stop()
		a.timer = nil
	}
	a.over = nil
	if !t.IsZero() {
		over := make(chan struct{})
		a.over = over
		if left := time.Until(t); left > 0 {
			a.timer = time.AfterFunc(left, func() { close(over) })
		} else {
			close(over)
		}
	}
	if a.moved != nil {
		close(a.moved)
		a.moved = nil
	}
}

// datagrams is a UDP socket with the system's errors. A Read that waits hears of
// the error that an earlier datagram met.
type datagrams struct {
	wq     *waiter.Queue
	ep     tcpip.Endpoint
	denied *refusals
	what   refused  // its datagrams, where it is connected
	local  net.Addr // known for as long as anybody asks
	to     net.Addr // where it is connected; nil: nowhere
	read   alarm
	close  sync.Once
	done   chan struct{}      // closed by Close
	told   chan syscall.Errno // holds one that a Read has to say
}

func newDatagrams(denied *refusals, wq *waiter.Queue, ep tcpip.Endpoint) *datagrams {
	c := &datagrams{wq: wq, ep: ep, denied: denied, local: &net.UDPAddr{}, done: make(chan struct{}), told: make(chan syscall.Errno, 1)}
	if a, err := ep.GetLocalAddress(); err == nil {
		c.local = udpAddr(a)
	}
	if a, err := ep.GetRemoteAddress(); err == nil {
		to := udpAddr(a)
		c.to, c.what = to, refused{c.local.(*net.UDPAddr).AddrPort(), to.AddrPort()}
		denied.expect(c.what, c)
	}
	return c
}

// refuse has the next Read say that a datagram went nowhere.
func (c *datagrams) refuse(errno syscall.Errno) {
	select {
	case c.told <- errno:
	default: // it has to say one already
	}
}

func (c *datagrams) fail(op string, to net.Addr, err error) error {
	if to == nil {
		to = c.RemoteAddr()
	}
	return &net.OpError{Op: op, Net: "udp", Source: c.LocalAddr(), Addr: to, Err: err}
}

// Read returns a datagram's payload.
func (c *datagrams) Read(b []byte) (int, error) {
	n, _, err := c.ReadFrom(b)
	return n, err
}

// ReadFrom also says from where it came. What does not fit into b is lost.
func (c *datagrams) ReadFrom(b []byte) (int, net.Addr, error) {
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventErr | waiter.EventHUp)
	c.wq.EventRegister(&entry)
	defer c.wq.EventUnregister(&entry)
	for {
		over, moved := c.read.wait()
		select {
		case <-c.done:
			return 0, nil, c.fail("read", nil, net.ErrClosed)
		case <-over:
			return 0, nil, c.fail("read", nil, os.ErrDeadlineExceeded)
		case errno := <-c.told:
			return 0, nil, c.fail("read", nil, errno)
		default:
		}
		w := tcpip.SliceWriter(b)
		res, err := c.ep.Read(&w, tcpip.ReadOptions{NeedRemoteAddr: true})
		if err == nil {
			return res.Count, udpAddr(res.RemoteAddr), nil
		}
		if _, wait := err.(*tcpip.ErrWouldBlock); !wait {
			return 0, nil, c.fail("read", nil, errnoOf(err))
		}
		select {
		case <-ready:
		case <-c.done:
		case <-over:
		case <-moved:
		case errno := <-c.told:
			return 0, nil, c.fail("read", nil, errno)
		}
	}
}

// Write sends to where the socket is connected.
func (c *datagrams) Write(b []byte) (int, error) { return c.send(b, nil, nil) }

// WriteTo sends to an IPv4 address.
func (c *datagrams) WriteTo(b []byte, to net.Addr) (int, error) {
	a, ok := to.(*net.UDPAddr)
	if !ok || a.IP.To4() == nil {
		return 0, c.fail("write", to, errNotIPv4)
	}
	return c.send(b, to, &tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom4([4]byte(a.IP.To4())), Port: uint16(a.Port)})
}

// send does not wait: there is room, or the datagram is lost.
func (c *datagrams) send(b []byte, to net.Addr, at *tcpip.FullAddress) (int, error) {
	select {
	case <-c.done:
		return 0, c.fail("write", to, net.ErrClosed)
	default:
	}
	switch _, err := c.ep.Write(bytes.NewReader(b), tcpip.WriteOptions{To: at}); err.(type) {
	case nil, *tcpip.ErrWouldBlock, *tcpip.ErrNoBufferSpace:
		return len(b), nil
	default:
		return 0, c.fail("write", to, errnoOf(err))
	}
}

// Close wakes whoever reads.
func (c *datagrams) Close() error {
	err := net.ErrClosed
	c.close.Do(func() {
		err = nil
		close(c.done)
		c.denied.forget(c.what, c)
		c.read.set(time.Time{})
		c.ep.Close()
	})
	return err
}

// SetReadDeadline is also for the Reads that wait.
func (c *datagrams) SetReadDeadline(t time.Time) error {
	c.read.set(t)
	return nil
}

// SetWriteDeadline does nothing: a Write never waits.
func (c *datagrams) SetWriteDeadline(time.Time) error { return nil }

// SetDeadline is SetReadDeadline.
func (c *datagrams) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// LocalAddr returns the socket's own address.
func (c *datagrams) LocalAddr() net.Addr { return c.local }

// RemoteAddr returns where the socket is connected; nil: nowhere.
func (c *datagrams) RemoteAddr() net.Addr { return c.to }

func udpAddr(a tcpip.FullAddress) *net.UDPAddr {
	return &net.UDPAddr{IP: a.Addr.AsSlice(), Port: int(a.Port)}
}

// messages is a raw ICMP socket. The IP header of what arrives is left out, as
// net.IPConn does.
type messages struct{ *datagrams }

// ReadFrom returns a message.
func (c *messages) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.datagrams.ReadFrom(b)
	if err != nil {
		return 0, nil, err
	}
	ip := from.(*net.UDPAddr).IP
	skip := 0
	if n >= header.IPv4MinimumSize {
		skip = min(int(header.IPv4(b[:n]).HeaderLength()), n)
	}
	return copy(b, b[skip:n]), &net.IPAddr{IP: ip}, nil
}

// WriteTo sends a message to an IPv4 address.
func (c *messages) WriteTo(b []byte, to net.Addr) (int, error) {
	ip, ok := to.(*net.IPAddr)
	if !ok {
		return 0, &net.OpError{Op: "write", Net: "ip4:icmp", Addr: to, Err: errNotIPv4}
	}
	return c.datagrams.WriteTo(b, &net.UDPAddr{IP: ip.IP})
}

// wrap gives an error of the adapter the system's words.
func wrap(op, network string, err error, closed *atomic.Bool) error {
	switch {
	case err == nil, err == io.EOF:
		return err
	case closed.Load():
		return &net.OpError{Op: op, Net: network, Err: net.ErrClosed}
	}
	o, ok := err.(*net.OpError)
	if !ok {
		return err
	}
	if o.Timeout() {
		return &net.OpError{Op: op, Net: network, Source: o.Source, Addr: o.Addr, Err: os.ErrDeadlineExceeded}
	}
	return &net.OpError{Op: op, Net: network, Source: o.Source, Addr: o.Addr, Err: reason(err)}
}
