//go:build !linux

package relay

import "net"

// limitUnsent: elsewhere the kernel's own bounds count.
func limitUnsent(*net.TCPConn) {}
