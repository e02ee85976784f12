package main

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"overlayd/overlay"
	"overlayd/overlay/coord"
)

// member are the flags of a node that joins by a link.
type member struct {
	linkFile string
	name     name
	port     port
	forwards endpoints
	proxy    proxyURL
	unmapped bool
	user     bool
}

func (m *member) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.SortFlags = false
	f.Var(&m.name, "name", "what to call this machine (default: the invite's name, or the host's)")
	f.Var(&m.port, "port", "local UDP port")
	f.Var(&m.forwards, "advertise-endpoint", "address that the router forwards to --port; may be given several times")
	f.Var(&m.proxy, "proxy", "HTTP proxy to the relay's TLS port, in place of the environment's; none: no proxy")
	f.BoolVar(&m.unmapped, "no-portmap", false, "do not ask the router for a port (UPnP, NAT-PMP, PCP)")
	f.BoolVar(&m.user, "userspace", false, "without an interface, and without root: TCP/IP inside of overlayd")
	f.Var(text{&m.linkFile, "FILE"}, "link-file", "holds the link; - is standard input")
}

func (p *program) upCommand() *cobra.Command {
	var m member
	cmd := &cobra.Command{
		Use:   "up [LINK]",
		Short: "join the network, or come back to it",
		Long: `Join the network that LINK invites to, or come back to it without one. Runs until
Ctrl-C or overlayd down, and leaves the machine as it was.

Routes to the LANs behind gateways are set up by themselves. A network that this
machine is on itself always wins over one with the same addresses elsewhere.

With --userspace it needs no root and changes nothing on this machine: programs
reach the network through overlayd proxy, nc, ssh and forward, and others reach
what this machine listens on. A user who is not root finds the state in
~/.local/state/overlayd, and the other verbs find the daemon by themselves.

LINK is needed once. It may also come from OVERLAYD_LINK or --link-file, where
other users of this machine do not see it.`,
		Example: `  sudo overlayd up ovl://203.0.113.10:443/…
  overlayd up --userspace ovl://203.0.113.10:443/…
  sudo overlayd up
  ssh root@203.0.113.10 overlayd invite | sudo overlayd up --link-file -`,
		Args:        words(0, 1, "one LINK at most"),
		Annotations: map[string]string{daemonSettings: "yes"},
		PreRunE:     func(*cobra.Command, []string) error { return nil },
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := p.memberOptions(&m, args)
			if err != nil {
				return err
			}
			o.Role = coord.RoleMember
			return p.serve(cmd.Context(), o, p.engine.node)
		},
	}
	m.register(cmd)
	return cmd
}

// memberOptions brings the flags and the link together.
func (p *program) memberOptions(m *member, args []string) (overlay.Options, error) {
	o := p.common.options()
	o.Name, o.Port, o.Endpoints = string(m.name), uint16(m.port), m.forwards
	o.Proxy = string(m.proxy)
	o.NoPortmap = m.unmapped
	o.Userspace, o.HostPorts = m.user, m.user
	if len(m.forwards) > 0 && m.port == 0 {
		return o, usage("give the port that the router forwards to with --port", "--advertise-endpoint needs --port")
	}
	var err error
	o.Link, err = p.link(m.linkFile, args)
	return o, err
}

// link finds the invite: on the command line, in a file, in the environment.
// None is no error: a machine that has joined needs none.
func (p *program) link(file string, args []string) (string, error) {
	var text string
	switch {
	case len(args) > 0 && args[0] != "-":
		text = args[0]
	case file == "-" || len(args) > 0:
		line, err := bufio.NewReader(io.LimitReader(p.stdin, 4096)).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return "", failure(overlay.ExitFailure, "", "read the link from standard input: %v", err)
		}
		if text = strings.TrimSpace(line); text == "" {
			return "", usage("", "standard input holds no link")
		}
	case file != "":
		b, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) && p.engine.joined(p.common.stateDir) {
			return "", nil // a service's link is there only for its first start
		}
		if err != nil {
			return "", err
		}
		text = strings.TrimSpace(string(b))
	default:
		text = strings.TrimSpace(p.getenv("OVERLAYD_LINK"))
	}
	if text == "" {
		return "", nil
	}
	if _, err := coord.ParseLink(text); err != nil {
		return "", err
	}
	return text, nil
}
