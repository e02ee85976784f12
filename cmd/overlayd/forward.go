package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"overlayd/overlay"
)

func (p *program) forwardCommand() *cobra.Command {
	var udp, remote bool
	cmd := &cobra.Command{
		Use:   "forward LISTEN TARGET",
		Short: "a port of this machine that comes out at a host",
		Long: `Open a port of this machine: what connects to it comes out at TARGET, a machine of the
network or a host behind a gateway, by address or by name. It is run by the daemon, and
is open again after a restart until forward remove. While the host cannot be reached,
connections are reset, and the port stays.

LISTEN is an address of this machine with a port, and of the loopback, unless
--allow-remote says that other machines may use it: they get in as this one. On Linux
a port of the loopback is for the programs of the user that the daemon runs as, and for
root's; when that is root, for every program of the machine.`,
		Example: `  overlayd forward 127.0.0.1:8080 192.168.1.10:80
  overlayd forward 127.0.0.1:5353 192.168.1.1:53 --udp
  overlayd forward list
  overlayd forward remove 127.0.0.1:8080`,
		Args: words(2, 2, "LISTEN and TARGET"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := context.WithTimeout(cmd.Context(), callTimeout)
			defer stop()
			network := networkName(udp)
			w, err := p.engine.dial(p.common.socket).AddForward(ctx, network, args[0], args[1], remote)
			if err != nil {
				return err
			}
			whose := whoseText(w)
			if at, err := netip.ParseAddrPort(args[0]); err == nil && !at.Addr().IsLoopback() {
				whose = "whoever reaches it"
			}
			fmt.Fprintf(p.stdout, "%s %s comes out at %s, for %s\n", network, args[0], args[1], whose)
			return nil
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.BoolVarP(&udp, "udp", "u", false, "datagrams")
	flags.BoolVar(&remote, "allow-remote", false, "other machines may use the port, too")
	list := &cobra.Command{
		Use: "list", Short: "list them", Long: "List the forwards, how many connections each has, and what is wrong.",
		Args: words(0, 0, "no words"),
		RunE: func(cmd *cobra.Command, _ []string) error { return p.listForwards(cmd.Context()) },
	}
	p.jsonFlag(list)
	cmd.AddCommand(list, p.removeForwardCommand())
	return cmd
}

func networkName(udp bool) string {
	if udp {
		return "udp"
	}
	return "tcp"
}

func (p *program) removeForwardCommand() *cobra.Command {
	var udp, tcp bool
	cmd := &cobra.Command{
		Use: "remove LISTEN", Short: "close one", Long: "Close a forward, also for the next start. Its connections end.",
		Example: "  overlayd forward remove 127.0.0.1:8080",
		Args:    words(1, 1, "one LISTEN"),
		RunE: func(cmd *cobra.Command, args []string) error {
			network := ""
			if udp != tcp {
				network = networkName(udp)
			}
			return p.removeForward(cmd.Context(), network, args[0])
		},
		ValidArgsFunction: p.completeFirst(func(ctx context.Context) (list []string) {
			w, err := p.ways(ctx)
			if err != nil {
				return nil
			}
			for _, f := range w.Forwards {
				list = append(list, f.Listen)
			}
			return list
		}),
	}
	cmd.Flags().BoolVarP(&udp, "udp", "u", false, "only that of UDP")
	cmd.Flags().BoolVar(&tcp, "tcp", false, "only that of TCP")
	return cmd
}

// removeForward closes forwards, and says which there are no more.
func (p *program) removeForward(ctx context.Context, network, listen string) error {
	before, err := p.ways(ctx)
	if err != nil {
		return err
	}
	ctx, stop := context.WithTimeout(ctx, callTimeout)
	defer stop()
	after, err := p.engine.dial(p.common.socket).RemoveForward(ctx, network, listen)
	if err != nil {
		return err
	}
	for _, f := range before.Forwards {
		same := func(o overlay.ForwardLine) bool { return o.Network == f.Network && o.Listen == f.Listen }
		if !slices.ContainsFunc(after.Forwards, same) {
			fmt.Fprintf(p.stdout, "removed: %s %s does not lead to %s any more\n", f.Network, f.Listen, f.Target)
		}
	}
	return nil
}

func (p *program) listForwards(ctx context.Context) error {
	w, err := p.ways(ctx)
	if err != nil {
		return err
	}
	if p.common.json {
		return printJSON(p.stdout, w)
	}
	if len(w.Forwards) == 0 {
		fmt.Fprintln(p.stdout, "there are none; overlayd forward LISTEN TARGET makes one")
		return nil
	}
	var t table
	t.row("PROTO", "LISTEN", "TARGET", "OPEN", "SO FAR", "PROBLEM")
	for _, f := range w.Forwards {
		t.row(f.Network, f.Listen, f.Target, fmt.Sprint(f.Open), fmt.Sprint(f.Accepted), problemOf(f))
	}
	t.write(p.stdout)
	return nil
}

func problemOf(f overlay.ForwardLine) string {
	if f.Error == nil {
		return "-"
	}
	return strings.TrimPrefix(oneLine(*f.Error), "connect to ")
}
