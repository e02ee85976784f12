package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"overlayd/overlay"
	"overlayd/overlay/coord"
	"overlayd/overlay/record"
)

func (p *program) accessCommand() *cobra.Command {
	var at moment
	cmd := &cobra.Command{
		Use: "access TARGET", Short: "who can reach something, and by which rule",
		Long: `List who can reach a target now, or could at a time, and by which rule of the policy or
which grant. What was is worked out from the record of changes.

` + targetHelp,
		Example: `  sudo overlayd access 192.168.1.201:22
  sudo overlayd access nas:22 --at "2026-05-01 10:00"`,
		Args: words(1, 1, "one TARGET"),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := admin(cmd.Context(), p, func(ctx context.Context, c coordinator) (coord.Access, error) {
				return c.Access(ctx, args[0], at.before(p.now()))
			})
			if err != nil {
				return err
			}
			return p.printAccess(args[0], a)
		},
	}
	cmd.Flags().Var(&at, "at", "a time, or how long ago: 2026-05-01T10:00:00Z, 2h")
	p.jsonFlag(cmd)
	return cmd
}

func (p *program) printAccess(target string, a coord.Access) error {
	type line struct {
		Who   string   `json:"who"`
		Whole bool     `json:"whole"`
		Rule  string   `json:"rule"`
		Nodes []string `json:"nodes"`
	}
	list := []line{}
	var t table
	t.row("WHO", "RULE", "THROUGH", "")
	for _, l := range a.Lines {
		list = append(list, line{l.Who, l.Whole, l.Rule, notNil(l.Nodes)})
		part := ""
		if !l.Whole {
			part = "a part of it"
		}
		t.row(strings.TrimPrefix(l.Who, "user:"), l.Rule, orUnknown(strings.Join(l.Nodes, ",")), part)
	}
	if p.common.json {
		return printJSON(p.stdout, struct {
			Schema string     `json:"schema"`
			Target string     `json:"target"`
			At     *time.Time `json:"at"`
			Policy uint64     `json:"policy_version"`
			Access []line     `json:"access"`
		}{"overlayd.access/v1", target, timeOrNull(a.At), a.Policy, list})
	}
	if len(list) == 0 {
		_, err := fmt.Fprintf(p.stdout, "nobody can reach %s (policy %d, %s)\n", oneLine(target), a.Policy, a.At.Local().Format(time.DateTime))
		return err
	}
	t.write(p.stdout)
	return nil
}

func (p *program) explainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "explain [USER] TARGET", Short: "whether somebody reaches something, step by step",
		Long: `Walk the way from a user to a target: is the user active and with which machines, what
does the name mean, what does the policy say, through which node does it go, is that
node there, and do the two meet. Without a USER it is about this machine's.

Exit code: 0 no step is wrong, 6 one is.

` + targetHelp,
		Example: `  sudo overlayd explain alice 192.168.1.201:22
  overlayd explain nas:80`,
		Args: words(1, 2, "TARGET, with a USER before it if need be"),
		RunE: func(cmd *cobra.Command, args []string) error {
			who, target := "", args[len(args)-1]
			if len(args) == 2 {
				who = args[0]
			}
			allowed := false
			steps, err := admin(cmd.Context(), p, func(ctx context.Context, c coordinator) (steps []coord.Step, err error) {
				steps, allowed, err = c.Explain(ctx, who, target)
				return steps, err
			})
			if err != nil {
				return err
			}
			if err := p.printSteps(steps, allowed); err != nil {
				p.wish(who, target, steps)
				return err
			}
			return nil
		},
		ValidArgsFunction: p.completeFirst(p.userNames),
	}
	p.jsonFlag(cmd)
	return cmd
}

func (p *program) printSteps(steps []coord.Step, allowed bool) error {
	type step struct {
		Name    string `json:"name"`
		Verdict string `json:"verdict"`
		Text    string `json:"text"`
	}
	list := []step{}
	var t table
	for _, s := range steps {
		list = append(list, step{s.Name, s.Verdict, s.Text})
		t.row(s.Name, s.Verdict, oneLine(s.Text))
	}
	if p.common.json {
		if err := printJSON(p.stdout, struct {
			Schema  string `json:"schema"`
			Allowed bool   `json:"allowed"`
			Steps   []step `json:"steps"`
		}{"overlayd.explain/v1", allowed, list}); err != nil {
			return err
		}
	} else {
		t.write(p.stdout)
	}
	if !allowed {
		return quiet(overlay.ExitDenied)
	}
	return nil
}

// wish says how the first no that an admin or a policy gave may become a yes.
func (p *program) wish(who, target string, steps []coord.Step) {
	for _, s := range steps {
		switch {
		case s.Verdict != coord.VerdictBad || p.common.json:
		case s.Name == "user" && who != "":
			fmt.Fprintln(p.stderr, "hint: overlayd users and overlayd nodes show why; users enable, nodes enable, nodes approve and nodes renew undo it")
			return
		case s.Name != "policy":
			return
		case who == "":
			fmt.Fprintf(p.stderr, "hint: ask for access: overlayd request %s\n", oneLine(target))
			return
		case strings.HasPrefix(who, "node:"): // a grant is a user's
			fmt.Fprintln(p.stderr, "hint: a rule for it: overlayd policy show")
			return
		default:
			fmt.Fprintf(p.stderr, "hint: a rule for it: overlayd policy show; or for a time: overlayd grant %s %s --for 4h\n", oneLine(who), oneLine(target))
			return
		}
	}
}

func (p *program) verifyRecordCommand() *cobra.Command {
	var kept string
	cmd := &cobra.Command{
		Use: "verify [PATH]", Short: "whether the record of changes is whole",
		Long: `Check the record of who changed what: every line names the hash of the one before, so
one that is missing or was changed is found. On the VPS, or on the machine of an admin.

With PATH, a copy of the record is checked, on any machine and without a daemon: a
directory with control.head and all files control*.jsonl, or one of these files. Copy
control.head first, as the record goes on meanwhile. --head compares with a
control.head of an earlier day that was kept elsewhere, so that a record that was
written anew is found too.

Exit code: 0 it is whole, 1 it is not.`,
		Example: `  sudo overlayd audit verify
  scp vps:/var/lib/overlayd/control.head vps:"/var/lib/overlayd/control*.jsonl" copy/
  overlayd audit verify copy --head control.head.monday`,
		Args: words(0, 1, "at most one PATH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && kept != "" {
				return usage("copy the record here: "+cmd.CommandPath()+" DIRECTORY --head FILE", "--head compares with a copy of the record, and there is no PATH")
			}
			if len(args) == 1 {
				v, err := overlay.VerifyRecord(args[0], kept)
				if err != nil {
					return err
				}
				return p.verified(v, true)
			}
			v, err := admin(cmd.Context(), p, func(ctx context.Context, c coordinator) (coord.Verified, error) { return c.VerifyRecord(ctx) })
			if err != nil {
				return err
			}
			return p.verified(record.Verified{Lines: v.Lines, Problems: v.Problems}, false)
		},
	}
	cmd.Flags().Var(text{&kept, "FILE"}, "head", "a control.head that was kept elsewhere, to compare PATH with")
	p.jsonFlag(cmd)
	return cmd
}

// verified prints what was found in the coordinator's own record or in a copy, of
// which more is known.
func (p *program) verified(v record.Verified, isCopy bool) (err error) {
	switch {
	case p.common.json:
		found := struct {
			Schema   string   `json:"schema"`
			Lines    uint64   `json:"lines"`
			First    *uint64  `json:"first"`
			Last     *uint64  `json:"last"`
			EndKnown *bool    `json:"end_known"`
			Problems []string `json:"problems"`
		}{Schema: "overlayd.audit_verify/v1", Lines: v.Lines, Problems: notNil(v.Problems)}
		if isCopy {
			found.First, found.Last, found.EndKnown = &v.First, &v.Last, &v.Ends
		}
		err = printJSON(p.stdout, found)
	case len(v.Problems) > 0:
		printLines(p.stdout, v.Problems)
	case isCopy:
		_, err = fmt.Fprintf(p.stdout, "whole: %s, numbers %d to %d, none missing or changed\n", plural(int(v.Lines), "line"), v.First, v.Last)
		if !v.Ends {
			fmt.Fprintf(p.stderr, "whether lines came after number %d is not known: there is no control.head beside\n", v.Last)
		}
	default:
		_, err = fmt.Fprintf(p.stdout, "whole: %s, none missing or changed\n", plural(int(v.Lines), "line"))
	}
	if err == nil && len(v.Problems) > 0 {
		err = failure(overlay.ExitFailure, "compare it with a copy kept elsewhere", "the record of changes is not whole")
	}
	return err
}
