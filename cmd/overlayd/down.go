package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

// downTimeout is above what a stopping daemon allows itself to put the machine
// back as it was, 10 s.
const downTimeout = 15 * time.Second

func (p *program) downCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "stop the daemon and put the machine back as it was",
		Long: `Stop the daemon and wait until the machine is as it was before. The machine stays
a member: overlayd up or overlayd gateway brings it back. A service stays stopped
until the next boot or systemctl start overlayd.`,
		Example: "  sudo overlayd down",
		Args:    words(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), downTimeout)
			defer cancel()
			if err := p.engine.dial(p.common.socket).Down(ctx); err != nil {
				return err
			}
			fmt.Fprintln(p.stdout, "stopped; the machine is as it was")
			return nil
		},
	}
}
