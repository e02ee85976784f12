//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"overlayd/examples/lab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }

// left lists the namespaces and directories of this process's labs.
func left(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"/run/netns/ovl-%d-*", filepath.Join(os.TempDir(), "ovl-%d-*")} {
		found, err := filepath.Glob(fmt.Sprintf(pattern, os.Getpid()))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			if !strings.Contains(f, "-bin-") { // labtest's own, removed by Main
				all = append(all, f)
			}
		}
	}
	return all
}

func TestDemo(t *testing.T) {
	labtest.NeedRoot(t)
	if err := demo(t.Context(), labtest.Overlayd(t)); err != nil {
		t.Error(err)
	}
	if l := left(t); len(l) > 0 {
		t.Errorf("the demo left %v", l)
	}
}

// Whenever Ctrl-C comes, nothing is left.
func TestInterruptedDemo(t *testing.T) {
	labtest.NeedRoot(t)
	binary := labtest.Overlayd(t)
	for _, after := range []time.Duration{0, 50 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		if err := demo(ctx, binary); err == nil {
			t.Errorf("interrupted after %v, the demo claims success", after)
		}
		cancel()
		if l := left(t); len(l) > 0 {
			t.Errorf("interrupted after %v, the demo left %v", after, l)
		}
	}
}
