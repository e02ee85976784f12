package overlay

import (
	"fmt"
	"path/filepath"
	"time"
)

// endFile says why the last daemon of a state directory ended by itself: an admin
// removed the machine, for instance. One that was asked to end leaves none.
const endFile = "end.json"

type endJSON struct {
	Schema int       `json:"schema"`
	Socket string    `json:"socket"` // where it answered
	At     time.Time `json:"at"`
	Why    string    `json:"why"`
	Fix    string    `json:"fix"`
}

// ended keeps why a daemon ends. That it cannot be kept is no harm: the log has
// it too.
func (d stateDir) ended(socket string, why error, now time.Time) {
	f := AsFault(why)
	_ = d.writeJSON(endFile, endJSON{stateSchema, absolute(socket), now.UTC().Truncate(time.Second), oneLine(f.Message), f.Hint})
}

// absolute writes a path as it is from everywhere, if that can be told.
func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// Ended returns the error of a call that no daemon answered on a socket with why the
// last one of a state directory ended by itself, if it did and answered there; or the
// error as it is.
func Ended(dir, socket string, err error) error {
	f := AsFault(err)
	if f.Code != ExitNotRunning {
		return err
	}
	var end endJSON
	if ok, rerr := (stateDir{dir}).readJSON(endFile, &end); !ok || rerr != nil || end.Why == "" || end.Socket != absolute(socket) {
		return err
	}
	said := *f
	said.Message = fmt.Sprintf("%s: it ended at %s, as %s", f.Message, end.At.Local().Format(time.DateTime), end.Why)
	if end.Fix != "" {
		said.Hint = end.Fix
	}
	return &said
}
