//go:build linux

package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// The addresses that the NATs' miniupnpd says are theirs: it refuses to work
// with those of [HomePublic] and [LabPublic], which are for documentation. The
// internet sends both to the same NAT.
const (
	HomeMapped = "11.0.0.2"
	LabMapped  = "12.0.0.2"
)

// PortMapping says which protocols a router's miniupnpd speaks.
type PortMapping struct {
	UPnP bool
	PMP  bool // NAT-PMP and PCP, which come together
}

// upnpTable is the nftables table that miniupnpd puts its mappings into.
const upnpTable = "miniupnpd"

// mapsPorts makes one of the NATs ready for miniupnpd. What it has mapped is let in.
func (l *Lab) mapsPorts(ctx context.Context, nat *Machine) error {
	outer, public := HomeMapped, HomePublic
	if nat == l.LabNAT {
		outer, public = LabMapped, LabPublic
	}
	if err := l.Internet.ip(ctx, "route", "replace", outer, "via", public); err != nil {
		return err
	}
	for _, command := range []string{
		"add table inet " + upnpTable,
		"add chain inet " + upnpTable + " passed",
		"add chain inet " + upnpTable + " mapped",
		"add chain inet " + upnpTable + " masked",
		"add chain inet " + upnpTable + " prerouting { type nat hook prerouting priority -100; }",
		"add chain inet " + upnpTable + " postrouting { type nat hook postrouting priority 100; }",
		"add rule inet " + upnpTable + " prerouting jump mapped",
		"add rule inet " + upnpTable + " postrouting jump masked",
	} {
		if err := nat.exec(ctx, "nft", strings.Fields(command)...); err != nil {
			return err
		}
	}
	return nat.iptables(ctx, "-I", "FORWARD", "-m", "conntrack", "--ctstate", "DNAT", "-j", "ACCEPT")
}

// MapPorts starts Debian's miniupnpd on one of the NATs, as if the router had
// just been switched on: what it had mapped before is gone.
func (l *Lab) MapPorts(ctx context.Context, nat *Machine, p PortMapping) (*Process, error) {
	outer, lan := HomeMapped, "eth1"
	if nat == l.LabNAT {
		outer, lan = LabMapped, "br0"
	}
	if _, err := nat.Mappings(ctx); err != nil {
		if err := l.mapsPorts(ctx, nat); err != nil {
			return nil, fmt.Errorf("make %s map ports: %w", nat.Name, err)
		}
	}
	for _, chain := range []string{"passed", "mapped", "masked"} {
		if err := nat.exec(ctx, "nft", "flush", "chain", "inet", upnpTable, chain); err != nil {
			return nil, err
		}
	}
	word := map[bool]string{true: "yes", false: "no"}
	config := strings.Join([]string{
		"ext_ifname=eth0", "ext_ip=" + outer, "listening_ip=" + lan, "http_port=0",
		"enable_upnp=" + word[p.UPnP], "enable_natpmp=" + word[p.PMP],
		"secure_mode=yes", "system_uptime=no", "uuid=00000000-0000-4000-8000-000000000001",
		"upnp_table_name=" + upnpTable, "upnp_nat_table_name=" + upnpTable,
		"upnp_forward_chain=passed", "upnp_nat_chain=mapped", "upnp_nat_postrouting_chain=masked",
		"allow 1024-65535 0.0.0.0/0 1024-65535", "deny 0-65535 0.0.0.0/0 0-65535", "",
	}, "\n")
	file := filepath.Join(l.Dir, nat.Name+"-miniupnpd.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, fmt.Errorf("make %s map ports: %w", nat.Name, err)
	}
	return nat.Start("miniupnpd", "-d", "-f", file, "-P", filepath.Join(l.Dir, nat.Name+"-miniupnpd.pid"))
}

// Mappings lists what a router's miniupnpd has mapped, a rule a line.
func (m *Machine) Mappings(ctx context.Context) ([]string, error) {
	out, err := m.Run(ctx, "nft", "list", "chain", "inet", upnpTable, "mapped")
	if err != nil {
		return nil, err
	}
	var rules []string
	for line := range strings.Lines(out) {
		if strings.Contains(line, "dnat") && strings.Contains(line, "dport") {
			rules = append(rules, strings.TrimSpace(line))
		}
	}
	return rules, nil
}
