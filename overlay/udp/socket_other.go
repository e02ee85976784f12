//go:build !linux

package udp

import (
	"errors"
	"net"
	"net/netip"
	"time"
)

// tune refuses what this system lacks.
func tune(_ uintptr, _ bool, o Options) error {
	switch {
	case o.Mark != 0:
		return errors.New("packet marks need Linux")
	case o.ReusePort:
		return errors.New("several sockets on one port need Linux")
	}
	return nil
}

type offload struct{}

// handle is the socket; every reader waits in the runtime's poller here.
type handle struct{ *net.UDPConn }

func open(conn *net.UDPConn) (handle, error) { return handle{conn}, nil }

// Reader receives from a socket. It is not safe for concurrent use.
type Reader struct {
	s     *Socket
	slot  []byte
	train [1]Train
}

// NewReader returns a reader; here it has one slot.
func (s *Socket) NewReader(int) *Reader {
	_ = s.handle.SetReadBuffer(defaultBuffer)
	_ = s.handle.SetWriteBuffer(defaultBuffer)
	return &Reader{s: s, slot: make([]byte, SlotSize)}
}

// Read waits for a datagram. What it returns is borrowed until the next Read.
// The only error is net.ErrClosed; any other is counted and the call repeated.
func (r *Reader) Read() ([]Train, error) {
	for failures := 0; ; failures++ {
		n, src, err := r.s.handle.ReadFromUDPAddrPort(r.slot)
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil, net.ErrClosed
		case err != nil:
			r.s.count.recvErrors.Add(1)
			time.Sleep(min(time.Duration(failures)*time.Millisecond, 100*time.Millisecond))
		case n > 0:
			src = netip.AddrPortFrom(src.Addr().Unmap(), src.Port())
			r.train[0] = Train{Src: src, Buf: r.slot[:n], Size: n}
			return r.train[:], nil
		}
	}
}

// Writer gathers datagrams and sends them together. It is not safe for
// concurrent use.
type Writer struct {
	s     *Socket
	queue []datagram
	flat  []byte // the queued datagrams' bytes
	err   error  // why the last Flush dropped something
	whole bool   // for SendWhole, which works on Linux only
}

type datagram struct {
	dst netip.AddrPort
	end int // in flat
}

// NewWriter returns a writer with nothing queued.
func (s *Socket) NewWriter() *Writer { return &Writer{s: s} }

// Add queues the concatenation of parts as datagrams of size bytes each; the
// last may be shorter.
func (w *Writer) Add(dst netip.AddrPort, size int, parts ...[]byte) {
	start := len(w.flat)
	for _, p := range parts {
		w.flat = append(w.flat, p...)
	}
	if size <= 0 {
		w.flat = w.flat[:start]
	}
	for start < len(w.flat) {
		start = min(start+size, len(w.flat))
		w.queue = append(w.queue, datagram{dst, start})
	}
}

// sendPatience is how long a Flush may wait for a full queue: there is no
// call here that does not wait.
const sendPatience = 5 * time.Millisecond

// Flush sends what is queued and returns how many datagrams were dropped.
func (w *Writer) Flush() (dropped int) {
	if len(w.queue) == 0 {
		return 0
	}
	w.err = nil
	_ = w.s.handle.SetWriteDeadline(time.Now().Add(sendPatience))
	start := 0
	for _, d := range w.queue {
		if _, err := w.s.handle.WriteToUDPAddrPort(w.flat[start:d.end], d.dst); err != nil {
			dropped++
			w.err = err
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				w.s.count.sendDrops.Add(1)
			} else {
				w.s.count.sendErrors.Add(1)
			}
		}
		start = d.end
	}
	w.queue, w.flat = w.queue[:0], w.flat[:0]
	return dropped
}
