package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"overlayd/overlay/coord"
)

func (p *program) completionCommand() *cobra.Command {
	shells := []string{"bash", "zsh", "fish", "powershell"}
	return &cobra.Command{
		Use:   "completion SHELL",
		Short: "print a script that completes verbs, flags and node names",
		Long:  "Print a script for bash, zsh, fish or powershell that completes verbs, flags and node\nnames.",
		Example: `  overlayd completion bash | sudo tee /etc/bash_completion.d/overlayd
  overlayd completion zsh > "${fpath[1]}/_overlayd"
  overlayd completion fish > ~/.config/fish/completions/overlayd.fish`,
		Args:      words(1, 1, "one SHELL: bash, zsh, fish or powershell"),
		ValidArgs: shells,
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(p.stdout, true)
			case "zsh":
				return root.GenZshCompletion(p.stdout)
			case "fish":
				return root.GenFishCompletion(p.stdout, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(p.stdout)
			}
			return usage("one of bash, zsh, fish, powershell", "unknown shell %q", args[0])
		},
	}
}

// completionTimeout is how long a person waits for a Tab.
const completionTimeout = time.Second

// words of a completion come from the daemon; without one there are none.
type source func(context.Context) []string

func (p *program) complete(cmd *cobra.Command, s source) ([]string, cobra.ShellCompDirective) {
	if p.fill(cmd) != nil { // cobra does not run the hooks of a command it completes
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	return s(ctx), cobra.ShellCompDirectiveNoFileComp
}

// completeFirst completes the first word after a verb.
func (p *program) completeFirst(s source) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return p.complete(cmd, s)
	}
}

func (p *program) completeFlag(cmd *cobra.Command, flag string, s source) {
	err := cmd.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return p.complete(cmd, s)
	})
	if err != nil {
		panic("internal error: " + err.Error()) // the flag was not declared
	}
}

func (p *program) completeRoutes(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	return p.completeFirst(func(ctx context.Context) []string {
		routes, err := p.networkRoutes(ctx)
		if err != nil {
			return nil
		}
		var prefixes []string
		for _, r := range routes {
			prefixes = append(prefixes, r.Prefix.String())
		}
		return prefixes
	})(cmd, args, word)
}

func (p *program) peerNames(ctx context.Context) []string {
	s, err := p.status(ctx)
	if err != nil {
		return nil
	}
	var names []string
	for _, peer := range s.Peers {
		names = append(names, peer.Name)
	}
	return names
}

func (p *program) nodeNames(ctx context.Context) []string {
	nodes, err := admin(ctx, p, func(ctx context.Context, c coordinator) ([]coord.NodeInfo, error) { return c.Nodes(ctx) })
	if err != nil {
		return nil
	}
	var names []string
	for _, n := range nodes {
		names = append(names, n.Name)
	}
	return names
}

func (p *program) inviteIDs(ctx context.Context) []string {
	invites, err := admin(ctx, p, func(ctx context.Context, c coordinator) ([]coord.InviteInfo, error) { return c.Invites(ctx) })
	if err != nil {
		return nil
	}
	var ids []string
	for _, i := range invites {
		if i.State == coord.InviteOpen {
			ids = append(ids, i.ID)
		}
	}
	return ids
}
