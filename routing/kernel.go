package routing

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"syscall"
)

// Journal keeps what a kernel value was before we changed it, on disk.
type Journal interface {
	// Note saves, durably, that key had the value old and gets the value new.
	// If key is noted already, its old value stays.
	Note(kind, key, old, new string) error
	// Noted returns what Note saved.
	Noted(kind, key string) (old, new string, ok bool)
	// Keys lists what is noted of a kind, oldest first.
	Keys(kind string) []string
	// Forget drops a note, once its value is restored.
	Forget(kind, key string) error
}

// Options configures a Kernel.
type Options struct {
	Journal Journal      // required
	Log     *slog.Logger // nil: no log

	// Did is told of each change that was made, in the words of ip(8) and
	// sysctl(8). Nil: the log is.
	Did func(act string)
}

// validate fills in the defaults.
func (o *Options) validate() error {
	if o.Journal == nil {
		return errors.New("routing: no journal")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Did == nil {
		log := o.Log
		o.Did = func(act string) { log.Info("kernel changed", "act", act) }
	}
	return nil
}

// Error is a step that the kernel refused.
type Error struct {
	Act string // what was tried, in the words of ip(8) or sysctl(8)
	Err error
}

// Error reads like "route add 192.168.1.0/24 dev ovl0 table 7350: operation not
// permitted".
func (e *Error) Error() string { return fmt.Sprintf("%s: %v", e.Act, e.Err) }

// Unwrap returns the kernel's reason.
func (e *Error) Unwrap() error { return e.Err }

// Hint says what to do about it, or nothing.
func (e *Error) Hint() string {
	switch {
	case errors.Is(e.Err, syscall.EROFS):
		return "/proc/sys is read-only here (a container?): set the value from outside, or run with a writable /proc/sys"
	case errors.Is(e.Err, fs.ErrPermission):
		return "run as root, or with the capability CAP_NET_ADMIN"
	}
	return ""
}
