//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// namespacePrefix begins the name of every namespace and directory of a lab;
// the id of the process that made it follows.
const namespacePrefix = "ovl-"

// RemoveLeftovers removes the namespaces, processes and files of labs whose
// process has died without closing them.
func RemoveLeftovers(ctx context.Context) error {
	var errs []error
	names, err := os.ReadDir("/run/netns")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("look for leftovers: %w", err)
	}
	for _, e := range names {
		if orphaned(e.Name()) {
			errs = append(errs, removeNamespace(ctx, e.Name()))
		}
	}
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), namespacePrefix+"*"))
	if err != nil {
		return fmt.Errorf("look for leftovers: %w", err)
	}
	for _, dir := range dirs {
		if orphaned(filepath.Base(dir)) {
			errs = append(errs, os.RemoveAll(dir))
		}
	}
	return errors.Join(errs...)
}

// orphaned reports whether a name is a lab's whose process is gone.
func orphaned(name string) bool {
	rest, ok := strings.CutPrefix(name, namespacePrefix)
	if !ok {
		return false
	}
	digits, _, _ := strings.Cut(rest, "-")
	pid, err := strconv.Atoi(digits)
	if err != nil || pid <= 0 {
		return false
	}
	return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
}

// removeNamespace kills what still runs in the namespace and deletes it. A
// second lab may be clearing up the same leftovers: what is gone is fine.
func removeNamespace(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	err := Until(ctx, func(ctx context.Context) error {
		out, err := exec.CommandContext(ctx, "ip", "netns", "pids", name).Output()
		if err != nil {
			return nil // no such namespace any more
		}
		pids := strings.Fields(string(out))
		if len(pids) == 0 {
			return nil
		}
		for _, s := range pids {
			if pid, err := strconv.Atoi(s); err == nil && pid != os.Getpid() {
				_ = syscall.Kill(pid, syscall.SIGKILL) // gone already is as good
			}
		}
		return fmt.Errorf("remove %s: still running: %s", name, strings.Join(pids, " "))
	})
	if err != nil {
		return err
	}
	if err := run(ctx, "ip", "netns", "del", name); err != nil {
		if _, gone := os.Stat("/run/netns/" + name); errors.Is(gone, os.ErrNotExist) {
			return nil
		}
		return err
	}
	return nil
}
