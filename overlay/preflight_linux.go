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
// the coordinator or changed. The hint is for who is not root.
func preflight(gateway bool, hint string) error {
	if err := needRoot(hint); err != nil {
		return err
	}
	if _, err := os.Stat("/dev/net/tun"); errors.Is(err, fs.ErrNotExist) {
		return fault(ExitFailure, "run `modprobe tun`; in a container add --device /dev/net/tun",
			"/dev/net/tun is missing: the kernel offers no TUN interfaces")
	}
	if gateway {
		if !haveIptables() {
			return fault(ExitFailure, "install it: apt install iptables", "a gateway needs iptables, which is not there")
		}
	}
	return nil
}

// sudo is the hint for who is not root and has no other way.
const sudo = "run it with sudo"

func needRoot(hint string) error {
	if os.Geteuid() == 0 {
		return nil
	}
	return fault(ExitPermission, hint, "overlayd makes a network interface and routes: it needs root")
}

// controlMSS is the most that a segment to or from the coordinator carries:
// what fits into 1280 bytes, which every IPv6 network and any tunnel in use
// passes, less 40 for IPv6 and 20 for TCP. A TLS greeting of today is longer
// than a segment, so where a wire in the middle is short and ICMP is filtered,
// even that would never arrive.
const controlMSS = 1280 - 40 - 20

// markedDialer makes TCP connections that never enter the tunnel; unmarked, where
// no route leads there.
func markedDialer(marked bool) *net.Dialer {
	return &net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) {
			if marked {
				err = mark(fd)
			}
			err = errors.Join(err,
				unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, controlMSS)) // tells the other side, too
		})
		return errors.Join(cerr, err)
	}}
}

// markSocket is a Control that keeps what a socket sends out of the tunnel.
func markSocket(_, _ string, c syscall.RawConn) error {
	var err error
	cerr := c.Control(func(fd uintptr) { err = mark(fd) })
	return errors.Join(cerr, err)
}

func mark(fd uintptr) error {
	return unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, routing.Mark)
}

func haveIptables() bool {
	_, err := exec.LookPath("iptables")
	return err == nil
}
