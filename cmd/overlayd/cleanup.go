package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func (p *program) cleanupCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "cleanup",
		Short: "undo what a killed daemon left behind",
		Long: `Put the machine back as it was after a daemon was killed: take away interface,
routes, rules and firewall chains of overlayd, and restore system settings from
the notes it made before it changed them. Prints what it took back, as the
commands that would do it. Touches nothing else, and may be run any number of
times. Give it the --state-dir and --interface that the daemon had.`,
		Example: "  sudo overlayd cleanup",
		Args:    words(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o := p.common.options()
			o.Log = p.logger()
			done, err := p.engine.cleanup(cmd.Context(), o)
			for _, d := range done {
				fmt.Fprintln(p.stdout, d)
			}
			if err == nil && len(done) == 0 {
				fmt.Fprintln(p.stdout, "nothing to clean up")
			}
			return err
		},
	}
}
