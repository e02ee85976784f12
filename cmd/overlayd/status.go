package main

import (
	"github.com/spf13/cobra"

	"overlayd/overlay"
)

func (p *program) statusCommand() *cobra.Command {
	check := choice{words: []string{"live", "ready"}}
	cmd := &cobra.Command{
		Use:   "status",
		Short: "show everything on one screen",
		Long: `Show this machine's state, its way to the others, the networks behind gateways,
and what is wrong together with its fix.

With --check it prints nothing and only ends with a code, for scripts and health
checks: live is 0 while the daemon answers; ready is 0 when all is well, 5 while
it starts or is degraded, 4 when an invite or an approval is missing, 6 when the
machine's key has expired, or an admin disabled it. Both are 3 when no daemon runs.`,
		Example: `  overlayd status
  overlayd status --check ready && echo connected
  overlayd status --json | jq -r .state`,
		Args: words(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := p.status(cmd.Context())
			switch {
			case check.word != "" && err != nil:
				return quiet(asFault(err).Code)
			case err != nil:
				return err
			case check.word != "":
				return checkStatus(check.word, s.State)
			case p.common.json:
				return printJSON(p.stdout, s)
			}
			writeStatus(p.stdout, s, p.now(), p.style())
			return nil
		},
	}
	cmd.Flags().Var(&check, "check", "print nothing, end with a code")
	p.jsonFlag(cmd)
	return cmd
}

// style is colour where a person looks at a terminal and did not refuse it
// (https://no-color.org).
func (p *program) style() style {
	return style{colour: p.terminal(p.stdout) && p.getenv("NO_COLOR") == "" && p.getenv("TERM") != "dumb"}
}

// checkStatus turns a state into an exit code.
func checkStatus(check, state string) error {
	code := overlay.ExitOK
	switch state {
	case overlay.StateReady:
	case overlay.StateStopped:
		code = overlay.ExitNotRunning
	case overlay.StateNeedsInvite, overlay.StateNeedsApproval:
		code = overlay.ExitNotJoined
	case overlay.StateExpired, overlay.StateDisabled:
		code = overlay.ExitDenied
	default:
		code = overlay.ExitDegraded
	}
	if code == overlay.ExitOK || check == "live" && code != overlay.ExitNotRunning {
		return nil
	}
	return quiet(code)
}
