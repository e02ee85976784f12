package main

import (
	"context"
	"io"
	"os"
	"sync/atomic"
	"time"

	"overlayd/overlay"
)

// program is one run of the command line. What it meets outside stands in
// fields, so that a test runs the same commands with other surroundings.
type program struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	terminal       func(io.Writer) bool // whether a person reads what is written
	exit           func(code int)
	exec           func(name string, args []string) error // does not return when it works
	now            func() time.Time
	root           func() bool // nil: yes
	engine         engine
	systemd        systemd

	common  common      // the common flags, filled before a verb runs
	serving atomic.Bool // a daemon runs in this process
}

// engine is the part of package overlay that the verbs drive.
type engine struct {
	dial        func(socket string) daemon
	connect     func(ctx context.Context, socket, network, address string) (stream, error)
	coordinator func(socket string) coordinator
	node        func(overlay.Options) (runner, error)
	hub         func(overlay.HubOptions) (runner, error)
	cleanup     func(context.Context, overlay.Options) ([]string, error)
	planText    func(context.Context, overlay.Options) (string, error)
	netcheck    func(context.Context, overlay.Options) (overlay.Netcheck, error)
	joined      func(stateDir string) bool
}

// runner is a daemon that works until its context ends.
type runner interface {
	Run(context.Context) error
}

func newProgram() *program {
	return &program{
		stdin:    os.Stdin,
		stdout:   os.Stdout,
		stderr:   os.Stderr,
		getenv:   os.Getenv,
		terminal: isTerminal,
		exit:     os.Exit,
		exec:     become,
		now:      time.Now,
		root:     func() bool { return os.Geteuid() <= 0 }, // -1 where there are no users like that
		engine:   realEngine(),
		systemd:  hostSystemd(),
	}
}

func realEngine() engine {
	return engine{
		dial: func(socket string) daemon { return overlay.Dial(socket) },
		connect: func(ctx context.Context, socket, network, address string) (stream, error) {
			c, err := overlay.Dial(socket).Dial(ctx, network, address)
			if err != nil {
				return nil, err // not a nil pointer in an interface
			}
			return c, nil
		},
		coordinator: func(socket string) coordinator { return overlay.Dial(socket).Admin() },
		node: func(o overlay.Options) (runner, error) {
			n, err := overlay.New(o)
			if err != nil {
				return nil, err
			}
			return n, nil
		},
		hub: func(o overlay.HubOptions) (runner, error) {
			h, err := overlay.NewHub(o)
			if err != nil {
				return nil, err
			}
			return h, nil
		},
		cleanup:  overlay.Cleanup,
		planText: overlay.PlanText,
		netcheck: overlay.NetcheckAlone,
		joined:   overlay.Joined,
	}
}

// main runs one command line and returns the exit code.
func (p *program) main(ctx context.Context, args []string) int {
	root := p.rootCommand()
	root.SetArgs(args)
	root.SetIn(p.stdin)
	root.SetOut(p.stdout)
	root.SetErr(p.stderr)
	return p.report(root.ExecuteContext(ctx))
}

// isTerminal reports whether w is a character device that a person can read.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	i, err := f.Stat()
	return err == nil && i.Mode()&os.ModeCharDevice != 0 && f.Name() != os.DevNull
}
