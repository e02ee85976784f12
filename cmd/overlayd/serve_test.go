package main

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"overlayd/overlay"
)

func TestServeAnnounces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ctx, stop := context.WithCancel(context.Background())
		w.run = func(ctx context.Context, o overlay.Options) error {
			o.Log.Debug("hidden")
			o.Log.Info("joined", "node", "laptop")
			o.Ready()
			o.Ready() // twice is once
			<-ctx.Done()
			return ctx.Err()
		}
		code := make(chan int)
		go func() { code <- w.program().main(ctx, []string{"up"}) }()
		synctest.Wait()
		stop()
		if c := <-code; c != 0 {
			t.Errorf("exit code %d for a stop that was asked for", c)
		}
		const line = "laptop is 172.18.0.11; 192.168.1.0/24 through lab-gw"
		if d := cmp.Diff([]string{"notify READY=1\nSTATUS=" + line, "notify STOPPING=1"}, w.calls); d != "" {
			t.Error(d)
		}
		if got := w.err.String(); !strings.Contains(got, "ready: "+line+"\n") || strings.Contains(got, "hidden") ||
			!strings.Contains(got, "msg=joined node=laptop") || w.out.Len() > 0 {
			t.Errorf("stderr:\n%s\nstdout:\n%s", got, &w.out)
		}
	})
}

func TestServeFails(t *testing.T) {
	w := newWorld(t)
	w.run = func(context.Context, overlay.Options) error {
		return &overlay.Fault{Code: overlay.ExitNotJoined, Message: "this machine has not joined a network", Hint: "overlayd invite"}
	}
	if code := w.do("gateway"); code != 4 {
		t.Errorf("exit code %d", code)
	}
	compare(t, "stderr", w.err.String(), "overlayd: this machine has not joined a network\nhint: overlayd invite\n")
	w.run = func(context.Context, overlay.Options) error { return errors.New("tun is gone") }
	if code := w.do("up"); code != 1 || len(w.calls) > 0 {
		t.Errorf("exit code %d, calls %v", code, w.calls)
	}
}

func TestSecondSignalEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.program()
		p.serving.Store(true)
		codes := make(chan int, 1)
		p.exit = func(c int) { codes <- c }
		signals := make(chan os.Signal)
		cancelled := 0
		go p.watchSignals(signals, func() { cancelled++ })
		signals <- syscall.SIGTERM
		signals <- syscall.SIGTERM // the same wish, told to the child and to its group
		synctest.Wait()
		if cancelled != 1 || len(codes) > 0 || w.err.Len() > 0 {
			t.Fatalf("a doubled signal: cancelled %d times, %d exits, printed %s", cancelled, len(codes), &w.err)
		}
		time.Sleep(insist)
		signals <- os.Interrupt
		if code := <-codes; code != overlay.ExitFailure || !strings.Contains(w.err.String(), "hint: sudo overlayd cleanup") {
			t.Errorf("an insistent signal: code %d, printed %s", code, &w.err)
		}
	})
}
