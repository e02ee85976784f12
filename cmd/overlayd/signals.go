package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"overlayd/overlay"
)

// stopSignals are those that end a daemon in order. A closed terminal is one
// of them, so that a lost SSH session leaves the machine clean, unless nohup
// had it ignored.
func stopSignals() []os.Signal {
	s := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		s = append(s, syscall.SIGHUP)
	}
	return s
}

// insist is how long after the first signal another one means "now". Sooner it
// is the same wish told twice: timeout(1) signals its child and then the group,
// and a closed terminal hangs up from the kernel and from the shell.
const insist = 500 * time.Millisecond

// watchSignals cancels at the first signal and ends the process at the next
// that comes after insist.
func (p *program) watchSignals(signals <-chan os.Signal, cancel func()) {
	<-signals
	first := time.Now()
	cancel()
	for again := false; !again; again = time.Since(first) >= insist {
		<-signals
	}
	if p.serving.Load() {
		fmt.Fprintln(p.stderr, "overlayd: stopped before the machine was put back as it was")
		fmt.Fprintln(p.stderr, "hint: sudo overlayd cleanup")
	}
	p.exit(overlay.ExitFailure)
}

// ignoreBrokenPipe keeps a daemon alive when its log's reader goes away
// (overlayd up 2>&1 | head): dying there would leave the machine changed.
func ignoreBrokenPipe() { signal.Ignore(syscall.SIGPIPE) }

// interrupted reports whether err only says that the caller asked to stop.
func interrupted(ctx context.Context, err error) bool {
	return err != nil && ctx.Err() != nil
}
