package owner

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink/nl"
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

// request is the question for one socket.
type request struct {
	protocol uint8
	from, to netip.AddrPort
}

func (r request) Len() int { return requestSize }

func (r request) Serialize() []byte {
	b := make([]byte, 0, requestSize)
	family := byte(unix.AF_INET)
	if r.from.Addr().Is6() {
		family = unix.AF_INET6
	}
	b = append(b, family, r.protocol, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, 0xffffffff) // in whatever state
	b = binary.BigEndian.AppendUint16(b, r.from.Port())
	b = binary.BigEndian.AppendUint16(b, r.to.Port())
	for _, a := range []netip.Addr{r.from.Addr(), r.to.Addr()} {
		b = append(b, a.AsSlice()...)
		b = append(b, make([]byte, 16-a.BitLen()/8)...)
	}
	b = binary.NativeEndian.AppendUint32(b, 0) // on any interface
	return binary.NativeEndian.AppendUint64(b, 1<<64-1)
}

// ask asks the kernel. Of a connection it wants the socket's own end first; of
// datagrams the sender's, as if one were on its way to the socket.
func ask(network string, client, server netip.AddrPort) (uid int, err error) {
	r := request{unix.IPPROTO_TCP, client, server}
	if network == "udp" {
		r = request{unix.IPPROTO_UDP, server, client}
	}
	req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, 0)
	req.AddData(r)
	msgs, err := req.Execute(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY)
	if errors.Is(err, unix.ENOENT) {
		// Also what a kernel says that has no such diagnosis.
		return read(network, client, server)
	}
	if err != nil {
		return 0, err
	}
	if len(msgs) != 1 || len(msgs[0]) < answerSize {
		return 0, io.ErrUnexpectedEOF
	}
	if binary.NativeEndian.Uint32(msgs[0][answerInode:]) == 0 {
		return 0, errNobody
	}
	return int(binary.NativeEndian.Uint32(msgs[0][answerUID:])), nil
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
