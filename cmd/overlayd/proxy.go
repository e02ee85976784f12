package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"overlayd/overlay"
	"overlayd/overlay/proxy"
)

// proxyFlags are what turning the proxy on is told.
type proxyFlags struct {
	listen       listenAddress
	passwordFile string
}

func (p *program) proxyCommand() *cobra.Command {
	f := proxyFlags{listen: overlay.DefaultProxy}
	cmd := &cobra.Command{
		Use:   "proxy",
		Short: "a SOCKS5 and HTTP proxy into the network",
		Long: `Turn on a proxy for the programs of this machine: SOCKS5 (TCP and UDP), HTTP, and a PAC
file for browsers, on one port. It is run by the daemon, and is on again after a
restart until proxy off.

It reaches the machines of the network and the LANs behind gateways, by address or by
name: the names of machines, and those that a LAN knows. To what is not in the network
a proxy on the loopback connects by TCP as this machine itself would, so that a shell
in which everything goes by the proxy still has the rest of the world. What is of the
network, or ever was, never goes that way: without its gateway it is not reached. A
proxy that other machines can reach refuses everything outside. The PAC file sends
nothing to the proxy but what is of the network.

Without --listen it is on 127.0.0.1:1080. On Linux it is then for the programs of the
user that the daemon runs as, and for root's; when that is root, for every program of
the machine. With --password-file it is for whoever knows the password. An address that
other machines reach needs one: that of --password-file, or else one is made up and
printed, once. The name that goes with it is overlayd.`,
		Example: `  overlayd proxy
  curl --proxy socks5h://127.0.0.1:1080 http://nas.lab/
  eval "$(overlayd proxy env)"
  overlayd proxy --listen 192.168.7.2:1080`,
		Args: words(0, 0, "no words"),
		RunE: func(cmd *cobra.Command, _ []string) error { return p.proxyOn(cmd.Context(), f) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.Var(&f.listen, "listen", "where to listen")
	flags.Var(text{&f.passwordFile, "FILE"}, "password-file", "clients need the password in this file; - is standard input")
	status := &cobra.Command{
		Use: "status", Short: "how it is", Long: "Show where the proxy listens, and what it has done.",
		Args: words(0, 0, "no words"),
		RunE: func(cmd *cobra.Command, _ []string) error { return p.proxyStatus(cmd.Context()) },
	}
	p.jsonFlag(status)
	off := &cobra.Command{
		Use: "off", Short: "turn it off", Long: "Turn the proxy off, also for the next start. Its connections end.",
		Args: words(0, 0, "no words"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := p.engine.dial(p.common.socket).SetProxy(cmd.Context(), "", "")
			return err
		},
	}
	cmd.AddCommand(status, off, p.proxyEnvCommand())
	return cmd
}

func (p *program) proxyEnvCommand() *cobra.Command {
	var unset bool
	cmd := &cobra.Command{
		Use:   "env",
		Short: "print shell lines that make programs use it",
		Long: `Print lines for a POSIX shell that set the variables by which most programs find a
proxy. Programs that are started from there reach the network, by the names of machines
and LANs too, and everything else as before. With --unset, lines that take them back.`,
		Example: `  eval "$(overlayd proxy env)"
  eval "$(overlayd proxy env --unset)"`,
		Args: words(0, 0, "no words"),
		RunE: func(cmd *cobra.Command, _ []string) error { return p.proxyEnv(cmd.Context(), unset) },
	}
	cmd.Flags().BoolVar(&unset, "unset", false, "take them back")
	return cmd
}

// proxyOn turns the proxy on and prints how to use it.
func (p *program) proxyOn(ctx context.Context, f proxyFlags) error {
	host, port, err := net.SplitHostPort(string(f.listen))
	if err != nil {
		return err // the flag has checked it
	}
	if host == "" {
		host = "0.0.0.0"
	}
	password, made := "", false
	switch at, err := netip.ParseAddr(host); {
	case f.passwordFile != "":
		if password, err = p.secretLine(f.passwordFile); err != nil {
			return err
		}
	case err == nil && !at.IsLoopback():
		password, made = proxy.NewPassword(), true
	}
	ctx, stop := context.WithTimeout(ctx, callTimeout)
	defer stop()
	w, err := p.engine.dial(p.common.socket).SetProxy(ctx, net.JoinHostPort(host, port), password)
	if err != nil {
		return err
	}
	p.printProxy(w)
	if made {
		fmt.Fprintf(p.stdout, "password  %s   (it is not shown again)\n", password)
	}
	return nil
}

// secretLine reads the first line of a file, or of standard input.
func (p *program) secretLine(file string) (string, error) {
	if file == "-" {
		return p.firstLine("the password")
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	if line = strings.TrimRight(line, "\r"); line == "" {
		return "", usage("write it into the first line", "%s holds no password", file)
	}
	return line, nil
}

// firstLine reads a line of standard input; what names it in the error.
func (p *program) firstLine(what string) (string, error) {
	line, err := bufio.NewReader(io.LimitReader(p.stdin, 4096)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read %s from standard input: %w", what, err)
	}
	if line = strings.TrimRight(line, "\r\n"); line == "" {
		return "", usage("", "standard input holds nothing for %s", what)
	}
	return line, nil
}

func (p *program) printProxy(w overlay.Ways) {
	s := w.Proxy
	if s == nil {
		fmt.Fprintln(p.stdout, "the proxy is off; overlayd proxy turns it on")
		return
	}
	at := reachable(s.Listen)
	var t table
	t.row("socks5", "socks5h://"+at)
	t.row("http", "http://"+at)
	t.row("pac", "http://"+at+proxy.PACPath)
	if s.Password {
		t.row("login", s.User+", with a password")
	}
	if s.Outside {
		t.row("reaches", "the network; everything else as this machine does")
	} else {
		t.row("reaches", "the network, and nothing else")
	}
	if !s.Password {
		t.row("for", whoseText(w))
	}
	if s.Error != nil {
		t.row("problem", *s.Error)
	}
	t.write(p.stdout)
}

// whoseText says whose programs may use a port of the loopback.
func whoseText(w overlay.Ways) string {
	if w.OwnUser {
		return "your own programs"
	}
	return "every program of this machine"
}

// reachable is an address that listens as a program of this machine calls it.
func reachable(listen string) string {
	at, err := netip.ParseAddrPort(listen)
	if err != nil || !at.Addr().IsUnspecified() {
		return listen
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), at.Port()).String()
}

func (p *program) ways(ctx context.Context) (overlay.Ways, error) {
	ctx, stop := context.WithTimeout(ctx, callTimeout)
	defer stop()
	return p.engine.dial(p.common.socket).Ways(ctx)
}

func (p *program) proxyStatus(ctx context.Context) error {
	w, err := p.ways(ctx)
	if err != nil {
		return err
	}
	if p.common.json {
		return printJSON(p.stdout, w)
	}
	p.printProxy(w)
	if w.Proxy == nil {
		return nil
	}
	var t table
	for _, c := range w.Proxy.Counters {
		if c.Value > 0 {
			t.row(c.Name, fmt.Sprint(c.Value))
		}
	}
	if len(t) > 0 {
		fmt.Fprintln(p.stdout)
		t.write(p.stdout)
	}
	return nil
}

// proxyVariables are the variables that programs read; curl wants http_proxy in
// lower case only.
var proxyVariables = []string{"http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"}

// aroundVariables name the hosts that no proxy is used for. A proxy does not know
// who asks, so of "this machine" it makes nothing.
var aroundVariables = []string{"no_proxy", "NO_PROXY"}

// around are those hosts.
var around = []string{"localhost", "127.0.0.1", "::1"}

// proxyEnv prints what a shell evaluates.
func (p *program) proxyEnv(ctx context.Context, unset bool) error {
	if unset {
		fmt.Fprintf(p.stdout, "unset %s\n", strings.Join(proxyVariables, " "))
		p.printAround(nil)
		return nil
	}
	w, err := p.ways(ctx)
	if err != nil {
		return err
	}
	if w.Proxy == nil {
		return failure(overlay.ExitFailure, "turn it on: overlayd proxy", "the proxy is off")
	}
	at := reachable(w.Proxy.Listen)
	if w.Proxy.Password {
		return failure(overlay.ExitFailure, "set them yourself: export http_proxy=http://"+w.Proxy.User+":PASSWORD@"+at,
			"the proxy needs a password, which is kept nowhere")
	}
	for _, name := range proxyVariables {
		scheme := "http"
		if strings.EqualFold(name, "all_proxy") {
			scheme = "socks5h"
		}
		fmt.Fprintf(p.stdout, "export %s=%s://%s\n", name, scheme, at)
	}
	p.printAround(around)
	return nil
}

// printAround prints the lines for what goes around the proxy: what the environment
// says, with ours in place of ours.
func (p *program) printAround(ours []string) {
	for _, name := range aroundVariables {
		var hosts []string
		for _, h := range strings.Split(p.getenv(name), ",") {
			if h = strings.TrimSpace(h); h != "" && !slices.Contains(around, h) {
				hosts = append(hosts, h)
			}
		}
		if hosts = append(hosts, ours...); len(hosts) == 0 {
			fmt.Fprintf(p.stdout, "unset %s\n", name)
			continue
		}
		fmt.Fprintf(p.stdout, "export %s='%s'\n", name, strings.ReplaceAll(strings.Join(hosts, ","), "'", `'\''`))
	}
}
