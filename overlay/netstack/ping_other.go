//go:build !unix

package netstack

import (
	"errors"
	"net"
	"net/netip"
)

// openPing: there are no such sockets here.
func openPing(netip.Addr) (net.Conn, error) { return nil, errors.ErrUnsupported }
