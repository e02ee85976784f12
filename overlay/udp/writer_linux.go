package udp

import (
	"encoding/binary"
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// maxBytes of one message: the largest IP packet, less its headers and a margin.
	maxBytes = 65507
	// lookBack is how many recent messages Add searches for one that goes to
	// the same destination. Traffic that mixes more destinations than this gains little
	// from merging.
	lookBack = 8
)

// Writer gathers datagrams and sends them together. It is not safe for
// concurrent use.
type Writer struct {
	s     *Socket
	msgs  []message // the first n are queued
	n     int
	limit int // datagrams per message, for the messages queued now
	hdrs  []mmsghdr
	err   error // why the last Flush dropped something
	whole bool  // it sends for SendWhole, and so holds the socket's mutex of that name

	single message // one datagram of a message that is sent again

	call    func(uintptr) // made once: a closure per call would be an allocation per call
	dropped int           // result of call
}

// message is one entry of sendmmsg: datagrams of size bytes each but the last.
type message struct {
	control [segmentSpace]byte // first: it holds a Cmsghdr, which wants its alignment
	dst     netip.AddrPort
	size    int
	bytes   int
	open    bool // another datagram may follow
	iovs    []unix.Iovec
	name    sockaddr
}

// segmentSpace holds UDP_SEGMENT's u16: a header of two ints and a size_t, and
// the value padded to a word, on 64-bit machines.
const segmentSpace = 24

// NewWriter returns a writer with nothing queued.
func (s *Socket) NewWriter() *Writer {
	w := &Writer{s: s}
	w.call = w.send
	return w
}

// Add queues the concatenation of parts as datagrams of size bytes each; the
// last may be shorter. The parts are borrowed until Flush returns. Datagrams
// for one destination stay in order, also across calls; they share messages
// where their sizes allow it.
func (w *Writer) Add(dst netip.AddrPort, size int, parts ...[]byte) {
	total := 0
	for _, p := range parts {
		total += len(p)
	}
	if size <= 0 || total == 0 {
		return
	}
	if w.n == 0 {
		w.limit = w.s.gso.segments()
	}
	var c cursor
	for total > 0 {
		m, take := w.room(dst, min(size, total), total)
		m.iovs = c.cut(m.iovs, parts, take)
		m.bytes += take
		m.open = m.bytes%m.size == 0 && m.bytes/m.size < w.limit && m.bytes+m.size <= maxBytes
		total -= take
	}
}

// room returns the message that takes the next datagrams for dst, and how many
// of the remaining bytes.
func (w *Writer) room(dst netip.AddrPort, size, total int) (*message, int) {
	for i := w.n - 1; i >= 0 && i >= w.n-lookBack; i-- {
		m := &w.msgs[i]
		if m.dst != dst {
			continue
		}
		switch {
		case !m.open:
		case m.size == size:
			segs := min(w.limit-m.bytes/m.size, (maxBytes-m.bytes)/m.size)
			return m, min(total, segs*size)
		case total == size && size < m.size: // a single shorter one may end it
			return m, total
		}
		break // an older message would overtake this one's datagrams
	}
	if w.n == len(w.msgs) {
		w.msgs = append(w.msgs, message{})
	}
	m := &w.msgs[w.n]
	w.n++
	m.dst, m.size, m.bytes, m.iovs = dst, size, 0, m.iovs[:0]
	return m, min(total, size*max(1, min(w.limit, maxBytes/size)))
}

// cursor is a place in a list of parts.
type cursor struct{ part, off int }

// cut appends the next n bytes to iovs and moves on.
func (c *cursor) cut(iovs []unix.Iovec, parts [][]byte, n int) []unix.Iovec {
	for n > 0 {
		p := parts[c.part][c.off:]
		if len(p) == 0 {
			c.part, c.off = c.part+1, 0
			continue
		}
		k := min(n, len(p))
		v := unix.Iovec{Base: &p[0]}
		v.SetLen(k)
		iovs = append(iovs, v)
		c.off += k
		n -= k
	}
	return iovs
}

// Flush sends what is queued and returns how many datagrams were dropped. It
// never blocks.
func (w *Writer) Flush() (dropped int) {
	if w.n == 0 {
		return 0
	}
	w.dropped, w.err = 0, nil
	for len(w.hdrs) < w.n {
		w.hdrs = append(w.hdrs, mmsghdr{})
	}
	for i := range w.n {
		w.msgs[i].header(&w.hdrs[i].hdr)
	}
	if w.s.handle.Control(w.call) != nil {
		for i := range w.n {
			w.drop(w.msgs[i].count(), net.ErrClosed)
		}
	}
	for i := range w.n {
		clear(w.msgs[i].iovs) // or they would keep the callers' buffers alive
	}
	w.n = 0
	return w.dropped
}

// count returns how many datagrams the message holds.
func (m *message) count() int { return (m.bytes + m.size - 1) / m.size }

// header makes h describe m.
func (m *message) header(h *unix.Msghdr) {
	h.Name = (*byte)(unsafe.Pointer(&m.name))
	h.Namelen = putAddr(&m.name, m.dst)
	h.Iov = &m.iovs[0]
	h.SetIovlen(len(m.iovs))
	h.Control = nil
	h.SetControllen(0)
	h.Flags = 0
	if m.bytes > m.size {
		c := (*unix.Cmsghdr)(unsafe.Pointer(&m.control[0]))
		c.Level = unix.IPPROTO_UDP
		c.Type = unix.UDP_SEGMENT
		c.SetLen(unix.CmsgLen(2))
		binary.NativeEndian.PutUint16(m.control[unix.CmsgLen(0):], uint16(m.size))
		h.Control = &m.control[0]
		h.SetControllen(unix.CmsgSpace(2))
	}
}

// send hands the queue to the kernel.
func (w *Writer) send(fd uintptr) {
	for i := 0; i < w.n; {
		n, errno := sendmmsg(fd, w.hdrs[i:w.n])
		if n > 0 {
			for _, m := range w.msgs[i : i+n] {
				if m.bytes > m.size {
					w.s.gso.worked()
					break
				}
			}
			i += n
			continue
		}
		m := &w.msgs[i]
		switch {
		case errno == unix.EAGAIN: // the queue is full, and so it is for the rest
			for ; i < w.n; i++ {
				w.drop(w.msgs[i].count(), errno)
			}
			return
		case m.bytes > m.size && (errno == unix.EIO || errno == unix.EINVAL || errno == unix.EMSGSIZE):
			if errno == unix.EIO {
				w.s.gso.failed()
			}
			w.s.count.gsoFallbacks.Add(1)
			w.sendSingly(fd, m)
		case !w.resent(fd, &w.hdrs[i], errno):
			w.drop(m.count(), errno)
		}
		i++
	}
}

// sendSingly sends a message's datagrams one by one.
func (w *Writer) sendSingly(fd uintptr, m *message) {
	one := &w.single
	one.dst = m.dst
	var rest unix.Iovec
	next := 0
	for left := m.bytes; left > 0; {
		one.size = min(m.size, left)
		one.bytes = one.size
		one.iovs = one.iovs[:0]
		for need := one.size; need > 0; {
			if rest.Len == 0 {
				rest = m.iovs[next]
				next++
			}
			k := min(need, int(rest.Len))
			v := unix.Iovec{Base: rest.Base}
			v.SetLen(k)
			one.iovs = append(one.iovs, v)
			if k < int(rest.Len) {
				rest.Base = (*byte)(unsafe.Add(unsafe.Pointer(rest.Base), k))
			}
			rest.SetLen(int(rest.Len) - k)
			need -= k
		}
		left -= one.size
		var hdr [1]mmsghdr
		one.header(&hdr[0].hdr)
		if n, errno := sendmmsg(fd, hdr[:]); n != 1 && !w.resent(fd, &hdr[0], errno) {
			w.drop(1, errno)
		}
	}
	clear(one.iovs)
}

// resent sends a message again that was refused for its length. The kernel cuts
// what is too long for the own link, but not in the moment of somebody's
// SendWhole, whose end it waits for: microseconds.
func (w *Writer) resent(fd uintptr, h *mmsghdr, errno unix.Errno) bool {
	if errno != unix.EMSGSIZE || w.whole {
		return false
	}
	w.s.whole.Lock()
	defer w.s.whole.Unlock()
	n, _ := sendmmsg(fd, unsafe.Slice(h, 1))
	return n == 1
}

// drop counts datagrams that the kernel did not take.
func (w *Writer) drop(n int, err error) {
	w.dropped += n
	w.err = err
	if err == unix.EAGAIN || err == unix.ENOBUFS {
		w.s.count.sendDrops.Add(uint64(n))
	} else {
		w.s.count.sendErrors.Add(uint64(n))
	}
}

// sendmmsg sends as many of hdrs as the kernel takes; errno is set when it
// takes none.
func sendmmsg(fd uintptr, hdrs []mmsghdr) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&hdrs[0])), uintptr(len(hdrs)), unix.MSG_DONTWAIT, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0, errno
		}
		return int(n), 0
	}
}
