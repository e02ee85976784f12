//go:build linux

package lab

import (
	"fmt"
	"os"
	"testing"
	"time"
)

func TestOrphaned(t *testing.T) {
	for _, c := range []struct {
		name string
		want bool
	}{
		{fmt.Sprintf("ovl-%d-laptop", os.Getpid()), false},
		{"ovl-4194305-laptop", true}, // above the kernel's largest pid
		{"ovl-laptop", false},
		{"ovl--1-laptop", false},
		{"ovl-0-laptop", false},
		{"somebody", false},
	} {
		if got := orphaned(c.name); got != c.want {
			t.Errorf("orphaned(%q) = %v", c.name, got)
		}
	}
}

func TestParseUsage(t *testing.T) {
	stat := "4711 (a (b) c) S 1 4711 4711 0 -1 4194560 100 0 0 0 250 150 0 0 20 0 9 0 100 1000 200"
	u, err := parseUsage(stat, "Name:\tx\nVmHWM:\t   2048 kB\nVmRSS:\t   1024 kB\n")
	if want := (Usage{CPU: 4 * time.Second, RSS: 1 << 20, Peak: 2 << 20}); err != nil || u != want {
		t.Errorf("parseUsage = %+v, %v, want %+v", u, err, want)
	}
	if _, err := parseUsage("1 (x) Z 1", ""); err == nil {
		t.Error("a short stat was accepted")
	}
}

func TestDifferences(t *testing.T) {
	for _, c := range []struct{ before, after, want string }{
		{"a\nb\n", "a\nb\n", ""},
		{"a\nb\n", "a\nc\n", "- b\n+ c\n"},
		{"a\n", "a\na\n", "+ a\n"},
		{"a\nb\n", "b\na\n", "the same lines in another order\n"},
	} {
		if got := Differences(c.before, c.after); got != c.want {
			t.Errorf("Differences(%q, %q) = %q, want %q", c.before, c.after, got, c.want)
		}
	}
}
