package overlay

import (
	"context"
	"net"
	"net/netip"
	"slices"
)

// kernelSockets are the kernel's. They never leave by another interface than the
// overlay's: while that is away, or made anew, there is no connection, instead of
// one that goes out in the clear.
type kernelSockets struct {
	link string // the overlay's interface
}

var _ sockets = kernelSockets{}

// Dial implements sockets.
func (k kernelSockets) Dial(ctx context.Context, network string, from netip.Addr, to netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	if !k.owns(to.Addr()) { // those the kernel reaches by the loopback
		d.Control = bindTo(k.link)
	}
	if from.IsValid() {
		if network == "udp" {
			d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
		} else {
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
		}
	}
	return d.DialContext(ctx, network, to.String())
}

// owns reports whether an address is on the interface.
func (k kernelSockets) owns(a netip.Addr) bool {
	link, err := net.InterfaceByName(k.link)
	if err != nil {
		return false
	}
	addrs, err := link.Addrs()
	return err == nil && slices.ContainsFunc(addrs, func(own net.Addr) bool {
		p, err := netip.ParsePrefix(own.String())
		return err == nil && p.Addr() == a
	})
}

// Listen implements sockets.
func (k kernelSockets) Listen(ctx context.Context, network string, at netip.AddrPort) (net.Listener, error) {
	l := net.ListenConfig{Control: bindEarly}
	return l.Listen(ctx, network, at.String())
}

// ListenPacket implements sockets.
func (k kernelSockets) ListenPacket(ctx context.Context, network string, at netip.AddrPort) (net.PacketConn, error) {
	l := net.ListenConfig{Control: bindEarly}
	return l.ListenPacket(ctx, network, at.String())
}
