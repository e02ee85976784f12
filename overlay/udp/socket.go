package udp

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
)

// Options says how Listen sets up a socket. The zero value works.
type Options struct {
	Mark      uint32 // SO_MARK; 0: none. It needs CAP_NET_ADMIN.
	ReusePort bool   // several sockets share the port; the kernel spreads sources over them
	Buffer    int    // bytes of kernel buffer each way; 0: 7 MiB
	// Moderate makes Read wait a little at high rates, so that more comes at
	// once, as network cards moderate their interrupts: see pace. The wait keeps
	// its processor, so GOMAXPROCS should count the readers on top. Linux only.
	Moderate bool
}

// defaultBuffer holds 20 ms of 3 Gbit/s. The kernel's default of 208 KiB holds
// half a millisecond, and loses what comes during one scheduling delay.
const defaultBuffer = 7 << 20

func (o Options) buffer() int {
	if o.Buffer > 0 {
		return o.Buffer
	}
	return defaultBuffer
}

// Socket is one UDP socket of one address family. Its methods may be called
// concurrently.
type Socket struct {
	handle   handle // set by Listen, then read-only, as the next two
	moderate bool
	local    netip.AddrPort
	ones     sync.Pool  // *Writer, for Send
	whole    sync.Mutex // held while the socket sends whole

	count counters
	gso   offload
}

// Listen opens a socket of addr's family. An IPv6 socket takes IPv6 only.
func Listen(addr netip.AddrPort, o Options) (*Socket, error) {
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	network := "udp4"
	if addr.Addr().Is6() {
		network = "udp6"
	}
	var tuneErr error
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		err := raw.Control(func(fd uintptr) { tuneErr = tune(fd, addr.Addr().Is6(), o) })
		if err == nil {
			err = tuneErr
		}
		return err
	}}
	pc, err := lc.ListenPacket(context.Background(), network, addr.String())
	if err != nil {
		return nil, fmt.Errorf("open udp socket: %w", err)
	}
	conn := pc.(*net.UDPConn)
	local := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	h, err := open(conn)
	if err != nil {
		return nil, fmt.Errorf("open udp socket %s: %w", addr, err)
	}
	s := &Socket{handle: h, moderate: o.Moderate, local: netip.AddrPortFrom(local.Addr().Unmap(), local.Port())}
	s.ones.New = func() any { return s.NewWriter() }
	return s, nil
}

// LocalAddr returns the address the socket is bound to.
func (s *Socket) LocalAddr() netip.AddrPort { return s.local }

// Close closes the socket. Readers that wait return net.ErrClosed.
func (s *Socket) Close() error { return s.handle.Close() }

// Send sends one datagram. It never blocks: a full queue is an error.
func (s *Socket) Send(dst netip.AddrPort, b []byte) error { return s.send(dst, b, false) }

// send is Send. whole says that the caller holds the mutex of that name.
func (s *Socket) send(dst netip.AddrPort, b []byte, whole bool) error {
	w := s.ones.Get().(*Writer)
	defer s.ones.Put(w)
	w.whole = whole
	w.Add(dst, len(b), b)
	if w.Flush() > 0 {
		return fmt.Errorf("send to %s: %w", dst, w.err)
	}
	return nil
}

// Counters are a socket's totals since it was opened.
type Counters struct {
	SendDrops    uint64 // datagrams the kernel's queue had no room for
	SendErrors   uint64 // datagrams refused for another reason: no route, firewall, closed
	GSOFallbacks uint64 // messages that were sent again as single datagrams
	Truncated    uint64 // messages that did not fit a slot; dropped
	RecvErrors   uint64 // failed receive calls
	QueueDrops   uint64 // datagrams that came while the receive queue was full
}

type counters struct {
	sendDrops, sendErrors, gsoFallbacks, truncated, recvErrors, queueDrops atomic.Uint64
}

// Counters returns the socket's totals.
func (s *Socket) Counters() Counters {
	return Counters{
		SendDrops:    s.count.sendDrops.Load(),
		SendErrors:   s.count.sendErrors.Load(),
		GSOFallbacks: s.count.gsoFallbacks.Load(),
		Truncated:    s.count.truncated.Load(),
		RecvErrors:   s.count.recvErrors.Load(),
		QueueDrops:   s.count.queueDrops.Load(),
	}
}

// Train is what one receive slot holds: datagrams of one source, back to back,
// each Size bytes but the last, which may be shorter.
type Train struct {
	Src  netip.AddrPort
	Buf  []byte // borrowed until the Reader's next Read
	Size int
}

// SlotSize is the length of a receive slot. A shorter one would truncate
// trains: the kernel merges up to the largest IP packet.
const SlotSize = 64 << 10
