package nat

import "log/slog"

// Journal keeps what the firewall was like before we changed it, on disk.
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

// Options configures Tables.
type Options struct {
	Journal Journal      // required
	Log     *slog.Logger // nil: no log
	Path    string       // the iptables program; "": the system's choice
}
