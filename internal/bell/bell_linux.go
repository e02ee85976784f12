package bell

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Bell owns a descriptor. One goroutine waits for it with Wait; any number use
// it with Control.
type Bell struct {
	file *os.File // in blocking mode, so that the runtime leaves it alone
	fd   int      // file's; valid within Wait and Control
	raw  syscall.RawConn

	epoll *os.File
	ring  syscall.RawConn // epoll's

	armed bool // belongs to the goroutine that waits
}

// New takes fd over, which it makes blocking: system calls that must not block
// have to say so. On an error fd is closed.
func New(fd int, name string) (*Bell, error) {
	if err := unix.SetNonblock(fd, false); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("set blocking mode", err)
	}
	b := &Bell{file: os.NewFile(uintptr(fd), name), fd: fd}
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		b.file.Close()
		return nil, os.NewSyscallError("epoll_create", err)
	}
	err = errors.Join(unix.SetNonblock(epoll, true),
		unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{}), unix.EpollCtl(epoll, unix.EPOLL_CTL_DEL, fd, nil)) // whether it can
	b.epoll = os.NewFile(uintptr(epoll), name) // nonblocking: the runtime watches it
	if err == nil {
		b.raw, err = b.file.SyscallConn()
	}
	if err == nil {
		b.ring, err = b.epoll.SyscallConn()
	}
	if err != nil {
		b.Close()
		return nil, fmt.Errorf("watch %s: %w", name, err)
	}
	return b, nil
}

// Wait calls try until it returns true, at once and then whenever something may
// have come. Its error is os.ErrClosed, or os.ErrDeadlineExceeded after an
// Interrupt.
func (b *Bell) Wait(try func(epoll uintptr) bool) error {
	switch err := b.ring.Read(try); {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		if b.epoll.SetReadDeadline(time.Time{}) == nil {
			return os.ErrDeadlineExceeded
		}
	}
	return os.ErrClosed
}

// Interrupt ends the Wait that is going on, or the next one. What the caller
// did before, the one who waits sees after.
func (b *Bell) Interrupt() {
	_ = b.epoll.SetReadDeadline(time.Unix(1, 0)) // long past; an error means that it is closed
}

// Fd returns the descriptor. It is valid within Wait and Control.
func (b *Bell) Fd() uintptr { return uintptr(b.fd) }

// Control calls use with the descriptor, which stays open meanwhile.
func (b *Bell) Control(use func(fd uintptr)) error { return b.raw.Control(use) }

// Empty is what a try returns that found nothing: it sees to it that Wait is
// woken when something comes, or has come since.
func (b *Bell) Empty(epoll uintptr) bool {
	for !b.armed {
		if b.armed = b.ctl(epoll, unix.EPOLL_CTL_ADD) == 0; !b.armed {
			time.Sleep(time.Millisecond) // the kernel has no memory for it just now
		}
	}
	return false
}

// Quiet makes what comes wake nobody until the next Empty. A reader that has
// much to do calls it from a try; for one that is mostly waiting, being woken
// for nothing now and then costs less than these calls. To ask for no events would
// not do: the kernel would still look at every packet for it.
func (b *Bell) Quiet(epoll uintptr) {
	if b.armed {
		b.armed = b.ctl(epoll, unix.EPOLL_CTL_DEL) != 0
	}
}

func (b *Bell) ctl(epoll uintptr, op uintptr) unix.Errno {
	e := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET}
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, epoll, op, uintptr(b.fd), uintptr(unsafe.Pointer(&e)), 0, 0)
	return errno
}

// Close ends the waiting, and closes the descriptor when nobody uses it.
func (b *Bell) Close() error {
	// Closing the epoll instance waits for whoever is within Wait, so the
	// descriptor is not given to another file meanwhile.
	return errors.Join(b.epoll.Close(), b.file.Close())
}
