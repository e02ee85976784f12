package routing

import "log/slog"

// Numbers that mark what is ours on a machine.
const (
	// Mark is the SO_MARK of our own packets, so that they never enter the
	// tunnel; Mask is the part of a packet's mark that we use.
	Mark = 0x0b000000
	Mask = 0xff000000

	// Table is the routing table of our own.
	Table = 7350
)

// Journal keeps what a kernel value was before we changed it, on disk.
type Journal interface {
	// Note saves, durably, that key had the value old and gets the value new.
	// If key is noted already, its old value stays.
	Note(kind, key, old, new string) error
	// Noted returns what Note saved.
	Noted(kind, key string) (old, new string, ok bool)
	// Keys lists what is noted of a kind, in the order of noting.
	Keys(kind string) []string
	// Forget drops a note, once its value is restored.
	Forget(kind, key string) error
}

// Options configures a Kernel.
type Options struct {
	Journal Journal      // required
	Log     *slog.Logger // nil: no log
}
