//go:build linux

package lab

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// Joined is a lab in which all three machines are members of the overlay.
type Joined struct {
	Relay, Gateway, Laptop *Process
}

// RelayArgs, GatewayInvite and LaptopInvite are the command lines of the
// README; Join and the demo run the same ones.
var (
	RelayArgs     = []string{"relay", "--public", VPSAddr, "--overlay", Overlay, "--address", VPSOverlay}
	GatewayInvite = []string{"invite", "--name", "lab-gw", "--gateway", LAN, "--address", GatewayOverlay}
	LaptopInvite  = []string{"invite", "--name", "laptop", "--address", LaptopOverlay}
	RelayInvite   = []string{"invite", "--name", "vps2", "--relay", "--address", VPS2Overlay}
)

// Join runs the three commands, each on its machine, and returns when all
// three say that they are ready.
func (l *Lab) Join(ctx context.Context) (*Joined, error) {
	var j Joined
	var err error
	if j.Relay, err = l.VPS.Serve(ctx, RelayArgs...); err != nil {
		return nil, err
	}
	link, err := l.VPS.Overlayd(ctx, GatewayInvite...)
	if err != nil {
		return nil, err
	}
	if j.Gateway, err = l.Gateway.Serve(ctx, "gateway", link); err != nil {
		return nil, err
	}
	if link, err = l.VPS.Overlayd(ctx, LaptopInvite...); err != nil {
		return nil, err
	}
	if j.Laptop, err = l.Laptop.Serve(ctx, "up", link); err != nil {
		return nil, err
	}
	return &j, nil
}

// JoinRelay makes the second VPS a relay of the network, and returns when it says
// that it is ready.
func (l *Lab) JoinRelay(ctx context.Context) (*Process, error) {
	link, err := l.VPS.Overlayd(ctx, RelayInvite...)
	if err != nil {
		return nil, err
	}
	return l.VPS2.Serve(ctx, "relay", "--join", link, "--public", VPS2Addr)
}

// Serve starts one of overlayd's foreground commands and waits until
// `overlayd status --check ready` agrees.
func (m *Machine) Serve(ctx context.Context, args ...string) (*Process, error) {
	p, err := m.Start(m.lab.overlayd(), args...)
	if err != nil {
		return nil, err
	}
	return p, m.Ready(ctx, p)
}

// Ready waits until the machine's overlayd, which runs as p, is ready.
func (m *Machine) Ready(ctx context.Context, p *Process) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	err := Until(ctx, func(ctx context.Context) error {
		if !p.Running() {
			err := fmt.Errorf("overlayd ended: %w", cmp.Or(p.Err(), errors.New("exit status 0")))
			cancel(err)
			return err
		}
		_, err := m.Overlayd(ctx, "status", "--check", "ready")
		return err
	})
	if err != nil {
		return fmt.Errorf("wait for overlayd on %s: %w\n%s", m.Name, err, p.Tail())
	}
	return nil
}

// Overlayd runs one of overlayd's short commands and returns its stdout
// without the last newline. The error holds its stderr and wraps
// *exec.ExitError, for the exit code.
func (m *Machine) Overlayd(ctx context.Context, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := m.Command(ctx, m.lab.overlayd(), args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s: overlayd %s: %w\n%s", m.Name, strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return strings.TrimSuffix(stdout.String(), "\n"), err
}

// ExitCode returns the exit code that an error of Overlayd or Run speaks of,
// zero for no error, -1 for one that is none.
func ExitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return -1
}

func (l *Lab) overlayd() string { return cmp.Or(l.Options.Overlayd, "overlayd") }
