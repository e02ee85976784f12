package nat

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
)

// The attributes of a connection (linux/netfilter/nfnetlink_conntrack.h).
const (
	ctTupleOrig  = 1
	ctTupleReply = 2

	ctTupleIP    = 1
	ctTupleProto = 2

	ctIP4Src = 1
	ctIP4Dst = 2

	ctProtoNum     = 1
	ctProtoSrcPort = 2
	ctProtoDstPort = 3
)

// ctGet asks for one connection.
const ctGet = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1

// Tracker asks the kernel's connection tracking. One goroutine uses it at a
// time.
type Tracker struct{ conn nfnetlink }

// NewTracker opens a connection to the kernel in the calling thread's network
// namespace.
func NewTracker() (*Tracker, error) {
	conn, err := dialNFT()
	if err != nil {
		return nil, err
	}
	return &Tracker{conn}, nil
}

// Close ends it.
func (t *Tracker) Close() { t.conn.close() }

// Outside returns the address and port that a connection from src to dst comes
// from, as dst sees it; the zero AddrPort when the kernel does not know of it.
// Only TCP and UDP of IPv4 have one.
func (t *Tracker) Outside(proto uint8, src, dst netip.AddrPort) (seen netip.AddrPort, err error) {
	if proto != unix.IPPROTO_TCP && proto != unix.IPPROTO_UDP || !src.Addr().Is4() || !dst.Addr().Is4() {
		return netip.AddrPort{}, nil
	}
	ip := append(attrBytes(ctIP4Src, src.Addr().AsSlice()), attrBytes(ctIP4Dst, dst.Addr().AsSlice())...)
	ports := append(attrBytes(ctProtoNum, []byte{proto}), attrBytes(ctProtoSrcPort, binary.BigEndian.AppendUint16(nil, src.Port()))...)
	ports = append(ports, attrBytes(ctProtoDstPort, binary.BigEndian.AppendUint16(nil, dst.Port()))...)
	tuple := append(attrBytes(ctTupleIP|unix.NLA_F_NESTED, ip), attrBytes(ctTupleProto|unix.NLA_F_NESTED, ports)...)
	err = t.conn.send(message(ctGet, unix.NLM_F_REQUEST, unix.NFPROTO_IPV4, 0, attrBytes(ctTupleOrig|unix.NLA_F_NESTED, tuple)))
	if err != nil {
		return netip.AddrPort{}, err
	}
	var failed error
	err = t.conn.receive(func(typ uint16, body []byte) bool {
		if typ == unix.NLMSG_ERROR {
			failed = errno(body)
		} else if len(body) >= nfgenHeader {
			seen = repliesTo(body[nfgenHeader:])
		}
		return false
	})
	if errors.Is(failed, unix.ENOENT) {
		failed = nil
	}
	return seen, errors.Join(err, failed)
}

// repliesTo reads where a connection's replies go to.
func repliesTo(b []byte) netip.AddrPort {
	tuple := attributes(attributes(b)[ctTupleReply])
	a, ok := netip.AddrFromSlice(attributes(tuple[ctTupleIP])[ctIP4Dst])
	port := attributes(tuple[ctTupleProto])[ctProtoDstPort]
	if !ok || len(port) < 2 {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(port))
}

// attrBytes makes an attribute.
func attrBytes(typ uint16, v []byte) []byte {
	size := attrHeader + len(v)
	b := make([]byte, align(size))
	binary.NativeEndian.PutUint16(b, uint16(size))
	binary.NativeEndian.PutUint16(b[2:], typ)
	copy(b[attrHeader:], v)
	return b
}
