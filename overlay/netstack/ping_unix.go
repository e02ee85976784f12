//go:build unix

package netstack

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// openPing opens a socket that may send echo requests to one host, and nothing
// else: no privilege is needed, but on Linux the user's group must be in
// net.ipv4.ping_group_range.
func openPing(to netip.Addr) (net.Conn, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP)
	if err != nil {
		return nil, fmt.Errorf("open ping socket: %w", err)
	}
	unix.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "ping")
	defer f.Close() // FileConn has a descriptor of its own
	if err := hear(fd); err != nil {
		return nil, fmt.Errorf("set up ping socket: %w", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: to.As4()}); err != nil {
		return nil, fmt.Errorf("connect ping socket to %s: %w", to, err)
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("use ping socket: %w", err)
	}
	return c, nil
}
