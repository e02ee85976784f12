//go:build !linux

package nat

import "net/netip"

// Tracker asks the kernel's connection tracking.
type Tracker struct{}

// NewTracker says that this system is not supported.
func NewTracker() (*Tracker, error) { return nil, errSystem }

// Close does nothing.
func (*Tracker) Close() {}

// Outside says that this system is not supported.
func (*Tracker) Outside(uint8, netip.AddrPort, netip.AddrPort) (netip.AddrPort, error) {
	return netip.AddrPort{}, errSystem
}
