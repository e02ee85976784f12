package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"overlayd/overlay"
)

func (p *program) planCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "plan",
		Short: "print what is changed on this machine, and why",
		Long: `Print what this machine should look like: interface, addresses, routes, rules,
firewall chains, peers. It changes nothing. Without a running daemon it is what
the daemon would do first, by the last map it had.`,
		Example: "  sudo overlayd plan",
		Args:    words(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := p.planText(cmd.Context())
			if err != nil {
				return err
			}
			fmt.Fprintln(p.stdout, strings.TrimRight(text, "\n"))
			return nil
		},
	}
}

// planText asks the daemon, or works it out when none runs.
func (p *program) planText(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	text, err := p.engine.dial(p.common.socket).Plan(ctx)
	if err == nil || asFault(err).Code != overlay.ExitNotRunning {
		return text, err
	}
	o := p.common.options()
	o.Log = p.logger()
	o.Userspace = p.root != nil && !p.root() // all that he can run
	return p.engine.planText(ctx, o)
}
