package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"overlayd/overlay"
)

// daemonVerbs are what a service can run.
var daemonVerbs = []string{"relay", "gateway", "up"}

func (p *program) serviceCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "service",
		Short: "start a daemon at boot",
		Long: `Let systemd start overlayd at boot and again should it ever crash.

install takes the command that you would type in the foreground. It writes a unit
file, starts the service and says what it did. A link is kept in a file that only
you can read, and removed once it has served.

Who is not root has a service of his own, which his own systemd runs, of up or gateway
with --userspace. It runs while he is logged in, and from the boot on with
loginctl enable-linger.`,
		Example: `  sudo overlayd service install relay --public 203.0.113.10
  sudo overlayd service install gateway LINK
  sudo overlayd service install relay --join LINK --public 198.51.100.10
  sudo overlayd service install up
  overlayd service install up --userspace
  sudo overlayd service status
  sudo overlayd service uninstall`,
	}
	return group(cmd, func(cmd *cobra.Command) error {
		help(p.stdout, cmd)
		return nil
	}, p.installCommand(), p.uninstallCommand(), p.serviceStatusCommand())
}

// serviceName gives a verb the name of the service that it is about.
func serviceName(cmd *cobra.Command, n *name) {
	*n = "overlayd"
	cmd.Flags().Var(n, "name", "of the service, when several run on one machine")
}

func (p *program) installCommand() *cobra.Command {
	var called name
	var show bool
	cmd := &cobra.Command{
		Use:   "install relay|gateway|up [ARGUMENTS OF IT]",
		Short: "write a unit file and start it",
		Long: `Write a systemd unit that runs the given command, start it now and at every boot.
Flags of install come before the command. Settings in the environment and common
flags become part of the unit.`,
		Example: `  sudo overlayd service install gateway LINK
  sudo overlayd service install --name lab2 up --state-dir /var/lib/lab2 --socket /run/lab2/s --interface ovl1
  overlayd service install --print relay --public 203.0.113.10`,
		Args: words(1, 1<<10, "relay, gateway or up, with its arguments"),
		RunE: func(cmd *cobra.Command, args []string) error {
			u, link, err := p.planService(cmd, string(called), args)
			if err != nil {
				return err
			}
			if overlay.EnvironmentProxy(p.getenv) && !slices.ContainsFunc(u.Args, func(a string) bool { return strings.HasPrefix(a, "--proxy=") }) && args[0] != "relay" {
				fmt.Fprintln(p.stderr, "note: the environment names an HTTP proxy, which a service does not inherit; should it need one, add --proxy URL")
			}
			if show {
				fmt.Fprint(p.stdout, u)
				return nil
			}
			return p.install(cmd.Context(), u, link)
		},
		ValidArgs: daemonVerbs,
	}
	cmd.Flags().SetInterspersed(false) // what follows the verb is the verb's
	serviceName(cmd, &called)
	cmd.Flags().BoolVar(&show, "print", false, "print the unit file, change nothing")
	return cmd
}

// planService reads args as the daemon itself would, and returns the service
// that runs the same and the link that it needs once.
func (p *program) planService(install *cobra.Command, called string, args []string) (unit, string, error) {
	probe := &program{stdin: p.stdin, getenv: p.getenv, root: p.root}
	verb, rest, err := probe.rootCommand().Find(args[:1])
	if err != nil || len(rest) > 0 || !slices.Contains(daemonVerbs, args[0]) {
		return unit{}, "", usage("overlayd service install relay, gateway or up", "a service runs relay, gateway or up")
	}
	given := append(changedFlags(install.InheritedFlags()), args[1:]...)
	if err := verb.ParseFlags(given); err != nil {
		return unit{}, "", flagFault(verb, err)
	}
	words := verb.Flags().Args()
	if err := verb.ValidateArgs(words); err != nil {
		return unit{}, "", err
	}
	if err := probe.fillFromEnvironment(verb); err != nil {
		return unit{}, "", err
	}
	if err := noSecretProxy(verb.Flags()); err != nil {
		return unit{}, "", err
	}
	absolutePaths(verb.Flags())
	if p.systemd.own {
		if f := verb.Flags().Lookup("userspace"); f == nil || f.Value.String() != "true" {
			return unit{}, "", failure(overlay.ExitPermission, "run it as root (sudo), or install up or gateway with --userspace",
				"a service that changes this machine is root's to install")
		}
	}
	u := unit{Name: called, Own: p.systemd.own, Args: append([]string{verb.Name()}, changedFlags(verb.Flags())...)}
	if err := probe.fill(verb); err != nil { // the rest, from the config file
		return unit{}, "", err
	}
	if err := verb.PreRunE(verb, words); err != nil {
		return unit{}, "", err
	}
	link, err := probe.serviceLink(verb, words)
	if err != nil {
		return unit{}, "", err
	}
	if u.Own { // the manager's environment need not be this one
		u.Args = append(u.Args, "--state-dir="+probe.common.stateDir, "--socket="+probe.common.socket)
	}
	u.StateDir, u.Socket, u.Link = probe.common.stateDir, probe.common.socket, probe.common.link
	if link != "" {
		u.LinkFile = filepath.Join(u.StateDir, "link")
	}
	u.Program, err = p.installedProgram()
	return u, link, err
}

// noSecretProxy refuses a password in a unit file, which everybody can read.
func noSecretProxy(f *pflag.FlagSet) error {
	flag := f.Lookup("proxy")
	if flag == nil || !flag.Changed {
		return nil
	}
	if v, ok := flag.Value.(*proxyURL); ok && v.secret() {
		return usage("put the line `proxy: URL` into a file that only root can read, and install with --config FILE",
			"the proxy's password would stand in a unit file that everybody can read")
	}
	return nil
}

// serviceLink finds the link that a service needs once.
func (p *program) serviceLink(verb *cobra.Command, words []string) (string, error) {
	value := func(flag string) string {
		if f := verb.Flags().Lookup(flag); f != nil {
			return f.Value.String()
		}
		return ""
	}
	if verb.Flags().Lookup("join") != nil {
		return p.joinLink(value("join"), value("link-file"))
	}
	return p.link(value("link-file"), words)
}

// installedProgram is the path of this program, when it is one to start at boot.
func (p *program) installedProgram() (string, error) {
	path, err := p.systemd.executable()
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	for _, dir := range []string{"/tmp", "/var/tmp", "/dev/shm", "/run"} {
		if _, ok := below(dir, path); ok {
			return "", failure(overlay.ExitFailure, "sudo install "+path+" /usr/local/bin/ and use that one",
				"%s is gone after the next boot", path)
		}
	}
	return path, nil
}

// changedFlags writes the flags that were set as words of a command line. The
// link is left out: it does not belong into a file that everybody can read.
func changedFlags(f *pflag.FlagSet) []string {
	var words []string
	f.VisitAll(func(f *pflag.Flag) {
		if !f.Changed || f.Name == "link-file" || f.Name == "join" {
			return
		}
		values := []string{f.Value.String()}
		if _, ok := f.Value.(list); ok {
			values = strings.Split(f.Value.String(), ", ")
		}
		for _, v := range values {
			words = append(words, "--"+f.Name+"="+v)
		}
	})
	return words
}

// absolutePaths makes the file flags independent of where we were called.
func absolutePaths(f *pflag.FlagSet) {
	for _, n := range []string{"state-dir", "socket", "config", "tls-cert", "tls-key"} {
		flag := f.Lookup(n)
		if flag == nil || !flag.Changed || flag.Value.String() == "" {
			continue
		}
		if abs, err := filepath.Abs(flag.Value.String()); err == nil {
			_ = flag.Value.Set(abs) // a string takes every value
		}
	}
}

// install writes the unit and its link, and starts it.
func (p *program) install(ctx context.Context, u unit, link string) error {
	if err := p.systemd.ready(); err != nil {
		return err
	}
	path := p.unitPath(u.Name)
	if err := ownUnit(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if link != "" {
		if err := os.MkdirAll(u.StateDir, 0o700); err != nil {
			return fmt.Errorf("make state directory: %w", err)
		}
		if err := replaceFile(u.LinkFile, link+"\n", 0o600); err != nil {
			return err
		}
		fmt.Fprintf(p.stdout, "saved the link in %s until it has served\n", u.LinkFile)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make the directory of units: %w", err)
	}
	if err := replaceFile(path, u.String(), 0o644); err != nil {
		return err
	}
	fmt.Fprintf(p.stdout, "wrote %s\n", path)
	for _, args := range [][]string{{"daemon-reload"}, {"enable", "--quiet", u.Name}, {"restart", "--no-block", u.Name}} {
		if _, err := p.systemd.systemctl(ctx, args...); err != nil {
			return err
		}
	}
	if u.Own {
		fmt.Fprintf(p.stdout, "started it, now and when you log in; at every boot with: loginctl enable-linger\n")
	} else {
		fmt.Fprintf(p.stdout, "started it, now and at every boot\n")
	}
	return p.awaitService(ctx, u)
}

const (
	// awaitFor is how long install watches its service: joining takes a few
	// round trips, waiting for a person's approval is not worth watching.
	awaitFor   = 10 * time.Second
	awaitEvery = 200 * time.Millisecond
)

// awaitService says what became of a service that was just started.
func (p *program) awaitService(ctx context.Context, u unit) error {
	ctx, cancel := context.WithTimeout(ctx, awaitFor)
	defer cancel()
	tick := time.NewTicker(awaitEvery)
	defer tick.Stop()
	for {
		if s, err := p.engine.dial(u.Socket).Status(ctx); err == nil && s.State == overlay.StateReady {
			fmt.Fprintln(p.stdout, readyLine(s))
			return nil
		}
		if out, err := p.systemd.systemctl(ctx, "show", "--property=ActiveState", "--value", u.Name); err == nil &&
			strings.TrimSpace(out) == "failed" {
			return failure(overlay.ExitFailure, p.systemd.journal()+" -u "+u.Name+" -n 20", "%s failed", u.Name)
		}
		select {
		case <-ctx.Done():
			fmt.Fprintf(p.stdout, "it is not ready yet; follow it with: %s -fu %s\n", p.systemd.journal(), u.Name)
			return nil
		case <-tick.C:
		}
	}
}

func (p *program) unitPath(service string) string {
	return filepath.Join(p.systemd.unitDir, service+".service")
}

// ownUnit refuses a unit file that somebody else wrote.
func ownUnit(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(string(b), unitMark) {
		return failure(overlay.ExitConflict, "choose another name with --name, or take the file away yourself",
			"%s was not written by overlayd", path)
	}
	return nil
}

// replaceFile writes a file whole or not at all.
func replaceFile(path, text string, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".overlayd-")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer os.Remove(f.Name()) // fails after the rename, as it should
	_, err = f.WriteString(text)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func (p *program) uninstallCommand() *cobra.Command {
	var called name
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "stop the service and take its unit file away",
		Long: `Stop the service, take its unit file away and leave the machine as it was. Keys and
membership stay in the state directory.`,
		Example: "  sudo overlayd service uninstall",
		Args:    words(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := p.systemd.ready(); err != nil {
				return err
			}
			path := p.unitPath(string(called))
			if err := ownUnit(path); errors.Is(err, fs.ErrNotExist) {
				return failure(overlay.ExitFailure, "overlayd service install", "no service %s is installed", called)
			} else if err != nil {
				return err
			}
			if _, err := p.systemd.systemctl(cmd.Context(), "disable", "--quiet", "--now", string(called)); err != nil {
				return err
			}
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("take away unit file: %w", err)
			}
			if _, err := p.systemd.systemctl(cmd.Context(), "daemon-reload"); err != nil {
				return err
			}
			fmt.Fprintf(p.stdout, "stopped %s and took away %s\n", called, path)
			fmt.Fprintf(p.stdout, "keys and membership are still in %s\n", p.common.stateDir)
			return nil
		},
	}
	serviceName(cmd, &called)
	return cmd
}

func (p *program) serviceStatusCommand() *cobra.Command {
	var called name
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "say whether the service runs",
		Long:    "Say whether the service is installed, runs, and starts at boot. Ends with 3 when it does\nnot run.",
		Example: "  overlayd service status",
		Args:    words(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			path := p.unitPath(string(called))
			if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
				return failure(overlay.ExitNotRunning, "sudo overlayd service install gateway, or relay, or up",
					"no service %s is installed", called)
			}
			out, err := p.systemd.systemctl(cmd.Context(), "show",
				"--property=ActiveState,SubState,UnitFileState,StatusText", string(called))
			if err != nil {
				return err
			}
			state := properties(out)
			fmt.Fprintf(p.stdout, "service   %s\nunit      %s\nstate     %s, %s\nat boot   %s\n",
				called, path, orUnknown(state["ActiveState"]), orUnknown(state["SubState"]), orUnknown(state["UnitFileState"]))
			if t := state["StatusText"]; t != "" {
				fmt.Fprintf(p.stdout, "says      %s\n", oneLine(t))
			}
			if state["ActiveState"] != "active" {
				return quiet(overlay.ExitNotRunning)
			}
			return nil
		},
	}
	serviceName(cmd, &called)
	return cmd
}

// properties reads the output of systemctl show.
func properties(out string) map[string]string {
	m := make(map[string]string)
	for line := range strings.Lines(out) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			m[k] = v
		}
	}
	return m
}
