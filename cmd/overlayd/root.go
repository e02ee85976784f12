package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const story = `overlayd joins machines into one private network and reaches the LAN behind one
of them, encrypted end to end. Three machines, three commands:

  on a VPS         sudo overlayd relay --public 203.0.113.10
  inside the LAN   sudo overlayd gateway LINK
  on the laptop    sudo overlayd up LINK

A LINK admits one machine. Make them on the VPS:

  sudo overlayd invite --name lab-gw --gateway 192.168.1.0/24
  sudo overlayd invite --name laptop

Then every port of every host in 192.168.1.0/24 answers the laptop.
`

const verbs = `
Join                             See
  relay     run the VPS            status    all on one screen
  gateway   offer a LAN            peers     the other machines
  up        be a member            routes    networks behind gateways
  down      stop                   ping      try a machine or host
                                   netcheck  what the network lets through
                                   plan      what is changed here, and why
Admit, on the VPS or as admin
  invite    make a link          Allow
  users     people                 policy    who may reach what
  groups    names for several      grant     open something for a time
  nodes     machines               grants    list them
  routes    approve, withdraw      request   ask for access
  admin     who may do all this    requests  list them
  expose    publish a port         approve   say yes to one
  wg        phones                 explain   why somebody reaches it or not
                                   access    who reaches something
Take away
  revoke    and see it gone      Get in without routes
                                   proxy     SOCKS5, HTTP and PAC
Ask the record                     forward   a local port to a host
  audit     who did what           nc        one connection
  whois     who is behind a        ssh       and its configuration
            connection
                                 Look after
                                   service   start at boot
                                   renew     let this machine's key hold longer
                                   rotate    its WireGuard key, now
                                   cleanup   undo what a crash left
                                   version, completion

Help on one:  overlayd help VERB
`

// rootCommand builds the command tree of one run.
func (p *program) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:               "overlayd",
		Long:              story + verbs,
		Version:           build().Version,     // gives it --version
		Args:              cobra.ArbitraryArgs, // so that unknown verbs reach RunE
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return p.fill(cmd) },
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownVerb(cmd, args[0])
			}
			fmt.Fprint(p.stdout, story, "\nAll verbs:  overlayd help\n")
			return nil
		},
	}
	p.common.register(root.PersistentFlags())
	root.SetFlagErrorFunc(flagFault)
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { help(p.stdout, cmd) })
	root.SetHelpCommand(helpCommand(root))
	root.AddCommand(
		p.relayCommand(), p.gatewayCommand(), p.upCommand(), p.downCommand(), p.renewCommand(), p.rotateCommand(),
		p.inviteCommand(), p.nodesCommand(), p.routesCommand(), p.usersCommand(), p.wgCommand(), p.groupsCommand(), p.adminCommand(), p.exposeCommand(),
		p.policyCommand(), p.grantCommand(), p.grantsCommand(), p.requestCommand(), p.requestsCommand(), p.approveCommand(),
		p.revokeCommand(), p.accessCommand(), p.explainCommand(),
		p.statusCommand(), p.peersCommand(), p.pingCommand(), p.netcheckCommand(), p.planCommand(),
		p.auditCommand(), p.whoisCommand(),
		p.ncCommand(), p.sshCommand(), p.proxyCommand(), p.forwardCommand(),
		p.cleanupCommand(), p.serviceCommand(), p.versionCommand(), p.completionCommand(),
	)
	return root
}

func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [VERB]",
		Short: "explain a verb",
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			cmd, _, err := root.Find(args)
			if err != nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return verbNames(cmd), cobra.ShellCompDirectiveNoFileComp
		},
		PersistentPreRunE: func(*cobra.Command, []string) error { return nil }, // help needs no settings
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return unknownVerb(cmd, args[len(args)-1])
			}
			return cmd.Help()
		},
	}
}

// help prints the hand-written text of a verb and the list of its flags.
func help(w io.Writer, cmd *cobra.Command) {
	fmt.Fprintf(w, "%s\n", strings.TrimSpace(cmd.Long))
	if cmd.Example != "" {
		fmt.Fprintf(w, "\nExamples:\n%s\n", strings.Trim(cmd.Example, "\n"))
	}
	if cmd.HasParent() {
		fmt.Fprintf(w, "\nUsage:\n  %s\n", useLine(cmd))
	}
	if cmd.HasParent() && cmd.HasSubCommands() {
		fmt.Fprintln(w, "\nVerbs below it:")
		var t table
		for _, c := range cmd.Commands() {
			t.row("  "+strings.TrimPrefix(cmd.CommandPath()+" "+c.Use, cmd.Root().Name()+" "), c.Short)
		}
		t.write(w)
	}
	if own := ownFlags(cmd); own != "" {
		fmt.Fprint(w, "\nFlags:\n", own)
	}
	if cmd.HasParent() {
		fmt.Fprintf(w, "\nAnd the common flags: overlayd help\n")
		return
	}
	fmt.Fprintf(w, "\nCommon flags:\n%s\n%s", usages(cmd.PersistentFlags(), nil), precedence)
}

const precedence = `Every flag may also come from the environment (--state-dir as OVERLAYD_STATE_DIR,
ping --count as OVERLAYD_PING_COUNT), or from the --config file (state-dir: /srv/x,
ping-count: 3), in this order. Those of relay, gateway and up go without the verb:
relay --ssh as OVERLAYD_SSH, or ssh: ":2222".
`

func useLine(cmd *cobra.Command) string {
	line := cmd.CommandPath() + strings.TrimPrefix(cmd.Use, cmd.Name())
	if ownFlags(cmd) != "" {
		line += " [flags]"
	}
	return line
}

// ownFlags lists the flags of a verb without the common ones, and without help,
// which everybody knows.
func ownFlags(cmd *cobra.Command) string {
	return usages(cmd.Flags(), func(f *pflag.Flag) bool {
		return f.Name != "help" && cmd.Root().PersistentFlags().Lookup(f.Name) == nil
	})
}

func usages(f *pflag.FlagSet, show func(*pflag.Flag) bool) string {
	shown := pflag.NewFlagSet("", pflag.ContinueOnError)
	shown.SortFlags = false
	f.VisitAll(func(f *pflag.Flag) {
		if show == nil || show(f) {
			shown.AddFlag(f)
		}
	})
	return shown.FlagUsages()
}

// unknownVerb says so without quoting what may be a link.
func unknownVerb(cmd *cobra.Command, word string) error {
	what := fmt.Sprintf("unknown verb %q", word)
	if len(word) > 20 || !nodeName(word) {
		what = "unknown verb"
	}
	names := verbNames(cmd)
	path := strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name())
	hint := "overlayd help" + path
	switch best := nearest(word, append(names, "join", "leave", "start", "stop", "connect")); {
	case strings.HasPrefix(word, "ovl:"):
		what, hint = "a link needs a verb", "overlayd up LINK, or overlayd gateway LINK inside the LAN"
	case best == "join" || best == "start" || best == "connect":
		hint = "did you mean overlayd up?"
	case best == "leave" || best == "stop":
		hint = "did you mean overlayd down?"
	case best != "":
		hint = "did you mean overlayd" + path + " " + best + "?"
	}
	return usage(hint, "%s", what)
}

func verbNames(cmd *cobra.Command) []string {
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	return names
}

// group makes a verb that has verbs below it: alone it does what run does.
func group(cmd *cobra.Command, run func(*cobra.Command) error, below ...*cobra.Command) *cobra.Command {
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return unknownVerb(cmd, args[0])
		}
		return run(cmd)
	}
	cmd.AddCommand(below...)
	return cmd
}

// words checks how many words follow a verb, and names them when they are
// missing. It quotes none of them.
func words(least, most int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= least && len(args) <= most {
			return nil
		}
		hint := "usage: " + useLine(cmd)
		if most == 0 {
			return usage(hint, "%s takes no %s", cmd.CommandPath(), "arguments")
		}
		return usage(hint, "%s takes %s, got %d", cmd.CommandPath(), what, len(args))
	}
}
