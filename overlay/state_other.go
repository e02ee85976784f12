//go:build !unix

package overlay

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/windows"
)

// checkOwner: a directory under ProgramData is guarded by its access list.
func checkOwner(string) error { return nil }

func lockDir(dir, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, permissionFault(err, "open %s", path)
	}
	const flags = windows.LOCKFILE_EXCLUSIVE_LOCK | windows.LOCKFILE_FAIL_IMMEDIATELY
	if err := windows.LockFileEx(windows.Handle(f.Fd()), flags, 0, 1, 0, new(windows.Overlapped)); err != nil {
		f.Close()
		if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
			return nil, fault(ExitConflict, "see it with `overlayd status`; stop it with `overlayd down`, or choose another --state-dir",
				"another overlayd runs on state directory %s", dir)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

// syncDir does nothing: NTFS journals a rename by itself.
func syncDir(string) error { return nil }
