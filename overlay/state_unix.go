//go:build unix

package overlay

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// checkOwner refuses a directory that another user could have filled.
func checkOwner(dir string) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return fmt.Errorf("look at state directory %s: %w", dir, err)
	}
	if me := os.Geteuid(); int(st.Uid) != me {
		return fault(ExitPermission, fmt.Sprintf("chown it to uid %d, or choose another --state-dir", me),
			"state directory %s belongs to uid %d", dir, st.Uid)
	}
	if st.Mode&0o077 != 0 {
		if err := os.Chmod(dir, 0o700); err != nil {
			return fmt.Errorf("close state directory %s to others: %w", dir, err)
		}
	}
	return nil
}

// lockDir makes sure that one daemon at a time uses a directory. The kernel
// drops the lock when the process ends, however it ends.
func lockDir(dir, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, permissionFault(err, "open %s", path)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fault(ExitConflict, "see it with `overlayd status`; stop it with `overlayd down`, or choose another --state-dir",
				"another overlayd runs on state directory %s", dir)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
