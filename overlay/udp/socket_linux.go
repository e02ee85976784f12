package udp

import (
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// tune sets the options of a new socket, before it is bound.
func tune(fd uintptr, v6 bool, o Options) error {
	set := func(what string, level, name, value int) error {
		return os.NewSyscallError("set "+what, unix.SetsockoptInt(int(fd), level, name, value))
	}
	var err error
	if v6 {
		err = set("IPV6_MTU_DISCOVER", unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, discover6)
	} else {
		err = set("IP_MTU_DISCOVER", unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, discover4)
	}
	if err == nil && o.Mark != 0 {
		err = set("SO_MARK", unix.SOL_SOCKET, unix.SO_MARK, int(o.Mark))
	}
	if err == nil && o.ReusePort {
		err = set("SO_REUSEPORT", unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	}
	if err != nil {
		return err
	}
	// The rest makes it fast and is not needed to make it work. The FORCE forms
	// pass net.core.rmem_max and need CAP_NET_ADMIN.
	for _, b := range [...]struct{ force, plain int }{
		{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF},
		{unix.SO_SNDBUFFORCE, unix.SO_SNDBUF},
	} {
		if set("buffer", unix.SOL_SOCKET, b.force, o.buffer()) != nil {
			_ = set("buffer", unix.SOL_SOCKET, b.plain, o.buffer())
		}
	}
	_ = set("SO_RXQ_OVFL", unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1)
	if kernelAtLeast(5, 12) { // earlier ones merged trains wrongly when forwarding
		_ = set("UDP_GRO", unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	}
	return nil
}

// kernelAtLeast reports whether the running kernel is of this version or later.
func kernelAtLeast(major, minor int) bool {
	var u unix.Utsname
	var a, b int
	if unix.Uname(&u) != nil {
		return false
	}
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &a, &b); err != nil {
		return false
	}
	return a > major || a == major && b >= minor
}

// maxSegments is how many datagrams one UDP_SEGMENT message may hold. The
// kernel allows 64, or 128 from 6.9, but counts the UDP header as data too.
var maxSegments = func() int {
	if kernelAtLeast(6, 9) {
		return 127
	}
	return 63
}()

// offload remembers whether this socket's device takes UDP_SEGMENT at all.
type offload struct {
	strikes atomic.Int32 // EIO in a row
	retryAt atomic.Int64 // Unix seconds
}

const (
	// strikesOut is how many failures in a row turn UDP_SEGMENT off: a single
	// one can belong to one route only.
	strikesOut = 3
	// offloadRetry is when a socket that was turned off tries again, since the
	// route may lead through another device by then.
	offloadRetry = 10 * time.Minute
)

// segments returns the datagrams a message may hold now.
func (o *offload) segments() int {
	if o.strikes.Load() < strikesOut {
		return maxSegments
	}
	if now := time.Now().Unix(); now >= o.retryAt.Load() {
		o.retryAt.Store(now + int64(offloadRetry/time.Second))
		o.strikes.Store(strikesOut - 1)
		return maxSegments
	}
	return 1
}

// failed notes that the device refused a message for good (EIO).
func (o *offload) failed() {
	if o.strikes.Add(1) == strikesOut {
		o.retryAt.Store(time.Now().Add(offloadRetry).Unix())
	}
}

// worked notes that a message of several datagrams was taken.
func (o *offload) worked() {
	if o.strikes.Load() != 0 {
		o.strikes.Store(0)
	}
}
