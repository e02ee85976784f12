package nat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Sizes in bytes of what nfnetlink messages consist of.
const (
	nlmsgHeader = unix.SizeofNlMsghdr
	nfgenHeader = 4 // family, version, resource
	attrHeader  = 4 // length, type
)

// policyAccept is NF_ACCEPT.
const policyAccept = 1

// nfnetlink is a connection to the kernel's netfilter.
type nfnetlink struct{ fd int }

// dialNFT opens a connection in the calling thread's network namespace.
func dialNFT() (nfnetlink, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nfnetlink{}, os.NewSyscallError("socket", err)
	}
	timeout := unix.Timeval{Sec: 5}
	err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}
	if err != nil {
		unix.Close(fd)
		return nfnetlink{}, os.NewSyscallError("bind", err)
	}
	return nfnetlink{fd}, nil
}

func (n nfnetlink) close() { unix.Close(n.fd) }

// tables lists the tables of family ip and their chains.
func (n nfnetlink) tables() (nftTables, error) {
	all := nftTables{}
	err := n.dump(unix.NFT_MSG_GETTABLE, func(attrs map[uint16][]byte) {
		all[text(attrs[unix.NFTA_TABLE_NAME])] = nil
	})
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	err = n.dump(unix.NFT_MSG_GETCHAIN, func(attrs map[uint16][]byte) {
		table := text(attrs[unix.NFTA_CHAIN_TABLE])
		_, base := attrs[unix.NFTA_CHAIN_HOOK]
		all[table] = append(all[table], nftChain{
			name: text(attrs[unix.NFTA_CHAIN_NAME]),
			base: base,
			used: number(attrs[unix.NFTA_CHAIN_USE]) != 0 || base && number(attrs[unix.NFTA_CHAIN_POLICY]) != policyAccept,
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	return all, nil
}

// remove removes empty chains of a table, and the table if whole is set, all or
// nothing. The kernel refuses if anything of them is in use by then.
func (n nfnetlink) remove(table string, chains []string, whole bool) error {
	const flags = unix.NLM_F_REQUEST | unix.NLM_F_ACK | unix.NLM_F_NONREC
	batch := message(unix.NFNL_MSG_BATCH_BEGIN, unix.NLM_F_REQUEST, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	acks := 0
	for _, c := range chains {
		batch = append(batch, message(nftType(unix.NFT_MSG_DELCHAIN), flags, unix.NFPROTO_IPV4, 0,
			attr(unix.NFTA_CHAIN_TABLE, table), attr(unix.NFTA_CHAIN_NAME, c))...)
		acks++
	}
	if whole {
		batch = append(batch, message(nftType(unix.NFT_MSG_DELTABLE), flags, unix.NFPROTO_IPV4, 0,
			attr(unix.NFTA_TABLE_NAME, table))...)
		acks++
	}
	batch = append(batch, message(unix.NFNL_MSG_BATCH_END, unix.NLM_F_REQUEST, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)...)
	if err := n.send(batch); err != nil {
		return err
	}
	var failed error
	for acks > 0 {
		err := n.receive(func(typ uint16, body []byte) bool {
			if typ == unix.NLMSG_ERROR {
				acks--
				if err := errno(body); err != nil && failed == nil {
					failed = err
				}
			}
			return true
		})
		if err != nil {
			return errors.Join(failed, err)
		}
	}
	return failed
}

// dump asks for everything of one kind of family ip, and calls each with the
// attributes of every answer.
func (n nfnetlink) dump(kind uint16, each func(map[uint16][]byte)) error {
	if err := n.send(message(nftType(kind), unix.NLM_F_REQUEST|unix.NLM_F_DUMP, unix.NFPROTO_IPV4, 0)); err != nil {
		return err
	}
	var failed error
	for done := false; !done; {
		err := n.receive(func(typ uint16, body []byte) bool {
			switch {
			case typ == unix.NLMSG_DONE:
				done = true
			case typ == unix.NLMSG_ERROR:
				failed, done = errno(body), true
			case len(body) >= nfgenHeader && body[0] == unix.NFPROTO_IPV4:
				each(attributes(body[nfgenHeader:]))
			}
			return !done
		})
		if err != nil {
			return err
		}
	}
	return failed
}

// send sends one or several messages.
func (n nfnetlink) send(b []byte) error {
	return os.NewSyscallError("send", unix.Sendto(n.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
}

// receive reads once and calls each with every message, until it returns false.
func (n nfnetlink) receive(each func(typ uint16, body []byte) bool) error {
	buf := make([]byte, 64<<10)
	size, _, err := unix.Recvfrom(n.fd, buf, 0)
	if err != nil {
		return os.NewSyscallError("receive", err)
	}
	messages(buf[:size], each)
	return nil
}

// messages calls each with every message in b, until it returns false or b is
// not understood any more.
func messages(b []byte, each func(typ uint16, body []byte) bool) {
	for len(b) >= nlmsgHeader {
		size := int(binary.NativeEndian.Uint32(b))
		if size < nlmsgHeader || size > len(b) {
			return
		}
		if !each(binary.NativeEndian.Uint16(b[4:]), b[nlmsgHeader:size]) {
			return
		}
		b = b[min(align(size), len(b)):]
	}
}

// attributes returns the attributes in b by type. They are borrowed from b.
func attributes(b []byte) map[uint16][]byte {
	const flags = 0x3fff // all but "nested" and "in network order"
	attrs := make(map[uint16][]byte)
	for len(b) >= attrHeader {
		size := int(binary.NativeEndian.Uint16(b))
		if size < attrHeader || size > len(b) {
			break
		}
		attrs[binary.NativeEndian.Uint16(b[2:])&flags] = b[attrHeader:size]
		b = b[min(align(size), len(b)):]
	}
	return attrs
}

// message makes one message.
func message(typ, flags uint16, family uint8, resource uint16, attrs ...[]byte) []byte {
	b := make([]byte, nlmsgHeader, 128)
	b = append(b, family, unix.NFNETLINK_V0)
	b = binary.BigEndian.AppendUint16(b, resource)
	for _, a := range attrs {
		b = append(b, a...)
	}
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], typ)
	binary.NativeEndian.PutUint16(b[6:], flags)
	return b
}

// attr makes an attribute that is a text.
func attr(typ uint16, s string) []byte {
	size := attrHeader + len(s) + 1
	b := make([]byte, align(size))
	binary.NativeEndian.PutUint16(b, uint16(size))
	binary.NativeEndian.PutUint16(b[2:], typ)
	copy(b[attrHeader:], s)
	return b
}

// nftType is the number of an nftables message among those of nfnetlink.
func nftType(kind uint16) uint16 { return unix.NFNL_SUBSYS_NFTABLES<<8 | kind }

// errno reads the error of an NLMSG_ERROR message; none is an acknowledgement.
func errno(body []byte) error {
	if len(body) < 4 {
		return unix.EBADMSG
	}
	if n := int32(binary.NativeEndian.Uint32(body)); n < 0 {
		return unix.Errno(-n)
	}
	return nil
}

// align rounds up to what netlink pads to.
func align(n int) int { return (n + 3) &^ 3 }

func text(b []byte) string { return string(bytes.TrimRight(b, "\x00")) }

func number(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}
