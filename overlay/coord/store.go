package coord

import (
	"context"
	"errors"
)

// Store keeps the network's records. Its revision grows with every commit.
type Store interface {
	// Load returns all records, in any order, and the revision they are of.
	Load(ctx context.Context) ([]Record, uint64, error)

	// Commit makes all changes or none, durably, and returns the new revision.
	// It fails with ErrStale, changing nothing, when the store is no longer
	// at revision rev.
	Commit(ctx context.Context, rev uint64, changes []Record) (uint64, error)

	// Watch calls moved, from one goroutine, with the store's revision: soon
	// after it is called, and after every commit by anybody. Calls may be
	// merged. It returns when ctx ends, with its error.
	Watch(ctx context.Context, moved func(rev uint64)) error

	// Close frees the store once its calls have returned; those made after it
	// fail.
	Close() error
}

// Record is a value under a key. As a change, a nil Value removes the key.
type Record struct {
	Key   string
	Value []byte
}

// ErrStale says that a commit was computed from an old revision.
var ErrStale = errors.New("the store has moved on")
