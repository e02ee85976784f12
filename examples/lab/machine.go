//go:build linux

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Machine is one network namespace.
type Machine struct {
	Name      string // "laptop"
	Namespace string // "ovl-4711-laptop"

	lab *Lab
}

// machine makes a namespace with its loopback up.
func (l *Lab) machine(ctx context.Context, name string, router bool) (*Machine, error) {
	m := &Machine{Name: name, Namespace: l.prefix + name, lab: l}
	err := run(ctx, "ip", "netns", "add", m.Namespace)
	if err == nil {
		err = m.ip(ctx, "link", "set", "lo", "up")
	}
	if err == nil {
		err = m.routerSysctls(ctx, router)
	}
	if err != nil { // ip may have been killed with its work done
		return nil, errors.Join(err, removeNamespace(context.Background(), m.Namespace))
	}
	return m, nil
}

// Command returns a command that runs in the machine. When ctx ends it gets
// SIGTERM, and two seconds later SIGKILL.
func (m *Machine) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", m.Namespace, name}, args...)...)
	cmd.Env = append(os.Environ(),
		"OVERLAYD_STATE_DIR="+m.StateDir(), "OVERLAYD_SOCKET="+m.Socket(), "LC_ALL=C")
	// A group of its own: Ctrl-C at the terminal is for the lab, which then
	// ends the machines' processes in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(terminate) }
	cmd.WaitDelay = 2 * time.Second
	return cmd
}

// Run runs a command to its end and returns what it wrote, errors with it.
func (m *Machine) Run(ctx context.Context, name string, args ...string) (string, error) {
	out, err := m.Command(ctx, name, args...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %s: %w\n%s", m.Name, strings.Join(append([]string{name}, args...), " "), err, bytes.TrimSpace(out))
	}
	return string(out), nil
}

// StateDir is where the machine's overlayd keeps its state.
func (m *Machine) StateDir() string { return filepath.Join(m.lab.Dir, m.Name) }

// Socket is where the machine's overlayd listens for its command line.
func (m *Machine) Socket() string { return filepath.Join(m.lab.Dir, m.Name+".sock") }

// Enter calls f on a thread inside the machine: sockets that f opens belong
// to the machine for good. Goroutines that f starts are outside again.
func (m *Machine) Enter(f func() error) error {
	ns, err := os.Open("/run/netns/" + m.Namespace)
	if err != nil {
		return fmt.Errorf("enter %s: %w", m.Name, err)
	}
	defer ns.Close()
	done := make(chan error, 1)
	go enter(int(ns.Fd()), f, done)
	if err := <-done; err != nil {
		return fmt.Errorf("in %s: %w", m.Name, err)
	}
	return nil
}

// enter moves its thread into the namespace and never unlocks it: the thread
// ends with the goroutine, and nobody else wakes up in the wrong place.
func enter(ns int, f func() error, done chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == os.Getpid() {
		// The first thread cannot end, and stands for the whole process in
		// /proc. Keep it busy while another one goes.
		defer runtime.UnlockOSThread()
		other := make(chan error)
		go enter(ns, f, other)
		done <- <-other
		return
	}
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		done <- fmt.Errorf("enter the namespace: %w", err)
		return
	}
	done <- f()
}

// DialContext dials from the machine. The address must be a literal one.
func (m *Machine) DialContext(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = m.Enter(func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// Listen listens in the machine.
func (m *Machine) Listen(network, addr string) (l net.Listener, err error) {
	err = m.Enter(func() error {
		l, err = net.Listen(network, addr)
		return err
	})
	return l, err
}

// ListenPacket opens a packet socket in the machine.
func (m *Machine) ListenPacket(network, addr string) (c net.PacketConn, err error) {
	err = m.Enter(func() error {
		c, err = net.ListenPacket(network, addr)
		return err
	})
	return c, err
}

func (m *Machine) ip(ctx context.Context, args ...string) error {
	return run(ctx, "ip", append([]string{"-n", m.Namespace}, args...)...)
}

func (m *Machine) iptables(ctx context.Context, args ...string) error {
	return m.exec(ctx, "iptables", append([]string{"-w"}, args...)...)
}

func (m *Machine) exec(ctx context.Context, name string, args ...string) error {
	return run(ctx, "ip", append([]string{"netns", "exec", m.Namespace, name}, args...)...)
}

// run runs a command on the host; its output is only for the error.
func run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
