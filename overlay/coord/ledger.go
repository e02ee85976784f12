package coord

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// ledger is the store and the snapshot derived from it. Reading it needs no
// lock; changes are made one after the other.
type ledger struct {
	store   Store
	changed func(context.Context, change) // called in order, before the change returns

	mu   sync.Mutex // held while changing
	snap atomic.Pointer[snapshot]
}

// change is a commit that was made.
type change struct {
	old, next *snapshot
	records   []Record // nil: somebody else's, who keeps the record of it
}

// openLedger loads the store.
func openLedger(ctx context.Context, store Store, changed func(context.Context, change)) (*ledger, error) {
	l := &ledger{store: store, changed: changed}
	records, rev, err := store.Load(ctx)
	if err != nil {
		return nil, err
	}
	snap, err := newSnapshot(rev, records)
	if err != nil {
		return nil, problem(KindInvalid, "put back a copy of the database, or use the version of overlayd that wrote it",
			"the coordinator's database cannot be used: %v", err)
	}
	l.snap.Store(snap)
	return l, nil
}

// now returns the newest snapshot.
func (l *ledger) now() *snapshot { return l.snap.Load() }

// change commits what decide returns for the newest snapshot. When somebody
// else changed the store meanwhile, decide is asked again. Nothing decided,
// nothing committed.
func (l *ledger) change(ctx context.Context, decide func(*snapshot) ([]Record, error)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		old := l.now()
		changes, err := decide(old)
		if err != nil || len(changes) == 0 {
			return err
		}
		rev, err := l.store.Commit(ctx, old.rev, changes)
		if err != nil {
			// It may have been made all the same: look.
			if reload := l.reload(context.WithoutCancel(ctx)); reload != nil {
				return errors.Join(err, reload)
			}
			if errors.Is(err, ErrStale) {
				continue
			}
			return err
		}
		next, err := old.with(rev, changes)
		if err != nil {
			return fmt.Errorf("commit %d: %w", rev, err)
		}
		l.show(ctx, change{old, next, changes})
		return nil
	}
}

// follow takes over what others commit, until ctx ends.
func (l *ledger) follow(ctx context.Context) error {
	var failed error
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	err := l.store.Watch(ctx, func(rev uint64) {
		if rev <= l.now().rev {
			return
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if failed = l.reload(ctx); failed != nil {
			cancel(failed)
		}
	})
	return errors.Join(failed, err)
}

// reload replaces the snapshot when the store is ahead. The caller holds mu.
func (l *ledger) reload(ctx context.Context) error {
	records, rev, err := l.store.Load(ctx)
	if err != nil {
		return err
	}
	old := l.now()
	if rev <= old.rev {
		return nil
	}
	next, err := newSnapshot(rev, records)
	if err != nil {
		return err
	}
	next.keepSame(old)
	l.show(ctx, change{old: old, next: next})
	return nil
}

func (l *ledger) show(ctx context.Context, c change) {
	l.snap.Store(c.next)
	l.changed(ctx, c)
}
