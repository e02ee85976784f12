package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"overlayd/overlay"
)

func (p *program) sshCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ssh [USER@]HOST [ARG...]",
		Short: "ssh to a host, by the network",
		Long: `Run this machine's ssh with the connection made by overlayd nc: HOST is an address, the
name of a machine, or a name that the LAN knows. What follows HOST is ssh's: options,
and a command.

For scp, rsync, git and editors, overlayd ssh config --install writes the same into
ssh's configuration.`,
		Example: `  overlayd ssh ubuntu@192.168.1.201
  overlayd ssh root@nas.lab -L 8080:localhost:80
  overlayd ssh config --install`,
		Args: words(1, 1000, "[USER@]HOST"),
		RunE: func(_ *cobra.Command, args []string) error {
			proxy, err := p.proxyCommandLine()
			if err != nil {
				return err
			}
			return p.exec("ssh", append([]string{"-o", "ProxyCommand=" + proxy}, args...))
		},
		ValidArgsFunction: p.completeFirst(p.peerNames),
	}
	cmd.Flags().SetInterspersed(false)
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if n, ok := errors.AsType[*pflag.NotExistError](err); ok && cmd.Name() == "ssh" {
			return usage("ssh's own options come behind the host: overlayd ssh ubuntu@192.168.1.201 -p 2222", "unknown flag %s", dashed(n.GetSpecifiedName()))
		}
		return flagFault(cmd, err)
	})
	cmd.AddCommand(p.sshConfigCommand())
	return cmd
}

func (p *program) sshConfigCommand() *cobra.Command {
	var install, remove bool
	cmd := &cobra.Command{
		Use:   "config",
		Short: "what ssh, scp, rsync and editors need",
		Long: `Print entries for ssh's configuration: connections to the machines of the network, to
the addresses behind its gateways and to the LANs' domains are made by overlayd nc.

With --install they go to ~/.ssh/config.d/overlayd.conf, which an Include line at the
top of ~/.ssh/config makes ssh read. Run it again when machines or networks have come;
nothing else in there is changed. --remove takes both away.`,
		Example: `  overlayd ssh config
  overlayd ssh config --install
  scp results.tar ubuntu@192.168.1.201:`,
		Args: words(0, 0, "no words"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if remove {
				return p.removeSSHConfig()
			}
			text, err := p.sshConfig(cmd.Context())
			if err != nil {
				return err
			}
			if install {
				return p.installSSHConfig(text)
			}
			fmt.Fprint(p.stdout, text)
			return nil
		},
	}
	cmd.Flags().SortFlags = false
	cmd.Flags().BoolVar(&install, "install", false, "write them to ~/.ssh")
	cmd.Flags().BoolVar(&remove, "remove", false, "take them away again")
	return cmd
}

// proxyCommandLine is what ssh runs for a connection: this program.
func (p *program) proxyCommandLine() (string, error) {
	self, err := p.systemd.executable()
	if err != nil {
		return "", err
	}
	words := []string{shellWord(self)}
	if p.common.socket != overlay.DefaultSocket {
		socket, err := filepath.Abs(p.common.socket)
		if err != nil {
			return "", err
		}
		words = append(words, "--socket", shellWord(socket))
	}
	return strings.Join(append(words, "nc", hostWord()), " "), nil
}

// hostWord is the host and port as ssh puts them into a line that a shell reads.
// The name is somebody's, such as a repository's: releases of OpenSSH before 9.6
// take those with $ and ; in them.
func hostWord() string {
	if runtime.GOOS == "windows" {
		return `"%h" %p`
	}
	return "'%h' %p"
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_/.,:=@+-]+$`)

// shellWord quotes a word for the shell, and for ssh, which expands %.
func shellWord(s string) string {
	s = strings.ReplaceAll(s, "%", "%%")
	if plainWord.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// sshConfig is the text of the entries.
func (p *program) sshConfig(ctx context.Context) (string, error) {
	proxy, err := p.proxyCommandLine()
	if err != nil {
		return "", err
	}
	ctx, stop := context.WithTimeout(ctx, callTimeout)
	defer stop()
	r, err := p.engine.dial(p.common.socket).Reach(ctx)
	if err != nil {
		return "", err
	}
	var hosts []string
	for _, n := range r.Names {
		hosts = append(hosts, strings.ToLower(n))
	}
	for _, d := range r.Domains {
		hosts = append(hosts, "*."+d)
	}
	for _, prefix := range r.Prefixes {
		hosts = append(hosts, patterns(prefix)...)
	}
	slices.Sort(hosts)
	var b strings.Builder
	b.WriteString("# Written by overlayd ssh config; run it again with --install to renew it.\n")
	if len(hosts) == 0 {
		b.WriteString("# There is nobody to reach yet.\n")
		return b.String(), nil
	}
	fmt.Fprintf(&b, "Host %s\n", strings.Join(slices.Compact(hosts), " "))
	fmt.Fprintf(&b, "    ProxyCommand %s\n", proxy)
	return b.String(), nil
}

// patterns are what ssh has for the addresses of a prefix: whole bytes, with * for
// the rest.
func patterns(p netip.Prefix) (list []string) {
	if !p.Addr().Is4() {
		return nil
	}
	const bytes = 4
	fixed := p.Bits() / 8
	from := p.Masked().Addr().As4()
	write := func(n int) {
		var words []string
		for _, b := range from[:n] {
			words = append(words, fmt.Sprint(b))
		}
		if n < bytes {
			words = append(words, "*")
		}
		list = append(list, strings.Join(words, "."))
	}
	if p.Bits()%8 == 0 {
		write(fixed)
		return list
	}
	for range 1 << (8 - p.Bits()%8) {
		write(fixed + 1)
		from[fixed]++
	}
	return list
}

// The files of ssh, below the home directory.
const (
	sshDir     = ".ssh"
	sshMain    = "config"
	sshOurDir  = "config.d"
	sshOurs    = "overlayd.conf"
	sshInclude = "Include " + sshOurDir + "/" + sshOurs
)

// sshFiles are where the configuration is and where ours goes.
func (p *program) sshFiles() (main, ours string, err error) {
	home := p.getenv("HOME")
	if home == "" {
		if home, err = os.UserHomeDir(); err != nil {
			return "", "", err
		}
	}
	return filepath.Join(home, sshDir, sshMain), filepath.Join(home, sshDir, sshOurDir, sshOurs), nil
}

// installSSHConfig writes our file, and makes ssh read it.
func (p *program) installSSHConfig(text string) error {
	main, ours, err := p.sshFiles()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(ours), 0o700); err != nil {
		return err
	}
	if err := swapFile(ours, []byte(text)); err != nil {
		return err
	}
	have, err := os.ReadFile(main)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	if !includes(string(have)) {
		// At the top: behind a Host line it would hold for that host only.
		next := sshInclude + "\n"
		if len(have) > 0 {
			next += "\n"
		}
		if err := swapFile(main, append([]byte(next), have...)); err != nil {
			return err
		}
	}
	fmt.Fprintf(p.stdout, "%s is written, and %s includes it\n", ours, main)
	return nil
}

// includes reports whether a configuration reads our file for every host.
func includes(config string) bool {
	for line := range strings.Lines(config) {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		switch strings.ToLower(words[0]) {
		case "host", "match":
			return false
		case "include":
			for _, w := range words[1:] {
				w = strings.TrimPrefix(strings.Trim(w, `"`), "~/.ssh/")
				if w == sshOurDir+"/"+sshOurs || w == sshOurDir+"/*" || w == sshOurDir+"/*.conf" {
					return true
				}
			}
		}
	}
	return false
}

// removeSSHConfig takes our file and our line away.
func (p *program) removeSSHConfig() error {
	main, ours, err := p.sshFiles()
	if err != nil {
		return err
	}
	if err := os.Remove(ours); err != nil && !os.IsNotExist(err) {
		return err
	}
	os.Remove(filepath.Dir(ours)) // stays when something else is in it
	have, err := os.ReadFile(main)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	rest := strings.TrimPrefix(string(have), sshInclude+"\n\n")
	if rest = strings.TrimPrefix(rest, sshInclude+"\n"); rest == string(have) {
		return nil
	}
	if rest == "" {
		return os.Remove(main)
	}
	return swapFile(main, []byte(rest))
}

// swapFile puts a file for its owner alone into place in one step; one that
// is there keeps its mode, and a symbolic link stays one.
func swapFile(path string, b []byte) error {
	mode := os.FileMode(0o600)
	if at, err := filepath.EvalSymlinks(path); err == nil {
		path = at
		if i, err := os.Stat(path); err == nil {
			mode = i.Mode().Perm()
		}
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".overlayd-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails after the rename, as it should
	_, err = f.Write(b)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(f.Name(), path)
}
