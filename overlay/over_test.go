package overlay

import (
	"errors"
	"log/slog"
	"path/filepath"
	"testing"

	"overlayd/overlay/coord"
)

// What the end of Run says of a node, also to whoever asks while it ends.
func TestOver(t *testing.T) {
	for name, c := range map[string]struct {
		why  error
		want string
	}{
		"it was told to stop":  {nil, StateStopped},
		"it failed":            {errors.New("the interface is gone"), StateStopped},
		"nobody answers":       {&coord.Problem{Kind: coord.KindUnreachable}, StateStopped},
		"another daemon's":     {fault(ExitConflict, "", "in use"), StateStopped},
		"it was removed":       {&coord.Problem{Kind: coord.KindDenied}, StateNeedsInvite},
		"it has never joined":  {fault(ExitNotJoined, "", "this machine has not joined a network"), StateNeedsInvite},
		"it was removed, late": {errors.Join(errors.New("put back"), &coord.Problem{Kind: coord.KindDenied}), StateNeedsInvite},
	} {
		if got := nodeState(view{over: overState(c.why)}, nil); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}

	dir := t.TempDir()
	n, err := New(Options{StateDir: dir, Socket: filepath.Join(dir, "sock"), Userspace: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if s := n.Status(); s.State != StateStarting {
		t.Errorf("before Run: %s", s.State)
	}
	if err := n.Run(t.Context()); AsFault(err).Code != ExitNotJoined {
		t.Fatal(err)
	}
	if s := n.Status(); s.State != StateNeedsInvite {
		t.Errorf("after a Run without an invite: %s", s.State)
	}
	if _, err := n.DialContext(t.Context(), "tcp", "192.168.1.10:80"); AsFault(err).Code != ExitNotJoined || errors.Is(err, errStarting) {
		t.Errorf("a connection after it: %v, want that it has not joined", err)
	}
	n.end(nil) // whoever only sees that it ends
	if s := n.Status(); s.State != StateNeedsInvite {
		t.Errorf("the reason is gone: %s", s.State)
	}
}

// What is wrong with the words of a call is said without a daemon.
func TestWordsBeforeDaemon(t *testing.T) {
	l := Dial(filepath.Join(t.TempDir(), "sock"))
	defer l.Close()
	ctx := t.Context()
	for name, call := range map[string]func() error{
		"nc, port":             func() error { _, err := l.Dial(ctx, "tcp", "nas.lab:http:"); return err },
		"nc, no such port":     func() error { _, err := l.Dial(ctx, "tcp", "nas.lab:70000"); return err },
		"forward, listen":      func() error { _, err := l.AddForward(ctx, "tcp", "a", "nas.lab:80", false); return err },
		"forward, target":      func() error { _, err := l.AddForward(ctx, "tcp", "127.0.0.1:80", "b", false); return err },
		"forward, for others":  func() error { _, err := l.AddForward(ctx, "tcp", "0.0.0.0:80", "nas.lab:80", false); return err },
		"forward remove":       func() error { _, err := l.RemoveForward(ctx, "", "x"); return err },
		"a socket of no name":  func() error { _, err := Dial("").Status(ctx); return err },
		"a socket of no name2": func() error { _, err := Dial("").Dial(ctx, "tcp", "nas.lab:80"); return err },
	} {
		if f := AsFault(call()); f.Code != ExitUsage || f.Hint == "" {
			t.Errorf("%s: %+v", name, f)
		}
	}
	if _, err := l.Dial(ctx, "tcp", "nas.lab:80"); AsFault(err).Code != ExitNotRunning {
		t.Errorf("good words, no daemon: %v", err)
	}
}
