package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"overlayd/overlay"
)

func (p *program) whoisCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "whois ADDR[:PORT]",
		Short: "which person is behind a connection",
		Long: `Say which person is behind a connection through this machine. Hosts behind a gateway
see the gateway's own address: run this there, with the address and the port that
the host's log has, or with the address of a host to see who is on it. What goes on
now comes first, then what the record knows. Ends with 1 when nobody was found.`,
		Example: `  overlayd whois 192.168.1.200:40112
  overlayd whois 192.168.1.201
  overlayd whois 172.18.0.11 --json | jq .person`,
		Args: words(1, 1, "one ADDR or ADDR:PORT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			w, err := p.engine.dial(p.common.socket).Whois(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if p.common.json {
				if err := printJSON(p.stdout, w); err != nil {
					return err
				}
			} else {
				writeWhois(p.stdout, w)
			}
			if w.Person == nil && len(w.Live)+len(w.Recorded) == 0 {
				return failure(overlay.ExitFailure, "run it on the gateway that the connection went through; overlayd audit has all that is known here",
					"nobody was found behind %s", w.Target)
			}
			return nil
		},
	}
	p.jsonFlag(cmd)
	return cmd
}

func writeWhois(out io.Writer, w overlay.Whois) {
	if w.Person != nil {
		who := "the node " + w.Person.Node
		if w.Person.User != "" {
			who += " of " + w.Person.User
		}
		fmt.Fprintf(out, "%s is %s\n", w.Target, who)
	}
	for _, l := range w.Live {
		fmt.Fprintf(out, "now, since %s  %s, %s in, %s out\n", timeText(l.BeganAt), flowText(l), bytesText(l.InBytes), bytesText(l.OutBytes))
	}
	for _, l := range w.Recorded {
		fmt.Fprintf(out, "%s  %s\n", timeText(l.BeganAt), flowText(l))
	}
}
