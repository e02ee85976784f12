package overlay

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"overlayd/routing"
)

// preflight checks what a node needs of its machine before anything is asked of
// the coordinator or changed.
func preflight(gateway bool) error {
	if os.Geteuid() != 0 {
		return fault(ExitPermission, "run it with sudo", "overlayd makes a network interface and routes: it needs root")
	}
	if _, err := os.Stat("/dev/net/tun"); errors.Is(err, fs.ErrNotExist) {
		return fault(ExitFailure, "run `modprobe tun`; in a container add --device /dev/net/tun",
			"/dev/net/tun is missing: the kernel offers no TUN interfaces")
	}
	if gateway {
		if _, err := exec.LookPath("iptables"); err != nil {
			return fault(ExitFailure, "install it: apt install iptables", "a gateway needs iptables, which is not there")
		}
	}
	return nil
}

// markedDialer makes TCP connections that never enter the tunnel.
func markedDialer() *net.Dialer {
	return &net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, routing.Mark)
		})
		return errors.Join(cerr, err)
	}}
}
