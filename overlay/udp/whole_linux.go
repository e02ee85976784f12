package udp

import (
	"os"

	"golang.org/x/sys/unix"
)

// pass sets whether routers may cut what the socket sends from now on.
func (s *Socket) pass(whole bool) error {
	level, name, value := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, discover4
	if whole {
		value = unix.IP_PMTUDISC_PROBE
	}
	if s.local.Addr().Is6() {
		level, name, value = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, discover6
		if whole {
			value = unix.IPV6_PMTUDISC_PROBE
		}
	}
	var err error
	if cerr := s.handle.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, name, value) }); cerr != nil {
		return cerr
	}
	return os.NewSyscallError("set MTU_DISCOVER", err)
}

// What a socket does with datagrams that are too long, but for SendWhole. By
// IPv4 they leave without the don't-fragment bit, and what ICMP says of paths is
// not believed, since anybody can forge it: only the own link's MTU counts. By
// IPv6 nobody cuts but the sender, who must believe it, and then never cuts
// below 1280 bytes.
const (
	discover4 = unix.IP_PMTUDISC_OMIT
	discover6 = unix.IPV6_PMTUDISC_DONT
)
