//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Freezer stops a process as a machine's sleep does: it neither runs nor hears
// of it. Its clocks go on, as those of a container that is paused.
type Freezer struct {
	// Kind says how: "cgroup" where the machine has a cgroup v2 hierarchy that
	// may be written, else "SIGSTOP".
	Kind string

	p   *Process
	dir string // of the cgroup; "": SIGSTOP
}

// cgroupRoots are where a cgroup v2 hierarchy is mounted: alone, or beside v1.
var cgroupRoots = []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"}

// NewFreezer puts a process into a freezer, which does not stop it yet.
func NewFreezer(p *Process) *Freezer {
	f := &Freezer{Kind: "SIGSTOP", p: p}
	for _, root := range cgroupRoots {
		if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err != nil {
			continue
		}
		// Named like a namespace, so that it is known as the lab's.
		dir := filepath.Join(root, fmt.Sprintf("%s%d-frozen-%d", namespacePrefix, os.Getpid(), p.PID()))
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		if os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(p.PID())), 0) != nil {
			_ = os.Remove(dir) // empty, so nothing keeps it
			continue
		}
		f.Kind, f.dir = "cgroup", dir
		return f
	}
	return f
}

// Freeze stops the process, and returns when it has stopped.
func (f *Freezer) Freeze(ctx context.Context) error {
	if f.dir == "" {
		f.p.Signal(syscall.SIGSTOP)
		return nil
	}
	if err := f.set("1"); err != nil {
		return err
	}
	return Until(ctx, func(context.Context) error {
		b, err := os.ReadFile(filepath.Join(f.dir, "cgroup.events"))
		if err == nil && !strings.Contains(string(b), "frozen 1") {
			err = errors.New("the cgroup does not freeze")
		}
		return err
	})
}

// Thaw lets the process go on.
func (f *Freezer) Thaw() error {
	if f.dir == "" {
		f.p.Signal(syscall.SIGCONT)
		return nil
	}
	return f.set("0")
}

func (f *Freezer) set(state string) error {
	if err := os.WriteFile(filepath.Join(f.dir, "cgroup.freeze"), []byte(state), 0); err != nil {
		return fmt.Errorf("freeze process %d: %w", f.p.PID(), err)
	}
	return nil
}

// Close thaws the process and removes the cgroup; the process is in the one
// above then.
func (f *Freezer) Close() error {
	err := f.Thaw()
	if f.dir == "" {
		return err
	}
	if f.p.Running() {
		procs := filepath.Join(filepath.Dir(f.dir), "cgroup.procs")
		err = errors.Join(err, os.WriteFile(procs, []byte(strconv.Itoa(f.p.PID())), 0))
	}
	return errors.Join(err, os.Remove(f.dir))
}
