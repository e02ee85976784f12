package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"overlayd/overlay"
	"overlayd/overlay/coord"
)

func (p *program) revokeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "revoke WHAT", Short: "take access away, and see that it is gone",
		Long: `Take away what lets somebody in, and wait until every machine that let it in has said
that it does so no more.

  user      is disabled, loses grants and open invites; overlayd users enable undoes it
  node      is removed; to come back it needs a new invite
  invite    admits nobody any more; who joined with it stays
  grant     ends now
  exposure  is closed: the port is published no more

Live connections are cut. A machine that is offline applies it on contact, before it
lets anybody in; a revoked machine that nobody told yet reaches nothing by a relay.
Write user:NAME, node:NAME and so on when a name means several things. A machine that was
invited without --user has a user of its name: laptop means both then, as user:laptop.

Exit code: 0 all machines applied it, 5 one is offline, 7 one is there and did not
answer in time. In all three cases it is revoked, and stays so.`,
		Example: `  sudo overlayd revoke alice
  sudo overlayd revoke node:laptop`,
		Args: words(1, 1, "one WHAT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			what := args[0]
			if l, err := coord.ParseLink(what); err == nil {
				what = "invite:" + l.Invite // somebody pasted the link itself
			}
			r, err := admin(cmd.Context(), p, func(ctx context.Context, c coordinator) (coord.Revoked, error) { return c.Revoke(ctx, what) })
			if err != nil {
				return err
			}
			return p.tellRevoked(r)
		},
		ValidArgsFunction: p.completeFirst(p.userNames),
	}
	p.jsonFlag(cmd)
	return cmd
}

// tellRevoked prints what a revocation did, and returns its exit code.
func (p *program) tellRevoked(r coord.Revoked) error {
	var applied, cut int
	var away, silent []string
	nodes := []ackJSON{}
	for _, a := range r.Nodes {
		nodes = append(nodes, ackJSON{a.Node, a.Online, a.Applied, a.FlowsCut})
		cut += a.FlowsCut
		switch {
		case a.Applied:
			applied++
		case a.Online:
			silent = append(silent, a.Node)
		default:
			away = append(away, a.Node)
		}
	}
	if p.common.json {
		if err := printJSON(p.stdout, struct {
			Schema   string    `json:"schema"`
			Kind     string    `json:"kind"`
			Name     string    `json:"name"`
			TookMS   int64     `json:"took_ms"`
			FlowsCut int       `json:"flows_cut"`
			Nodes    []ackJSON `json:"nodes"`
		}{"overlayd.revoke/v1", r.Kind, r.Name, r.Took.Milliseconds(), cut, nodes}); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(p.stdout, "revoked %s %s: done in %s, %d of %s, %s cut\n", r.Kind, r.Name,
			secondsText(r.Took), applied, plural(len(r.Nodes), "node"), plural(cut, "flow"))
		if len(away) > 0 {
			fmt.Fprintf(p.stdout, "offline, will apply on contact: %s\n", strings.Join(away, ", "))
		}
		if len(silent) > 0 {
			fmt.Fprintf(p.stdout, "did not answer in time: %s\n", strings.Join(silent, ", "))
		}
	}
	switch {
	case len(silent) > 0:
		return quiet(overlay.ExitUnreachable)
	case len(away) > 0:
		return quiet(overlay.ExitDegraded)
	}
	return nil
}

// secondsText writes a short time with one digit that says something.
func secondsText(d time.Duration) string {
	if d < 100*time.Millisecond {
		return fmt.Sprintf("%.2f s", d.Seconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// ackJSON is a machine's answer to a revocation, in --json output.
type ackJSON struct {
	Node     string `json:"node"`
	Online   bool   `json:"online"`
	Applied  bool   `json:"applied"`
	FlowsCut int    `json:"flows_cut"`
}
