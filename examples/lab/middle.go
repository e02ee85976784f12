//go:build linux

package lab

import (
	"context"
	"strconv"
)

// SetMiddleMTU changes the MTU of the wires between internet and both NATs,
// whatever is under way on them.
func (l *Lab) SetMiddleMTU(ctx context.Context, mtu int) error {
	for _, end := range []struct {
		m    *Machine
		link string
	}{{l.HomeNAT, "eth0"}, {l.Internet, "home"}, {l.Internet, "lab"}, {l.LabNAT, "eth0"}} {
		if err := end.m.ip(ctx, "link", "set", end.link, "mtu", strconv.Itoa(mtu)); err != nil {
			return err
		}
	}
	return nil
}

// DropFragments makes the internet lose every fragment but the first, as many a
// firewall does.
func (l *Lab) DropFragments(ctx context.Context) error {
	return l.Internet.iptables(ctx, "-A", "FORWARD", "-f", "-j", "DROP")
}
