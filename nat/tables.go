package nat

import (
	"errors"
	"fmt"
	"log/slog"
)

// Journal keeps what the firewall was like before we changed it, on disk.
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

// Options configures Tables.
type Options struct {
	Journal Journal      // required
	Log     *slog.Logger // nil: no log
	Path    string       // the iptables program; "": the system's choice

	// Did is told of each change that was made, as the command that one would type.
	// Nil: the log is.
	Did func(act string)
}

// validate fills in the defaults.
func (o *Options) validate() error {
	if o.Journal == nil {
		return errors.New("nat: no journal")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Did == nil {
		log := o.Log
		o.Did = func(act string) { log.Info("firewall changed", "act", act) }
	}
	return nil
}

// Error is something that iptables could not do.
type Error struct {
	Act  string // what was tried
	Err  error
	hint string
}

// Error reads like "iptables -t nat -N OVL-POST: permission denied".
func (e *Error) Error() string { return fmt.Sprintf("%s: %v", e.Act, e.Err) }

// Unwrap returns the reason.
func (e *Error) Unwrap() error { return e.Err }

// Hint says what to do about it, or nothing.
func (e *Error) Hint() string { return e.hint }
