package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"overlayd/overlay"
)

// serve runs a daemon in the foreground until it is told to stop.
func (p *program) serve(ctx context.Context, o overlay.Options, start func(overlay.Options) (runner, error)) error {
	ignoreBrokenPipe()
	debug.SetGCPercent(garbagePercent)
	ready := make(chan struct{}) // closed by the daemon's Ready
	o.Log = p.logger()
	o.Ready = sync.OnceFunc(func() { close(ready) })
	r, err := start(o)
	if err != nil {
		return err
	}
	p.serving.Store(true)
	defer p.serving.Store(false)

	ended := make(chan struct{}) // closed when the daemon has returned
	g := new(errgroup.Group)
	g.Go(func() error {
		defer close(ended)
		return r.Run(ctx)
	})
	g.Go(func() error {
		p.announce(ctx, o.Socket, ready, ended)
		return nil
	})
	err = g.Wait()
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return nil // stopped as asked
	}
	return err
}

// announce tells the person and systemd how the daemon is doing.
func (p *program) announce(ctx context.Context, socket string, ready, ended <-chan struct{}) {
	select {
	case <-ready:
	case <-ended:
		return
	case <-ctx.Done():
		p.systemd.notify("STOPPING=1")
		return
	}
	line := "ready"
	// statusTimeout is long for a Unix socket: the daemon is our own process
	ask, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	if s, err := p.engine.dial(socket).Status(ask); err == nil {
		line = readyLine(s)
	}
	p.systemd.notify("READY=1\nSTATUS=" + line)
	fmt.Fprintln(p.stderr, "ready: "+strings.TrimPrefix(line, "ready: "))
	calm := time.After(startTime)
	for {
		select {
		case <-calm:
			settle()
		case <-ended:
			return
		case <-ctx.Done():
			p.systemd.notify("STOPPING=1")
			if p.terminal(p.stderr) {
				fmt.Fprintln(p.stderr, "stopping; the machine is put back as it was")
			}
			return
		}
	}
}

const (
	statusTimeout = 5 * time.Second
	// startTime is how long after "ready" a start is over: those who waited for
	// this daemon, nodes for their relay, have come back to it and left the garbage
	// of their handshakes.
	startTime = 2 * time.Second
)

// garbagePercent is how much garbage there may be, of the live heap. Most of that
// are 64 KiB buffers of WireGuard's, of which few pages are ever touched: Go's 100 %
// would let real garbage grow to their full size.
const garbagePercent = 25

// readyLine says in one line what a person can do now.
func readyLine(s overlay.Status) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s is %s", s.Node.Name, joinAny(s.Node.IPs, ", "))
	var through, offered, waiting, refused []string
	for _, r := range s.Routes {
		switch r.State {
		case overlay.RouteActive, overlay.RouteDegraded, overlay.RouteOffline:
			through = append(through, fmt.Sprintf("%s through %s", r.Prefix, r.Via))
		case overlay.RouteAdvertised:
			offered = append(offered, r.Prefix.String())
		case overlay.RoutePending:
			waiting = append(waiting, r.Prefix.String())
		case overlay.RouteRefused:
			refused = append(refused, r.Prefix.String())
		}
	}
	for _, t := range through {
		b.WriteString("; " + t)
	}
	if len(offered) > 0 {
		b.WriteString("; offers " + strings.Join(offered, ", "))
	}
	if len(waiting) > 0 {
		b.WriteString("; waits for approval of " + strings.Join(waiting, ", "))
	}
	if len(refused) > 0 {
		b.WriteString("; may reach nothing in " + strings.Join(refused, ", "))
	}
	if s.Node.Userspace && s.Node.Role == "member" {
		b.WriteString("; programs get in by overlayd proxy, nc, ssh and forward")
	}
	if s.Node.Role == "relay" && len(s.Peers) == 0 { // nobody has joined yet, or the policy leads nobody here
		b.WriteString("; a machine joins with a link: sudo overlayd invite")
	}
	return b.String()
}

// logger writes a daemon's log to standard error: changes of state, a line
// each. systemd's journal has its own clock.
func (p *program) logger() *slog.Logger {
	journal := p.getenv("JOURNAL_STREAM") != ""
	return slog.New(slog.NewTextHandler(p.stderr, &slog.HandlerOptions{
		Level: slog.Level(p.common.logLevel),
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				if journal {
					return slog.Attr{}
				}
				return slog.String(slog.TimeKey, a.Value.Time().Format(time.TimeOnly))
			}
			return a
		},
	}))
}
