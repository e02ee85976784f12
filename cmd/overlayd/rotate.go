package main

import (
	"github.com/spf13/cobra"
)

func (p *program) rotateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "replace this machine's WireGuard key now",
		Long: `Replace this machine's WireGuard key now, and print the new public one. Connections
go on: the coordinator tells the peers, and they begin new sessions. Gateways and
relays do this by themselves every 30 days, other machines when they are renewed.`,
		Example: "  sudo overlayd rotate",
		Args:    words(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			k, err := p.engine.dial(p.common.socket).Rotate(cmd.Context())
			if err != nil {
				return err
			}
			return p.tell(struct {
				Schema    string `json:"schema"`
				PublicKey string `json:"public_key"`
			}{"overlayd.rotate/v1", k.String()}, "%s", k)
		},
	}
	p.jsonFlag(cmd)
	return cmd
}
