package tun

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"

	"overlayd/internal/bell"
	"overlayd/overlay/train"
)

const (
	clonePath = "/dev/net/tun"
	// batch is how many packets Read gives at most: two trains of the usual
	// length, as many as WireGuard's sockets take.
	batch = 128
	// enough packets are given to WireGuard without looking for more.
	enough = 32
	// busy is how many frames in a row were there at once when the reader need
	// not be woken for what comes.
	busy = 8
)

// Device is a TUN interface, which lives until Close. One goroutine reads; any
// number write.
type Device struct {
	name   string
	bell   *bell.Bell
	udp    bool // the kernel takes and gives trains of UDP
	events chan tun.Event
	close  sync.Once

	in      []byte // a frame; the splitter's packet lies in it
	split   train.Splitter
	try     func(uintptr) bool // made once: a closure per call would be an allocation per call
	wait    bool               // parameter of try
	peek    bool               // Look is under way: nothing is waited for
	got     int                // results of try
	readErr unix.Errno
	ready   int // frames in a row that were there at once

	writers sync.Pool // *writer
	dropped atomic.Uint64
}

// Open makes the interface and sets its MTU.
func Open(name string, mtu int) (*Device, error) {
	fd, err := unix.Open(clonePath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("open "+clonePath, err)
	}
	d := &Device{name: name, events: make(chan tun.Event), in: make([]byte, train.HeaderSize+train.MostBytes)}
	if err := d.attach(fd, mtu); err != nil {
		unix.Close(fd)
		return nil, err
	}
	if d.bell, err = bell.New(fd, clonePath); err != nil {
		return nil, err
	}
	// New made it blocking, but reads and writes of a TUN have no flag that says
	// otherwise for one call.
	if err := unix.SetNonblock(fd, true); err != nil {
		d.bell.Close()
		return nil, os.NewSyscallError("set nonblocking mode", err)
	}
	d.try = d.receive
	d.writers.New = func() any {
		w := &writer{joiner: train.Joiner{UDP: d.udp}}
		w.call = w.write
		return w
	}
	return d, nil
}

// attach makes fd the interface's.
func (d *Device) attach(fd, mtu int) error {
	req, err := unix.NewIfreq(d.name)
	if err != nil {
		return fmt.Errorf("interface name %q: %w", d.name, err)
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return os.NewSyscallError("TUNSETIFF", err)
	}
	const tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	d.udp = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tcp|unix.TUN_F_USO4|unix.TUN_F_USO6) == nil // since 6.2
	if !d.udp {
		if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tcp); err != nil {
			return os.NewSyscallError("TUNSETOFFLOAD", err)
		}
	}
	return link(d.name, unix.SIOCSIFMTU, func(req *unix.Ifreq) { req.SetUint32(uint32(mtu)) }, nil)
}

// link asks the kernel about an interface, or tells it something.
func link(name string, what uint, before, after func(*unix.Ifreq)) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if before != nil {
		before(req)
	}
	if err := unix.IoctlIfreq(fd, what, req); err != nil {
		return os.NewSyscallError("ioctl on "+name, err)
	}
	if after != nil {
		after(req)
	}
	return nil
}

// Read waits for packets and writes each to one of bufs, from offset on. After
// an Interrupt there may be none. Its only error is os.ErrClosed: the device was
// closed, or removed.
func (d *Device) Read(bufs [][]byte, sizes []int, offset int) (n int, err error) {
	for n < len(bufs) {
		if !d.split.More() {
			if n >= enough {
				break
			}
			d.wait = n == 0 && !d.peek
			err := d.bell.Wait(d.try)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil || d.readErr == unix.EBADFD {
				if n > 0 {
					break // the next call finds out again
				}
				return 0, os.ErrClosed
			}
			if d.got == 0 {
				break
			}
			if d.split.Load(d.in[:d.got]) != nil {
				d.dropped.Add(1)
			}
			continue
		}
		if sizes[n] = d.split.Cut(bufs[n][offset:]); sizes[n] == 0 {
			d.dropped.Add(1)
			continue
		}
		n++
	}
	return n, nil
}

// Look is a Read that does not wait.
func (d *Device) Look(bufs [][]byte, sizes []int, offset int) (n int, err error) {
	d.peek = true
	defer func() { d.peek = false }()
	return d.Read(bufs, sizes, offset)
}

// Interrupt makes a Read that waits return, or the next one.
func (d *Device) Interrupt() { d.bell.Interrupt() }

// receive reads one frame, or nothing if it is not to wait. The call does not
// block, so the scheduler is not told of it.
func (d *Device) receive(epoll uintptr) bool {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, d.bell.Fd(), uintptr(unsafe.Pointer(&d.in[0])), uintptr(len(d.in)))
		d.got, d.readErr = 0, errno
		switch errno {
		case 0:
			d.got = int(n)
			if d.ready++; d.ready >= busy {
				d.bell.Quiet(epoll)
			}
			return true
		case unix.EINTR:
		case unix.EAGAIN:
			if !d.wait {
				return true
			}
			d.ready = 0
			return d.bell.Empty(epoll)
		default:
			return true
		}
	}
}

// Write gives packets to the kernel, each in one of bufs from offset on. Those
// it does not take, because the interface is down, are dropped and counted. The
// only error is os.ErrClosed.
func (d *Device) Write(bufs [][]byte, offset int) (int, error) {
	w := d.writers.Get().(*writer)
	defer d.writers.Put(w)
	for _, b := range bufs {
		w.joiner.Add(b[offset:])
	}
	w.dropped, w.gone = 0, false
	err := d.bell.Control(w.call)
	n := len(bufs) - w.dropped
	w.joiner.Reset()
	if err != nil || w.gone {
		return 0, os.ErrClosed
	}
	d.dropped.Add(uint64(w.dropped))
	return n, nil
}

// writer is what one Write needs.
type writer struct {
	joiner train.Joiner
	iovs   [1 + 1 + train.MostPieces]unix.Iovec

	call    func(uintptr) // made once: a closure per call would be an allocation per call
	dropped int           // results of call
	gone    bool
}

func (w *writer) write(fd uintptr) {
	trains := w.joiner.Trains()
	for i := range trains {
		t := &trains[i]
		t.Finish()
		switch errno := w.send(fd, t); errno {
		case 0:
		case unix.EBADFD:
			w.gone = true
			return
		default:
			w.dropped += 1 + len(t.Rest)
		}
	}
	clear(w.iovs[:]) // or they would keep the caller's buffers alive
}

func (w *writer) send(fd uintptr, t *train.Train) unix.Errno {
	n := 0
	piece := func(b []byte) {
		w.iovs[n].Base = &b[0]
		w.iovs[n].SetLen(len(b))
		n++
	}
	piece(t.Frame[:])
	piece(t.Head)
	for _, b := range t.Rest {
		piece(b)
	}
	for {
		if _, _, errno := unix.RawSyscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&w.iovs[0])), uintptr(n)); errno != unix.EINTR {
			return errno
		}
	}
}

// Dropped returns how many packets were malformed, or not taken by the kernel.
func (d *Device) Dropped() uint64 { return d.dropped.Load() }

// MTU returns the interface's MTU.
func (d *Device) MTU() (mtu int, err error) {
	err = link(d.name, unix.SIOCGIFMTU, nil, func(req *unix.Ifreq) { mtu = int(int32(req.Uint32())) })
	return mtu, err
}

// Name returns the name that the interface was made with.
func (d *Device) Name() (string, error) { return d.name, nil }

// BatchSize is how many packets Read can give, and Write likes to get.
func (d *Device) BatchSize() int { return batch }

// File returns nil: nobody else may use the descriptor.
func (d *Device) File() *os.File { return nil }

// Events returns a channel that is closed by Close. What happens to interfaces
// package routing sees.
func (d *Device) Events() <-chan tun.Event { return d.events }

// Close removes the interface.
func (d *Device) Close() (err error) {
	d.close.Do(func() {
		err = d.bell.Close()
		close(d.events)
	})
	return err
}

var _ tun.Device = (*Device)(nil)
