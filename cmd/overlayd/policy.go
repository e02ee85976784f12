package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"overlayd/overlay"
	"overlayd/overlay/coord"
)

func (p *program) policyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "who may reach what: show, check, apply",
		Long: `Show who may reach what, and change it. On the VPS, or on the machine of an admin.

The policy is one YAML file: groups, hosts, rules, and tests that are run before it is
put in force. What no rule allows is refused, by the machine that receives. The policy
of a new network explains the rest: overlayd policy show.

A policy with an unknown name, or one that fails a test of its own, is refused with
the line, and the policy in force stays. Administration does not go by the policy: no
policy locks an admin out.`,
		Example: `  sudo overlayd policy show > policy.yaml
  sudo overlayd policy diff policy.yaml
  sudo overlayd policy apply policy.yaml`,
	}
	return group(cmd, func(cmd *cobra.Command) error { return cmd.Help() },
		p.showPolicyCommand(), p.policyVersionsCommand(),
		p.tryPolicyCommand("check FILE", "whether a file could be applied", "Check a file: its text, its names, and its tests. Nothing is changed.", 1),
		p.tryPolicyCommand("test [FILE]", "run the tests of a policy", "Run the tests of a file, or of the policy in force.", 0),
		p.tryPolicyCommand("diff FILE", "what a file would change", "Show what a file would change in the policy in force, a line for each thing.", 1),
		p.applyPolicyCommand(),
	)
}

func (p *program) showPolicyCommand() *cobra.Command {
	var version number
	cmd := &cobra.Command{
		Use: "show", Short: "print the policy in force", Args: words(0, 0, ""),
		Long:    "Print the policy in force as it was applied, with its comments; or an earlier version.",
		Example: "  sudo overlayd policy show --version 3",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := admin(cmd.Context(), p, func(ctx context.Context, c coordinator) (coord.StoredPolicy, error) {
				return c.Policy(ctx, uint64(version))
			})
			if err != nil {
				return err
			}
			if p.common.json {
				return printJSON(p.stdout, struct {
					Schema string `json:"schema"`
					policyJSON
					Text string `json:"text"`
				}{"overlayd.policy/v1", newPolicyJSON(s.PolicyVersion), s.Text})
			}
			_, err = io.WriteString(p.stdout, s.Text)
			return err
		},
	}
	cmd.Flags().Var(&version, "version", "an earlier one (default: the one in force)")
	p.jsonFlag(cmd)
	return cmd
}

// policyJSON is a version of the policy in --json output.
type policyJSON struct {
	Version uint64     `json:"version"`
	By      string     `json:"by"`
	At      *time.Time `json:"at"`
}

func newPolicyJSON(v coord.PolicyVersion) policyJSON {
	return policyJSON{v.Version, v.By, timeOrNull(v.At)}
}

func (p *program) policyVersionsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "versions", Short: "list the versions that are kept", Args: words(0, 0, ""),
		Long:    "List the versions of the policy that are kept, the last hundred, with who applied each.",
		Example: "  sudo overlayd policy versions\n  sudo overlayd policy show --version 3 > before.yaml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := admin(cmd.Context(), p, func(ctx context.Context, c coordinator) (coord.StoredPolicy, error) { return c.Policy(ctx, 0) })
			if err != nil {
				return err
			}
			list := []policyJSON{}
			var t table
			t.row("VERSION", "SINCE", "BY")
			for _, v := range s.Versions {
				list = append(list, newPolicyJSON(v))
				t.row(fmt.Sprint(v.Version), v.At.UTC().Format("2006-01-02 15:04 MST"), v.By)
			}
			if p.common.json {
				return printJSON(p.stdout, struct {
					Schema   string       `json:"schema"`
					Versions []policyJSON `json:"versions"`
				}{"overlayd.policy_versions/v1", list})
			}
			t.write(p.stdout)
			return nil
		},
	}
	p.jsonFlag(cmd)
	return cmd
}

// mostPolicy is more than the coordinator takes, which then says so.
const mostPolicy = 3 << 20

// policyText reads a file; - is standard input.
func (p *program) policyText(file string) (string, error) {
	var in io.Reader = p.stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", err
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, mostPolicy))
	if err == nil && len(b) == 0 {
		err = usage("overlayd policy show prints the one in force", "%s is empty", file)
	}
	return string(b), err
}

// changeJSON is what a policy changes, in --json output.
type changeJSON struct {
	Schema  string   `json:"schema"`
	Version *uint64  `json:"version"` // null: it was only tried
	Changes []string `json:"changes"`
	Tests   int      `json:"tests"`

	Warnings []string `json:"warnings"` // what may be a slip
}

func newChangeJSON(c coord.PolicyChange, version *uint64) changeJSON {
	return changeJSON{"overlayd.policy_change/v1", version, notNil(c.Changes), c.Tests, notNil(c.Warnings)}
}

func (p *program) tryPolicyCommand(use, short, long string, least int) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long + "\n\nFILE may be -, which is standard input.", Args: words(least, 1, "one FILE"),
		Example: "  sudo overlayd policy " + strings.Fields(use)[0] + " policy.yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			text := ""
			if len(args) > 0 {
				var err error
				if text, err = p.policyText(args[0]); err != nil {
					return err
				}
			}
			c, err := admin(cmd.Context(), p, func(ctx context.Context, c coordinator) (coord.PolicyChange, error) { return c.TryPolicy(ctx, text) })
			if err != nil {
				return p.policyFault(err)
			}
			p.warn(c.Warnings...)
			if p.common.json {
				return printJSON(p.stdout, newChangeJSON(c, nil))
			}
			if cmd.Name() == "diff" {
				if len(c.Changes) == 0 {
					fmt.Fprintln(p.stderr, "nothing would change")
				}
				printLines(p.stdout, c.Changes)
				return nil
			}
			_, err = fmt.Fprintf(p.stdout, "right: %s passed\n", plural(c.Tests, "test"))
			return err
		},
	}
	p.jsonFlag(cmd)
	return cmd
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// policyFault prints what is wrong with a policy, which has many lines, and
// returns an error of one.
func (p *program) policyFault(err error) error {
	f := *overlay.AsFault(err)
	first, more, many := cutLine(f.Message)
	if !many || p.common.json {
		return err
	}
	fmt.Fprintf(p.stderr, "%s\n%s\n", withoutLinks(first), withoutLinks(more))
	f.Message = "the policy is not right"
	return &f
}

func cutLine(s string) (first, more string, many bool) {
	for i := range s {
		if s[i] == '\n' {
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}

func (p *program) applyPolicyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "apply FILE", Short: "put a policy in force",
		Long: `Put the policy in a file in force on every machine, at once. It is refused when a name
in it is unknown or one of its tests fails; then the policy in force stays.`,
		Example: "  sudo overlayd policy apply policy.yaml",
		Args:    words(1, 1, "one FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := p.policyText(args[0])
			if err != nil {
				return err
			}
			c, err := admin(cmd.Context(), p, func(ctx context.Context, c coordinator) (coord.PolicyChange, error) { return c.ApplyPolicy(ctx, text) })
			if err != nil {
				return p.policyFault(err)
			}
			p.warn(c.Warnings...)
			if p.common.json {
				return printJSON(p.stdout, newChangeJSON(c, &c.Version))
			}
			printLines(p.stdout, c.Changes)
			_, err = fmt.Fprintf(p.stdout, "version %d is in force; %s passed\n", c.Version, plural(c.Tests, "test"))
			return err
		},
	}
	p.jsonFlag(cmd)
	return cmd
}
