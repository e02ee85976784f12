//go:build linux

package lab

import (
	"context"
	"fmt"
	"os"
)

// NAT is how a router treats what leaves its network.
type NAT string

const (
	// Cone keeps the source port where it can, so that one inner socket has
	// one outer port towards everybody, and drops what nobody asked for.
	// Linux's MASQUERADE does this, and so do most homes. Zero value.
	Cone NAT = ""

	// FullCone is Cone, and lets in whoever sends to the outer port.
	FullCone NAT = "full-cone"

	// Hard is symmetric: each destination sees another random port, and what
	// nobody asked for is dropped. No hole can be punched.
	Hard NAT = "hard"

	// NoUDP is Cone, and lets no UDP through in either direction, until
	// [Machine.PassUDP].
	NoUDP NAT = "no-udp"

	// Routed does not translate and drops nothing.
	Routed NAT = "routed"
)

// filters gives the routers and the gateway their iptables rules.
func (l *Lab) filters(ctx context.Context) error {
	if err := l.HomeNAT.nat(ctx, l.Options.Home, "eth0", "eth1", "10.0.77.2"); err != nil {
		return err
	}
	if err := l.LabNAT.nat(ctx, l.Options.Lab, "eth0", "br0", GatewayAddr); err != nil {
		return err
	}
	if l.Options.FilterICMP {
		for _, m := range []*Machine{l.Internet, l.HomeNAT, l.LabNAT} {
			for _, chain := range []string{"OUTPUT", "FORWARD"} {
				if err := m.iptables(ctx, "-A", chain, "-p", "icmp", "--icmp-type", "fragmentation-needed", "-j", "DROP"); err != nil {
					return err
				}
			}
		}
	}
	if l.Options.Docker {
		return l.Gateway.docker(ctx)
	}
	return nil
}

// nat makes the machine a NAT router of the kind between wan and lan, where
// node is.
func (m *Machine) nat(ctx context.Context, kind NAT, wan, lan, node string) error {
	masquerade := []string{"-t", "nat", "-A", "POSTROUTING", "-o", wan, "-j", "MASQUERADE"}
	switch kind {
	case Routed:
		return nil
	case Cone:
	case FullCone:
		for _, rule := range [][]string{
			{"-t", "nat", "-A", "PREROUTING", "-i", wan, "-p", "udp", "-j", "DNAT", "--to-destination", node},
			{"-A", "FORWARD", "-i", wan, "-o", lan, "-p", "udp", "-d", node, "-j", "ACCEPT"},
		} {
			if err := m.iptables(ctx, rule...); err != nil {
				return err
			}
		}
	case NoUDP:
		if err := m.iptables(ctx, append([]string{"-A"}, udpRule...)...); err != nil {
			return err
		}
	case Hard:
		masquerade = append(masquerade, "--random-fully")
	default:
		return fmt.Errorf("make the NAT of %s: no kind %q", m.Name, string(kind))
	}
	for _, rule := range [][]string{
		masquerade,
		{"-A", "FORWARD", "-i", wan, "-o", lan, "-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT"},
		{"-A", "FORWARD", "-i", wan, "-j", "DROP"},
		{"-A", "INPUT", "-i", wan, "-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT"},
		{"-A", "INPUT", "-i", wan, "-j", "DROP"},
	} {
		if err := m.iptables(ctx, rule...); err != nil {
			return err
		}
	}
	return nil
}

// udpRule is what blocks UDP on a router, without the command in front.
var udpRule = []string{"FORWARD", "-p", "udp", "-j", "DROP"}

// BlockUDP makes a router drop all UDP that it forwards, also of flows that are
// known.
func (m *Machine) BlockUDP(ctx context.Context) error {
	return m.iptables(ctx, append([]string{"-I"}, udpRule...)...)
}

// PassUDP takes BlockUDP, or what NoUDP means, back.
func (m *Machine) PassUDP(ctx context.Context) error {
	return m.iptables(ctx, append([]string{"-D"}, udpRule...)...)
}

// docker makes what the Docker daemon makes of a host's iptables: a FORWARD
// policy of DROP, and its chains in front of everything.
func (m *Machine) docker(ctx context.Context) error {
	for _, rule := range [][]string{
		{"-P", "FORWARD", "DROP"},
		{"-N", "DOCKER"},
		{"-N", "DOCKER-USER"},
		{"-N", "DOCKER-ISOLATION-STAGE-1"},
		{"-N", "DOCKER-ISOLATION-STAGE-2"},
		{"-A", "FORWARD", "-j", "DOCKER-USER"},
		{"-A", "FORWARD", "-j", "DOCKER-ISOLATION-STAGE-1"},
		{"-A", "FORWARD", "-o", "docker0", "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"},
		{"-A", "FORWARD", "-o", "docker0", "-j", "DOCKER"},
		{"-A", "FORWARD", "-i", "docker0", "!", "-o", "docker0", "-j", "ACCEPT"},
		{"-A", "DOCKER-ISOLATION-STAGE-1", "-i", "docker0", "!", "-o", "docker0", "-j", "DOCKER-ISOLATION-STAGE-2"},
		{"-A", "DOCKER-ISOLATION-STAGE-1", "-j", "RETURN"},
		{"-A", "DOCKER-ISOLATION-STAGE-2", "-o", "docker0", "-j", "DROP"},
		{"-A", "DOCKER-ISOLATION-STAGE-2", "-j", "RETURN"},
		{"-A", "DOCKER-USER", "-j", "RETURN"},
		{"-t", "nat", "-N", "DOCKER"},
		{"-t", "nat", "-A", "PREROUTING", "-m", "addrtype", "--dst-type", "LOCAL", "-j", "DOCKER"},
		{"-t", "nat", "-A", "POSTROUTING", "-s", "172.17.0.0/16", "!", "-o", "docker0", "-j", "MASQUERADE"},
	} {
		if err := m.iptables(ctx, rule...); err != nil {
			return err
		}
	}
	if err := m.ip(ctx, "link", "add", "docker0", "type", "bridge"); err != nil {
		return err
	}
	return m.ip(ctx, "addr", "add", "172.17.0.1/16", "dev", "docker0")
}

// routerSysctls make a machine forward; it does not depend on the host's own
// settings, which new namespaces inherit.
func (m *Machine) routerSysctls(ctx context.Context, router bool) error {
	// Debian and Ubuntu set rp_filter 2 (loose) on every machine.
	forward, loose := "0", "2"
	if router {
		forward, loose = "1", "0"
	}
	set := []string{"-qw", "net.ipv4.ip_forward=" + forward,
		"net.ipv4.conf.all.rp_filter=" + loose, "net.ipv4.conf.default.rp_filter=" + loose,
		"net.ipv4.conf.all.send_redirects=0", "net.ipv4.conf.default.send_redirects=0",
		// Addresses are ready at once, not after a second of asking around.
		"net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0"}
	// With br_netfilter loaded, iptables would see the LAN's own frames.
	if _, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables"); err == nil && router {
		set = append(set, "net.bridge.bridge-nf-call-iptables=0")
	}
	return m.exec(ctx, "sysctl", set...)
}
