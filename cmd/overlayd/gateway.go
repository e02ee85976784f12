package main

import (
	"net/netip"

	"github.com/spf13/cobra"

	"overlayd/overlay/coord"
)

func (p *program) gatewayCommand() *cobra.Command {
	var m member
	var advertise prefixes
	cmd := &cobra.Command{
		Use:   "gateway [LINK]",
		Short: "offer the LAN of this machine to the network",
		Long: `Join the network that LINK invites to, or come back to it without one, and let
its members reach the LAN of this machine. The LAN's hosts need nothing: to them
everything comes from this machine. Runs until Ctrl-C or overlayd down, and
leaves the machine as it was.

Without --advertise it offers the prefixes that the invite approved. Others may
be offered, and wait until overlayd routes approve on the VPS.

With --userspace it needs no root: overlayd itself connects to the LAN's hosts, by
TCP, UDP and ping, for the members who may reach them.

LINK is needed once. It may also come from OVERLAYD_LINK or --link-file, where
other users of this machine do not see it.`,
		Example: `  sudo overlayd gateway ovl://203.0.113.10:443/…
  overlayd gateway --userspace ovl://203.0.113.10:443/…
  sudo overlayd gateway
  sudo overlayd gateway --advertise 192.168.1.0/24 --advertise 10.20.0.0/16`,
		Args:        words(0, 1, "one LINK at most"),
		Annotations: map[string]string{daemonSettings: "yes"},
		PreRunE: func(*cobra.Command, []string) error {
			if a, b, ok := overlapping(advertise); ok {
				return usage("leave out "+b.String(), "--advertise: %s contains %s", a, b)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := p.memberOptions(&m, args)
			if err != nil {
				return err
			}
			o.Role, o.Advertise = coord.RoleGateway, advertise
			return p.serve(cmd.Context(), o, p.engine.node)
		},
	}
	cmd.Flags().Var(&advertise, "advertise", "network to offer; may be given several times")
	m.register(cmd)
	return cmd
}

// overlapping finds two prefixes of which a contains b.
func overlapping(l []netip.Prefix) (a, b netip.Prefix, found bool) {
	for i, a := range l {
		for j, b := range l {
			if i != j && a.Overlaps(b) && (a.Bits() < b.Bits() || a == b) {
				return a, b, true
			}
		}
	}
	return a, b, false
}
