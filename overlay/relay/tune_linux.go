package relay

import (
	"net"

	"golang.org/x/sys/unix"
)

// unsentMost is what the kernel takes beyond what is on its way. More would lie
// there and grow old, out of reach of the outbox, which drops what is old.
const unsentMost = 128 << 10

func limitUnsent(c *net.TCPConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentMost)
	})
}
