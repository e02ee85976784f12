package netstack

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// refusals brings "administratively prohibited" to the UDP socket whose datagram is
// meant, as Linux does; the stack itself only tells of ports that are unreachable.
type refusals struct {
	mu sync.Mutex // guards of
	of map[refused]*datagrams
}

// refused is what such an error quotes: from where to where.
type refused struct{ from, to netip.AddrPort }

// expect has a connected socket told.
func (r *refusals) expect(k refused, c *datagrams) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.of[k] = c
}

// forget has it told no more.
func (r *refusals) forget(k refused, c *datagrams) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.of[k] == c {
		delete(r.of, k)
	}
}

// hear tells the socket that a packet is for, if it is such an error.
func (r *refusals) hear(p []byte) {
	k, errno, ok := parseRefusal(p)
	if !ok {
		return
	}
	r.mu.Lock()
	c := r.of[k]
	r.mu.Unlock()
	if c != nil {
		c.refuse(errno)
	}
}

// parseRefusal reads an ICMP error that says that a datagram is prohibited, and which
// (RFC 792, RFC 1812 section 5.2.7.1).
func parseRefusal(p []byte) (k refused, errno syscall.Errno, ok bool) {
	quote, ok := icmpOf(p)
	if !ok || header.ICMPv4(quote).Type() != header.ICMPv4DstUnreachable {
		return k, 0, false
	}
	switch header.ICMPv4(quote).Code() {
	case header.ICMPv4NetProhibited:
		errno = syscall.ENETUNREACH
	case header.ICMPv4HostProhibited, header.ICMPv4AdminProhibited:
		errno = syscall.EHOSTUNREACH
	default:
		return k, 0, false
	}
	b := quote[header.ICMPv4MinimumSize:]
	if len(b) < quoted || b[0]>>4 != 4 || b[9] != protoUDP {
		return k, 0, false
	}
	h := header.IPv4(b)
	at := int(h.HeaderLength())
	if at < header.IPv4MinimumSize || len(b) < at+4 || h.FragmentOffset() != 0 {
		return k, 0, false
	}
	k.from = netip.AddrPortFrom(netip.AddrFrom4(h.SourceAddress().As4()), binary.BigEndian.Uint16(b[at:]))
	k.to = netip.AddrPortFrom(netip.AddrFrom4(h.DestinationAddress().As4()), binary.BigEndian.Uint16(b[at+2:]))
	return k, errno, true
}

// icmpOf returns the ICMP message in an IPv4 packet that is whole.
func icmpOf(p []byte) ([]byte, bool) {
	if len(p) < header.IPv4MinimumSize || p[0]>>4 != 4 || p[9] != protoICMP {
		return nil, false
	}
	h := header.IPv4(p)
	at := int(h.HeaderLength())
	if at < header.IPv4MinimumSize || len(p) < at+header.ICMPv4MinimumSize || h.FragmentOffset() != 0 {
		return nil, false
	}
	return p[at:], true
}
