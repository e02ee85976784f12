package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// name is the journal's file in the state directory.
const name = "journal.json"

// schema is the layout that this version reads and writes.
const schema = "overlayd.journal/v1"

// Entry is one value that was changed.
type Entry struct {
	Kind  string    `json:"kind"` // whose note it is: "sysctl", "iptables", ...
	Key   string    `json:"key"`
	Old   string    `json:"old"`
	New   string    `json:"new"`
	Time  time.Time `json:"time"`
	Boot  string    `json:"boot"`  // of the machine, see scope
	Netns string    `json:"netns"` // network namespace, see scope
}

// file is what is on disk.
type file struct {
	Schema  string  `json:"schema"`
	Entries []Entry `json:"entries"`
}

// Journal is an open journal. Its methods may be called concurrently; two
// processes must not have one state directory open at the same time.
type Journal struct {
	path string           // set by Open, then read-only
	now  func() time.Time // likewise

	mu      sync.Mutex // guards entries
	entries []Entry
}

// Open reads the journal of a state directory. A missing one is empty; nothing
// is written until the first note.
func Open(dir string) (*Journal, error) {
	j := &Journal{path: filepath.Join(dir, name), now: time.Now}
	b, err := os.ReadFile(j.path)
	if errors.Is(err, fs.ErrNotExist) {
		return j, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	entries, err := parse(b)
	if err != nil {
		return nil, &CorruptError{Path: j.path, Err: err}
	}
	boot, _ := scope()
	j.entries = slices.DeleteFunc(entries, func(e Entry) bool { return e.Boot != boot })
	return j, nil
}

// parse reads a journal's file, strictly: a journal that is not understood
// entirely must not be rewritten.
func parse(b []byte) ([]Entry, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var f file
	if err := d.Decode(&f); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more after its end")
	}
	if f.Schema != schema {
		return nil, fmt.Errorf("schema %q, want %q", f.Schema, schema)
	}
	for _, e := range f.Entries {
		if e.Kind == "" || e.Key == "" {
			return nil, errors.New("an entry without kind or key")
		}
	}
	return f.Entries, nil
}

// Note saves that key had the value old and is about to get the value new. The
// old value of an earlier note stays. It is on disk when Note returns.
func (j *Journal) Note(kind, key, old, new string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	boot, netns := scope()
	next := slices.Clone(j.entries)
	e := Entry{Kind: kind, Key: key, Old: old, New: new, Time: j.now().UTC(), Boot: boot, Netns: netns}
	if i := j.find(kind, key); i < 0 {
		next = append(next, e)
	} else if next[i].New == new {
		return nil
	} else {
		e.Old = next[i].Old
		next[i] = e
	}
	return j.save(next, fmt.Sprintf("note %s %s", kind, key))
}

// Noted returns what Note saved for a key.
func (j *Journal) Noted(kind, key string) (old, new string, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	i := j.find(kind, key)
	if i < 0 {
		return "", "", false
	}
	return j.entries[i].Old, j.entries[i].New, true
}

// Keys lists the keys noted of a kind, oldest first.
func (j *Journal) Keys(kind string) []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	boot, netns := scope()
	var keys []string
	for _, e := range j.entries {
		if e.Kind == kind && e.Boot == boot && e.Netns == netns {
			keys = append(keys, e.Key)
		}
	}
	return keys
}

// Forget drops the note of a key, if there is one.
func (j *Journal) Forget(kind, key string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	i := j.find(kind, key)
	if i < 0 {
		return nil
	}
	return j.save(slices.Delete(slices.Clone(j.entries), i, i+1), fmt.Sprintf("forget %s %s", kind, key))
}

// find returns the index of a key's entry in this namespace, or -1. The caller
// holds mu.
func (j *Journal) find(kind, key string) int {
	boot, netns := scope()
	return slices.IndexFunc(j.entries, func(e Entry) bool {
		return e.Kind == kind && e.Key == key && e.Boot == boot && e.Netns == netns
	})
}

// save makes entries the journal, on disk first. The caller holds mu.
func (j *Journal) save(entries []Entry, act string) error {
	b, err := json.MarshalIndent(file{Schema: schema, Entries: append([]Entry{}, entries...)}, "", "  ")
	if err != nil {
		return fmt.Errorf("%s: %w", act, err)
	}
	if err := replace(j.path, append(b, '\n')); err != nil {
		return fmt.Errorf("%s: %w", act, err)
	}
	j.entries = entries
	return nil
}

// CorruptError says that a journal cannot be understood. The file is kept.
type CorruptError struct {
	Path string
	Err  error
}

// Error names the file.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("journal %s cannot be read: %v", e.Path, e.Err)
}

// Unwrap returns what is wrong with it.
func (e *CorruptError) Unwrap() error { return e.Err }

// Hint says how to go on.
func (e *CorruptError) Hint() string {
	return fmt.Sprintf("the file is kept; it lists kernel settings that overlayd changed, as old and new: "+
		"restore those by hand or restart the machine, then remove %s", e.Path)
}
