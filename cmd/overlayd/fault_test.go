package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"overlayd/overlay"
	"overlayd/overlay/coord"
)

// TestExitCodes is the table of the documented codes.
func TestExitCodes(t *testing.T) {
	problem := func(k coord.Kind) error { return &coord.Problem{Kind: k, Message: "m"} }
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("x"), 1},
		{usage("", "x"), 2},
		{problem(coord.KindInvalid), 2},
		{&overlay.Fault{Code: 3}, 3},
		{problem(coord.KindPending), 4},
		{quiet(5), 5},
		{problem(coord.KindDenied), 6},
		{problem(coord.KindUnreachable), 7},
		{fmt.Errorf("ask: %w", context.DeadlineExceeded), 7},
		{fmt.Errorf("join: %w", problem(coord.KindConflict)), 8},
		{&fs.PathError{Op: "open", Path: "/x", Err: fs.ErrPermission}, 9},
		{problem(coord.KindNotFound), 1},
		{problem(coord.KindInternal), 1},
	} {
		w := newWorld(t)
		if got := w.program().report(c.err); got != c.want {
			t.Errorf("%v: exit code %d, want %d", c.err, got, c.want)
		}
	}
}

func TestOneLine(t *testing.T) {
	if got := oneLine("a\nb\x1b[31mred\t" + testLink.Encode() + " end"); got != "a; b [31mred ovl://… end" {
		t.Errorf("%q", got)
	}
}

func TestNearest(t *testing.T) {
	verbs := []string{"relay", "gateway", "up", "status", "peers", "ping", "plan"}
	for word, want := range map[string]string{"realy": "relay", "gatway": "gateway", "uo": "up", "stat": "", "frobnicate": "", "pnig": "ping", "plna": "plan"} {
		if got := nearest(word, verbs); got != want {
			t.Errorf("nearest(%q) = %q, want %q", word, got, want)
		}
	}
}
