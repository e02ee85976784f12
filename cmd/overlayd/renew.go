package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func (p *program) renewCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "renew [LINK]",
		Short: "let this machine's key hold for another while",
		Long: `Let this machine's key hold for another while, with a fresh invite for its user. The
daemon goes on meanwhile, and so does every connection. Ask an admin for the link
(overlayd invite --user NAME), or to say overlayd nodes renew instead.`,
		Example: "  sudo overlayd renew LINK",
		Args:    words(0, 1, "one LINK"),
		RunE: func(cmd *cobra.Command, args []string) error {
			link, err := p.link(file, args)
			if err != nil {
				return err
			}
			switch {
			case link == "" && file != "":
				return usage("", "%s is not there, or empty", file)
			case link == "":
				return usage("ask an admin for one: overlayd invite --user NAME", "there is no link to renew with")
			}
			if err := p.engine.dial(p.common.socket).Renew(cmd.Context(), link); err != nil {
				return err
			}
			fmt.Fprintln(p.stdout, "renewed; overlayd status tells of the key again when it is about to expire")
			return nil
		},
	}
	cmd.Flags().Var(text{&file, "FILE"}, "link-file", "holds the link; - is standard input")
	return cmd
}
