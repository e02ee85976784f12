//go:build !linux

package tunnel

import (
	"fmt"

	"golang.zx2c4.com/wireguard/tun"
)

// OpenTUN makes a TUN interface, which lives until it is closed.
func OpenTUN(name string, mtu int) (tun.Device, error) {
	dev, err := tun.CreateTUN(name, mtu)
	if err != nil {
		return nil, fmt.Errorf("open tun %s: %w", name, err)
	}
	return dev, nil
}
