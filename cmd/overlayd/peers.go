package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"overlayd/overlay"
)

func (p *program) peersCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "peers",
		Short: "list the other machines",
		Long: `List the other machines of the network as this one sees them: the path that
packets take, its round trip, bytes, and when the keys were last renewed.`,
		Example: `  overlayd peers
  overlayd peers --json | jq -r '.peers[] | select(.online) | .name'`,
		Args: words(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := p.status(cmd.Context())
			if err != nil {
				return err
			}
			if p.common.json {
				return printJSON(p.stdout, struct {
					Schema string               `json:"schema"`
					Peers  []overlay.StatusPeer `json:"peers"`
				}{"overlayd.peers/v1", notNil(s.Peers)})
			}
			if len(s.Peers) == 0 {
				fmt.Fprintln(p.stderr, "no other machines yet")
				return nil
			}
			peerTable(s.Peers, s.Relays, p.now()).write(p.stdout)
			if lines := whyLines(s.Peers, len(s.Peers)); len(lines) > 0 {
				fmt.Fprintln(p.stdout)
				printLines(p.stdout, lines)
			}
			return nil
		},
	}
	p.jsonFlag(cmd)
	return cmd
}

// notNil makes an empty list print as [] and not as null.
func notNil[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}
