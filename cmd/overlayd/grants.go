package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"overlayd/overlay/coord"
)

const targetHelp = `TARGET is a host or node of the policy, an address or a prefix, with ports if need be:
nas:22, 192.168.1.201:22, nas:53/udp, nas/icmp, 192.168.1.0/24:80,443.`

func (p *program) grantCommand() *cobra.Command {
	var howLong span
	cmd := &cobra.Command{
		Use: "grant USER TARGET", Short: "open something to a person for a time",
		Long: `Open a target to a user, on top of the policy and for a time. It ends by the clock of
the machine that receives, also while the coordinator is down, or with overlayd revoke.

` + targetHelp,
		Example: `  sudo overlayd grant alice 192.168.1.201:22 --for 4h`,
		Args:    words(2, 2, "USER and TARGET"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if howLong == 0 {
				return usage("e.g. --for 4h", "say with --for how long it is to hold")
			}
			g, err := admin(cmd.Context(), p, func(ctx context.Context, c coordinator) (coord.Grant, error) {
				return c.Grant(ctx, args[0], args[1], time.Duration(howLong))
			})
			if err != nil {
				return err
			}
			return p.tellGrant(g)
		},
		ValidArgsFunction: p.completeFirst(p.userNames),
	}
	cmd.Flags().Var(&howLong, "for", "for how long, e.g. 4h or 7d")
	p.jsonFlag(cmd)
	return cmd
}

func (p *program) tellGrant(g coord.Grant) error {
	if g.Warning != "" {
		p.warn(g.Warning)
	}
	return p.tell(newGrantJSON(g), "%s: %s may reach %s until %s; to take it back: overlayd revoke %s",
		g.ID, g.User, g.Target, g.Until.Local().Format(time.DateTime), g.ID)
}

// grantJSON is a grant in --json output. Fields are only ever added.
type grantJSON struct {
	ID        string     `json:"id"`
	User      string     `json:"user"`
	Target    string     `json:"target"`
	Until     *time.Time `json:"until"`
	By        string     `json:"by"`
	CreatedAt *time.Time `json:"created_at"`
	Warning   *string    `json:"warning"` // why it may open nothing; null: nothing is known against it
}

func newGrantJSON(g coord.Grant) grantJSON {
	j := grantJSON{ID: g.ID, User: g.User, Target: g.Target, Until: timeOrNull(g.Until), By: g.By, CreatedAt: timeOrNull(g.Created)}
	if g.Warning != "" {
		j.Warning = &g.Warning
	}
	return j
}

func (p *program) grantsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "grants", Short: "list what is open for a time", Args: words(0, 0, ""),
		Long: `List the grants that are not over: what is open to whom, on top of the policy, for how
long still, and who gave it; to an admin all, to others their own. overlayd revoke
GRANT ends one.`,
		Example: "  sudo overlayd grants\n  sudo overlayd revoke aq7f3k2m9x",
		RunE: func(cmd *cobra.Command, _ []string) error {
			grants, err := admin(cmd.Context(), p, func(ctx context.Context, c coordinator) ([]coord.Grant, error) { return c.Grants(ctx) })
			if err != nil {
				return err
			}
			list := []grantJSON{}
			var t table
			t.row("GRANT", "USER", "TARGET", "LEFT", "BY")
			for _, g := range grants {
				list = append(list, newGrantJSON(g))
				t.row(g.ID, g.User, g.Target, roughly(g.Until.Sub(p.now())), g.By)
			}
			switch {
			case p.common.json:
				return printJSON(p.stdout, struct {
					Schema string      `json:"schema"`
					Grants []grantJSON `json:"grants"`
				}{"overlayd.grants/v1", list})
			case len(list) == 0:
				fmt.Fprintln(p.stderr, "there are no grants")
			default:
				t.write(p.stdout)
			}
			return nil
		},
	}
	p.jsonFlag(cmd)
	return cmd
}

func (p *program) requestCommand() *cobra.Command {
	howLong := span(coord.DefaultGrant)
	cmd := &cobra.Command{
		Use: "request TARGET", Short: "ask for access to something",
		Long: `Ask the admins for access to a target, in the name of this machine's user. They see it
with overlayd requests.

` + targetHelp,
		Example: "  overlayd request 192.168.1.201:22 --for 2h",
		Args:    words(1, 1, "one TARGET"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := admin(cmd.Context(), p, func(ctx context.Context, c coordinator) (coord.Request, error) {
				return c.Request(ctx, args[0], time.Duration(howLong))
			})
			if err != nil {
				return err
			}
			return p.tell(newRequestJSON(r), "asked for %s, for %s; an admin says yes with: overlayd approve %s", r.Target, spanText(r.For), r.ID)
		},
	}
	cmd.Flags().Var(&howLong, "for", "for how long")
	p.jsonFlag(cmd)
	return cmd
}

// requestJSON is a request in --json output. Fields are only ever added.
type requestJSON struct {
	ID        string     `json:"id"`
	User      string     `json:"user"`
	Node      string     `json:"node"`
	Target    string     `json:"target"`
	ForMS     int64      `json:"for_ms"`
	CreatedAt *time.Time `json:"created_at"`
}

func newRequestJSON(r coord.Request) requestJSON {
	return requestJSON{r.ID, r.User, r.Node, r.Target, r.For.Milliseconds(), timeOrNull(r.Created)}
}

func (p *program) requestsCommand() *cobra.Command {
	list := func(cmd *cobra.Command) error { return p.listRequests(cmd.Context()) }
	cmd := &cobra.Command{
		Use:   "requests",
		Short: "list what was asked for",
		Long: `List the requests that wait for an answer: to an admin all, to others their own. A
request is forgotten after a week.`,
		Example: `  sudo overlayd requests
  sudo overlayd approve r7f3k2m
  sudo overlayd requests deny r7f3k2m`,
	}
	p.jsonFlag(cmd)
	deny := &cobra.Command{
		Use: "deny REQUEST", Short: "forget a request", Long: "Forget a request. Whoever asked may ask again.", Args: words(1, 1, "one REQUEST"),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, err := admin(cmd.Context(), p, func(ctx context.Context, c coordinator) (struct{}, error) {
				return struct{}{}, c.DenyRequest(ctx, args[0])
			})
			if err != nil {
				return err
			}
			return p.tell(struct {
				Schema string `json:"schema"`
				Denied string `json:"denied"`
			}{"overlayd.request_denied/v1", args[0]}, "denied %s", oneLine(args[0]))
		},
		Example:           "  sudo overlayd requests deny r7f3k2m",
		ValidArgsFunction: p.completeFirst(p.requestIDs),
	}
	p.jsonFlag(deny)
	return group(cmd, list, p.listVerb("list them", "List the requests; the same as overlayd requests.", list), deny)
}

func (p *program) listRequests(ctx context.Context) error {
	requests, err := admin(ctx, p, func(ctx context.Context, c coordinator) ([]coord.Request, error) { return c.Requests(ctx) })
	if err != nil {
		return err
	}
	list := []requestJSON{}
	var t table
	t.row("REQUEST", "USER", "FROM", "TARGET", "FOR", "ASKED")
	for _, r := range requests {
		list = append(list, newRequestJSON(r))
		t.row(r.ID, r.User, r.Node, r.Target, spanText(r.For), roughly(p.now().Sub(r.Created))+" ago")
	}
	switch {
	case p.common.json:
		return printJSON(p.stdout, struct {
			Schema   string        `json:"schema"`
			Requests []requestJSON `json:"requests"`
		}{"overlayd.requests/v1", list})
	case len(list) == 0:
		fmt.Fprintln(p.stderr, "no request waits")
	default:
		t.write(p.stdout)
	}
	return nil
}

func (p *program) requestIDs(ctx context.Context) (ids []string) {
	requests, err := admin(ctx, p, func(ctx context.Context, c coordinator) ([]coord.Request, error) { return c.Requests(ctx) })
	if err != nil {
		return nil
	}
	for _, r := range requests {
		ids = append(ids, r.ID)
	}
	return ids
}

func (p *program) approveCommand() *cobra.Command {
	var howLong span
	cmd := &cobra.Command{
		Use: "approve REQUEST", Short: "grant what was asked for",
		Long:    "Grant what was asked for, for as long as was asked for unless told otherwise.",
		Example: "  sudo overlayd approve r7f3k2m --for 1h",
		Args:    words(1, 1, "one REQUEST"),
		RunE: func(cmd *cobra.Command, args []string) error {
			g, err := admin(cmd.Context(), p, func(ctx context.Context, c coordinator) (coord.Grant, error) {
				return c.ApproveRequest(ctx, args[0], time.Duration(howLong))
			})
			if err != nil {
				return err
			}
			return p.tellGrant(g)
		},
		ValidArgsFunction: p.completeFirst(p.requestIDs),
	}
	cmd.Flags().Var(&howLong, "for", "for how long (default: as asked)")
	p.jsonFlag(cmd)
	return cmd
}
