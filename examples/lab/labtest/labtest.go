//go:build linux

package labtest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"overlayd/examples/lab"
)

// Patience is how long a test in a lab may take, several times what any needs.
const Patience = 2 * time.Minute

// Long reports whether LAB_LONG asks for the long forms of tests: more rounds, more
// bytes, longer sleeps, one test at a time.
func Long() bool { return os.Getenv("LAB_LONG") != "" }

// Waits lets a test that mostly waits do so beside others, unless the long forms
// are asked for, which measure.
func Waits(t *testing.T) {
	t.Helper()
	if !Long() {
		t.Parallel()
	}
}

// NeedRoot skips loudly without root; with CI=true that is a failure.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("this test needs root, and CI=true forbids to skip it")
	}
	t.Skip("SKIPPED: needs root for network namespaces; run: sudo -E make test")
}

// binaries is where Main's tests keep what they build.
var binaries string

// Main is the TestMain of a package that builds overlayd: it makes room for
// the binary, and removes it.
func Main(m *testing.M) {
	// Named like a lab's directory, so that the next run clears up after a
	// killed one.
	dir, err := os.MkdirTemp("", fmt.Sprintf("ovl-%d-bin-", os.Getpid()))
	if err != nil {
		fmt.Fprintln(os.Stderr, "make room for overlayd:", err)
		os.Exit(1)
	}
	binaries = dir
	// Whoever started the tests may have told them to ignore the end of the
	// terminal, as nohup does. What they start would inherit that, and one test is
	// of how overlayd ends with its terminal.
	if signal.Ignored(syscall.SIGHUP) {
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	}
	code := m.Run()
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, "remove the built overlayd:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

var build = sync.OnceValues(func() (string, error) {
	file := filepath.Join(binaries, "overlayd")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", file, "overlayd/cmd/overlayd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build overlayd: %w\n%s", err, out)
	}
	return file, nil
})

// Overlayd returns the binary under test, built from this tree once.
func Overlayd(t testing.TB) string {
	t.Helper()
	if binaries == "" {
		t.Fatal("the package's TestMain does not call labtest.Main")
	}
	file, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// New makes a lab for the test. It is closed at the end; the logs of a failed
// test's daemons are shown first. The context ends after Patience.
func New(t testing.TB, o lab.Options) (context.Context, *lab.Lab) {
	t.Helper()
	return NewFor(t, Patience, o)
}

// NewFor is New with less patience, or with more for a test's long form.
func NewFor(t testing.TB, patience time.Duration, o lab.Options) (context.Context, *lab.Lab) {
	t.Helper()
	NeedRoot(t)
	if !Long() {
		patience = min(patience, Patience)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	l, err := lab.New(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			showLogs(t, l)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return ctx, l
}

// Joined is New with overlayd built and all three machines joined.
func Joined(t testing.TB, o lab.Options) (context.Context, *lab.Lab, *lab.Joined) {
	t.Helper()
	return JoinedFor(t, Patience, o)
}

// JoinedFor is to Joined what NewFor is to New.
func JoinedFor(t testing.TB, patience time.Duration, o lab.Options) (context.Context, *lab.Lab, *lab.Joined) {
	t.Helper()
	NeedRoot(t)
	o.Overlayd = Overlayd(t)
	ctx, l := NewFor(t, patience, o)
	j, err := l.Join(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return ctx, l, j
}

// Run runs a command in the machine, which must succeed, and returns its output.
func Run(ctx context.Context, t testing.TB, m *lab.Machine, name string, args ...string) string {
	t.Helper()
	out, err := m.Run(ctx, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// showLogs logs the end of everything that the lab's processes wrote.
func showLogs(t testing.TB, l *lab.Lab) {
	files, err := filepath.Glob(filepath.Join(l.Dir, "*.log"))
	if err != nil {
		t.Error(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
			continue
		}
		const most = 8000 // bytes; some eighty lines
		t.Logf("%s:\n%s", filepath.Base(file), bytes.TrimSpace(b[max(0, len(b)-most):]))
	}
}
