package udp

import (
	"encoding/binary"
	"net"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// controlSize holds the two notes a message may carry: UDP_GRO's datagram size
// and SO_RXQ_OVFL's drop count, 4 bytes each.
const controlSize = 64

// Reader receives from a socket. It is not safe for concurrent use.
type Reader struct {
	s      *Socket
	slots  [][]byte
	names  []sockaddr
	iovs   []unix.Iovec
	notes  [][controlSize]byte
	hdrs   []mmsghdr
	trains []Train
	used   int                // headers to reset before the next call
	lost   uint32             // the queue's drop count as last seen
	call   func(uintptr) bool // made once: a closure per call would be an allocation per call
	n      int                // result of call
	errno  unix.Errno         // result of call
	pace   pace
}

// NewReader returns a reader with room for that many messages per call. A
// socket has one.
func (s *Socket) NewReader(slots int) *Reader {
	slots = max(slots, 1)
	r := &Reader{
		s:      s,
		slots:  make([][]byte, slots),
		names:  make([]sockaddr, slots),
		iovs:   make([]unix.Iovec, slots),
		notes:  make([][controlSize]byte, slots),
		hdrs:   make([]mmsghdr, slots),
		trains: make([]Train, 0, slots),
		used:   slots,
	}
	memory := make([]byte, slots*SlotSize)
	for i := range slots {
		r.slots[i] = memory[i*SlotSize : (i+1)*SlotSize : (i+1)*SlotSize]
		r.iovs[i].Base = &r.slots[i][0]
		r.iovs[i].SetLen(SlotSize)
		h := &r.hdrs[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&r.names[i]))
		h.Iov = &r.iovs[i]
		h.SetIovlen(1)
		h.Control = &r.notes[i][0]
	}
	r.call = r.receive
	return r
}

// Read waits for at least one message and returns all there are, up to the
// slot count. What it returns is borrowed until the next Read. The only error
// is net.ErrClosed; any other is counted and the call repeated.
func (r *Reader) Read() ([]Train, error) {
	full := r.n == len(r.hdrs) // so more has come already
	if r.busy() && r.s.moderate && !full {
		rest()
	}
	for failures := 0; ; failures++ {
		for i := range r.used {
			h := &r.hdrs[i].hdr
			h.Namelen = unix.SizeofSockaddrInet6
			h.SetControllen(controlSize)
			h.Flags = 0
		}
		r.used = 0
		if r.s.handle.Wait(r.call) != nil {
			return nil, net.ErrClosed
		}
		if r.errno != 0 {
			// A note of some earlier send (ECONNREFUSED) or a device going away
			// (ENETDOWN): the next call usually works. One that goes on failing
			// must not spin.
			r.s.count.recvErrors.Add(1)
			time.Sleep(min(time.Duration(failures)*time.Millisecond, 100*time.Millisecond))
			continue
		}
		r.used = r.n
		if r.take(); len(r.trains) > 0 {
			return r.trains, nil
		}
	}
}

// receive makes one call. It returns false when the queue is empty, and the
// reader then waits. The call never blocks, so the
// scheduler is not told of it: its monitor would wake up for every message.
func (r *Reader) receive(epoll uintptr) bool {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, r.s.handle.Fd(), uintptr(unsafe.Pointer(&r.hdrs[0])), uintptr(len(r.hdrs)), unix.MSG_DONTWAIT, 0, 0)
		switch {
		case errno == unix.EINTR:
			continue
		case errno != unix.EAGAIN:
			r.n, r.errno = int(n), errno
			if r.pace.busy {
				r.s.handle.Quiet(epoll)
			}
			return true
		case r.pace.busy && r.s.moderate: // no need to be woken
			r.pace.fast(time.Now(), 0)
			rest()
		default:
			return r.s.handle.Empty(epoll)
		}
	}
}

// busy reports whether datagrams come fast.
func (r *Reader) busy() bool {
	bytes := 0
	for i := range r.trains {
		bytes += len(r.trains[i].Buf)
	}
	return r.pace.fast(time.Now(), bytes)
}

// rest lets more datagrams come. It too is hidden from the scheduler, whose own
// timers are no finer than a millisecond.
func rest() {
	ts := unix.NsecToTimespec(int64(restFor))
	unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&ts)), 0, 0) // cut short by a signal: no harm
}

// take makes trains of the messages just received.
func (r *Reader) take() {
	r.trains = r.trains[:0]
	for i := range r.n {
		h := &r.hdrs[i]
		size := int(h.len)
		if h.hdr.Flags&unix.MSG_TRUNC != 0 {
			r.s.count.truncated.Add(1)
			continue
		}
		if size == 0 || size > SlotSize {
			continue
		}
		t := Train{Src: takeAddr(&r.names[i]), Buf: r.slots[i][:size], Size: size}
		gro, lost := notes(r.notes[i][:min(int(h.hdr.Controllen), controlSize)])
		if gro > 0 && gro < size {
			t.Size = gro
		}
		if lost != 0 && lost != r.lost {
			r.s.count.queueDrops.Add(uint64(lost - r.lost)) // wraps like the kernel's counter
			r.lost = lost
		}
		r.trains = append(r.trains, t)
	}
}

// notes reads a message's control data: the size of a train's datagrams (an
// int, unlike UDP_SEGMENT's u16), and the queue's drops so far. What is absent
// is 0.
func notes(b []byte) (gro int, lost uint32) {
	for len(b) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		if uint64(h.Len) < unix.SizeofCmsghdr || uint64(h.Len) > uint64(len(b)) {
			break
		}
		data := b[unix.CmsgLen(0):h.Len]
		switch {
		case len(data) < 4:
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO:
			gro = int(int32(binary.NativeEndian.Uint32(data)))
		case h.Level == unix.SOL_SOCKET && h.Type == unix.SO_RXQ_OVFL:
			lost = binary.NativeEndian.Uint32(data)
		}
		b = b[min(unix.CmsgSpace(len(data)), len(b)):]
	}
	return gro, lost
}
