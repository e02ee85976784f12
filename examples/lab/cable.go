//go:build linux

package lab

import (
	"context"
	"strconv"
	"strings"
)

// cable is a veth pair between two machines.
type cable struct {
	a, b         *Machine
	aLink, bLink string
	aAddr, bAddr string // with prefix length; empty: none
	mtu          int    // zero: 1500
}

// connect makes the pair inside the two namespaces, never on the host itself.
func (l *Lab) connect(ctx context.Context, c cable) error {
	mtu := "1500"
	if c.mtu != 0 {
		mtu = strconv.Itoa(c.mtu)
	}
	if err := run(ctx, "ip", "link", "add", c.aLink, "netns", c.a.Namespace, "mtu", mtu,
		"type", "veth", "peer", "name", c.bLink, "netns", c.b.Namespace, "mtu", mtu); err != nil {
		return err
	}
	for _, end := range []struct {
		m          *Machine
		link, addr string
	}{{c.a, c.aLink, c.aAddr}, {c.b, c.bLink, c.bAddr}} {
		if end.addr != "" {
			if err := end.m.ip(ctx, "addr", "add", end.addr, "dev", end.link); err != nil {
				return err
			}
		}
		if l.Options.NoOffload {
			if err := end.m.exec(ctx, "ethtool", "-K", end.link, "tso", "off", "gso", "off", "gro", "off",
				"tx-udp-segmentation", "off"); err != nil {
				return err
			}
		}
		if err := end.m.ip(ctx, "link", "set", end.link, "up"); err != nil {
			return err
		}
	}
	return nil
}

// cutPrefix splits "10.0.0.1/24".
func cutPrefix(s string) (addr, bits string, ok bool) { return strings.Cut(s, "/") }
