package netstack

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// hear makes a datagram socket report every error that comes for what it sent:
// without it Linux keeps "host unreachable" to itself. Each is then also in a
// queue, which dropErrors empties.
func hear(fd int) error {
	return os.NewSyscallError("set IP_RECVERR", unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1))
}

// hearErrors is hear as a Control.
func hearErrors(_, _ string, c syscall.RawConn) (err error) {
	cerr := c.Control(func(fd uintptr) { err = hear(int(fd)) })
	return errors.Join(cerr, err)
}

// dropErrors empties the queue of errors, which takes room from what is received.
func dropErrors(fd int) {
	for {
		if _, _, _, _, err := unix.Recvmsg(fd, nil, nil, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT); err != nil {
			return
		}
	}
}
