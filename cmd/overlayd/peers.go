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
					Schema string                 `json:"schema"`
					Peers  []overlay.StatusPeer   `json:"peers"`
					Hosted []overlay.StatusHosted `json:"hosted"`
				}{"overlayd.peers/v1", notNil(s.Peers), notNil(s.Hosted)})
			}
			if len(s.Peers)+len(s.Hosted) == 0 {
				fmt.Fprintln(p.stderr, nobody(s))
				return nil
			}
			peerTable(s.Peers, s.Relays, p.now()).write(p.stdout)
			if len(s.Hosted) > 0 {
				fmt.Fprintln(p.stdout)
				hostedTable(s.Hosted).write(p.stdout)
			}
			if lines := append(whyLines(s.Peers, len(s.Peers)), refusedLines(s)...); len(lines) > 0 {
				fmt.Fprintln(p.stdout)
				printLines(p.stdout, lines)
			}
			return nil
		},
	}
	p.jsonFlag(cmd)
	return cmd
}

// refusedLines are what status says of refusals.
func refusedLines(s overlay.Status) []string {
	for _, h := range s.Health {
		if h.ID == overlay.HealthRefused {
			return healthLines([]overlay.HealthItem{h}, style{})
		}
	}
	return nil
}

// hostedTable lists the members that other machines carry.
func hostedTable(hosted []overlay.StatusHosted) table {
	var t table
	t.row("CARRIED", "ADDRESS", "USER", "WHERE")
	for _, h := range hosted {
		t.row(h.Name, addrsText(h.IPs), orUnknown(h.User), h.Kind+" at "+orUnknown(h.Host))
	}
	return t
}

// notNil makes an empty list print as [] and not as null.
func notNil[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}
