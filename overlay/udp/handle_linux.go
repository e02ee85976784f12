package udp

import (
	"net"
	"os"

	"golang.org/x/sys/unix"

	"overlayd/internal/bell"
)

// handle is a socket outside of the runtime's poller.
type handle struct{ *bell.Bell }

// open takes conn's socket over. conn is closed in any case.
func open(conn *net.UDPConn) (handle, error) {
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return handle{}, err
	}
	fd, dupErr := -1, error(nil)
	if err := raw.Control(func(old uintptr) { fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return handle{}, err
	}
	if dupErr != nil {
		return handle{}, os.NewSyscallError("dup", dupErr)
	}
	b, err := bell.New(fd, "udp socket")
	return handle{b}, err
}
