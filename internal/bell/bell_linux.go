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
	err = errors.Join(unix.SetNonblock(epoll, true), unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{}))
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
	if !b.armed {
		b.armed = true
		b.watch(epoll, unix.EPOLLIN|unix.EPOLLET)
	}
	return false
}

// Quiet makes what comes wake nobody until the next Empty. A reader that has
// much to do calls it from a try; for one that is mostly waiting, being woken
// for nothing now and then costs less than these calls.
func (b *Bell) Quiet(epoll uintptr) {
	if b.armed {
		b.armed = false
		b.watch(epoll, 0)
		// What has come before is still listed as ready, and what is listed rings
		// for nothing new when it is watched again. Asking for it clears the list.
		var e unix.EpollEvent
		unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, epoll, uintptr(unsafe.Pointer(&e)), 1, 0, 0, 0)
	}
}

func (b *Bell) watch(epoll uintptr, events uint32) {
	e := unix.EpollEvent{Events: events}
	unix.RawSyscall6(unix.SYS_EPOLL_CTL, epoll, unix.EPOLL_CTL_MOD, uintptr(b.fd), uintptr(unsafe.Pointer(&e)), 0, 0)
}

// Close ends the waiting, and closes the descriptor when nobody uses it.
func (b *Bell) Close() error {
	// Closing the epoll instance waits for whoever is within Wait, so the
	// descriptor is not given to another file meanwhile.
	return errors.Join(b.epoll.Close(), b.file.Close())
}
