package owner

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Known reports whether this system tells.
const Known = true

// errNobody means that there is no such socket, or that nobody has it open.
var errNobody = errors.New("nobody has it open")

// Of returns the user who has the socket at client that talks to server, which is
// a port of this process; network is tcp or udp.
func Of(network string, client, server netip.AddrPort) (uid int, err error) {
	client = netip.AddrPortFrom(client.Addr().Unmap(), client.Port())
	server = netip.AddrPortFrom(server.Addr().Unmap(), server.Port())
	uid, err = ask(network, client, server)
	if err != nil && !errors.Is(err, errNobody) {
		uid, err = read(network, client, server)
	}
	if err != nil {
		return 0, fmt.Errorf("find the user of %s %s: %w", network, client, err)
	}
	return uid, nil
}

// The parts of struct inet_diag_req_v2 and inet_diag_msg (linux/inet_diag.h).
const (
	requestSize = 8 + sockIDSize
	sockIDSize  = 2 + 2 + 16 + 16 + 4 + 8
	answerUID   = 4 + sockIDSize + 4 + 4 + 4
	answerInode = answerUID + 4
	answerSize  = answerInode + 4
)

// answerWithin bounds the wait for the kernel, which answers as it is asked.
var answerWithin = unix.Timeval{Sec: 1}

// appendRequest appends the question for one socket.
func appendRequest(b []byte, protocol uint8, from, to netip.AddrPort) []byte {
	b = binary.NativeEndian.AppendUint32(b, unix.NLMSG_HDRLEN+requestSize)
	b = binary.NativeEndian.AppendUint16(b, unix.SOCK_DIAG_BY_FAMILY)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST)
	b = append(b, make([]byte, 4+4)...) // number and sender: the only one on its socket
	family := byte(unix.AF_INET)
	if from.Addr().Is6() {
		family = unix.AF_INET6
	}
	b = append(b, family, protocol, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, 0xffffffff) // in whatever state
	b = binary.BigEndian.AppendUint16(b, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	for _, a := range []netip.Addr{from.Addr(), to.Addr()} {
		b = append(b, a.AsSlice()...)
		b = append(b, make([]byte, 16-a.BitLen()/8)...)
	}
	b = binary.NativeEndian.AppendUint32(b, 0) // on any interface
	return binary.NativeEndian.AppendUint64(b, 1<<64-1)
}

// ask asks the kernel. Of a connection it wants the socket's own end first; of
// datagrams the sender's, as if one were on its way to the socket.
func ask(network string, client, server netip.AddrPort) (uid int, err error) {
	b := make([]byte, 0, 512) // more than an answer and its attributes
	if network == "udp" {
		b = appendRequest(b, unix.IPPROTO_UDP, server, client)
	} else {
		b = appendRequest(b, unix.IPPROTO_TCP, client, server)
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &answerWithin); err != nil {
		return 0, err
	}
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, err
	}
	n, _, err := unix.Recvfrom(fd, b[:cap(b)], 0)
	if err != nil {
		return 0, err
	}
	return parseAnswer(b[:n])
}

// errAnswer means that the kernel said something else than expected.
var errAnswer = errors.New("the answer is malformed")

// parseAnswer reads what the kernel says: a socket, or an error.
func parseAnswer(b []byte) (uid int, err error) {
	if len(b) < unix.NLMSG_HDRLEN+4 {
		return 0, errAnswer
	}
	kind, body := binary.NativeEndian.Uint16(b[4:]), b[unix.NLMSG_HDRLEN:]
	switch {
	case kind == unix.NLMSG_ERROR:
		return 0, unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
	case kind != unix.SOCK_DIAG_BY_FAMILY || len(body) < answerSize:
		return 0, errAnswer
	case binary.NativeEndian.Uint32(body[answerInode:]) == 0:
		return 0, errNobody
	}
	return int(binary.NativeEndian.Uint32(body[answerUID:])), nil
}

// read looks for the socket in /proc/net, also among those of IPv6, which may
// speak IPv4.
func read(network string, client, server netip.AddrPort) (int, error) {
	for _, name := range []string{network, network + "6"} {
		f, err := os.Open("/proc/net/" + name)
		if errors.Is(err, os.ErrNotExist) {
			continue // without IPv6
		}
		if err != nil {
			return 0, err
		}
		uid, err := find(f, network == "udp", client, server)
		f.Close()
		if !errors.Is(err, errNobody) {
			return uid, err
		}
	}
	return 0, errNobody
}
