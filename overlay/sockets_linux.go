package overlay

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// bindTo is a Control that ties a socket to an interface.
func bindTo(link string) func(string, string, syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), link) })
		return errors.Join(cerr, err)
	}
}

// bindEarly is a Control that lets a socket have an address that is not there
// yet: the interface may be made anew while somebody listens.
func bindEarly(_, _ string, c syscall.RawConn) error {
	var err error
	cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1) })
	return errors.Join(cerr, err)
}
