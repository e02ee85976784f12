// Package storetest says what a coord.Store has to do. Every store's own test
// runs it.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"overlayd/overlay/coord"
)

// patience is for what a store does soon, on the slowest machine.
const patience = 20 * time.Second

// TestStore runs the conformance tests. Open returns an empty store, which
// TestStore closes; reopen, if it is not nil, returns the same store again
// after it was closed.
func TestStore(t *testing.T, open func(t *testing.T) coord.Store, reopen func(t *testing.T) coord.Store) {
	for name, test := range map[string]func(*testing.T, coord.Store){
		"empty":      testEmpty,
		"commit":     testCommit,
		"stale":      testStale,
		"atomic":     testAtomic,
		"borrowing":  testBorrowing,
		"one winner": testOneWinner,
		"watch":      testWatch,
		"cancelled":  testCancelled,
		"large":      testLarge,
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			defer s.Close()
			test(t, s)
		})
	}
	t.Run("closed", func(t *testing.T) { testClosed(t, open(t)) })
	if reopen != nil {
		t.Run("durable", func(t *testing.T) {
			s := open(t)
			rev := commit(t, s, 0, rec("a", "1"), rec("b", "2"))
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = reopen(t)
			defer s.Close()
			want(t, s, rev, "a=1", "b=2")
		})
	}
}

func rec(k, v string) coord.Record { return coord.Record{Key: k, Value: []byte(v)} }
func gone(k string) coord.Record   { return coord.Record{Key: k} }

func commit(t *testing.T, s coord.Store, rev uint64, changes ...coord.Record) uint64 {
	t.Helper()
	next, err := s.Commit(t.Context(), rev, changes)
	if err != nil {
		t.Fatalf("commit at %d: %v", rev, err)
	}
	if next <= rev {
		t.Fatalf("commit at %d returned %d", rev, next)
	}
	return next
}

func want(t *testing.T, s coord.Store, rev uint64, pairs ...string) {
	t.Helper()
	records, got, err := s.Load(t.Context())
	if err != nil || got != rev {
		t.Fatalf("load: revision %d, want %d (%v)", got, rev, err)
	}
	var have []string
	for _, r := range records {
		have = append(have, r.Key+"="+string(r.Value))
	}
	slices.Sort(have)
	if !slices.Equal(have, pairs) {
		t.Fatalf("load: %v, want %v", have, pairs)
	}
}

func testEmpty(t *testing.T, s coord.Store) {
	records, rev, err := s.Load(t.Context())
	if len(records) != 0 || err != nil {
		t.Fatalf("a new store has %v at %d, %v", records, rev, err)
	}
}

func testCommit(t *testing.T, s coord.Store) {
	rev := commit(t, s, 0, rec("a", "1"), rec("b", "2"), rec("dir/c", "3"))
	want(t, s, rev, "a=1", "b=2", "dir/c=3")
	rev = commit(t, s, rev, rec("a", "4"), gone("b"), gone("never was"), rec("empty", ""))
	want(t, s, rev, "a=4", "dir/c=3", "empty=")
}

func testStale(t *testing.T, s coord.Store) {
	first := commit(t, s, 0, rec("a", "1"))
	second := commit(t, s, first, rec("a", "2"))
	for _, old := range []uint64{0, first, second + 1} {
		if _, err := s.Commit(t.Context(), old, []coord.Record{rec("a", "3")}); !errors.Is(err, coord.ErrStale) {
			t.Errorf("commit at %d while the store is at %d: %v", old, second, err)
		}
	}
	want(t, s, second, "a=2")
}

// testAtomic makes a commit that cannot be whole: an empty key is refused by
// every store, and then nothing is kept.
func testAtomic(t *testing.T, s coord.Store) {
	rev := commit(t, s, 0, rec("a", "1"))
	if _, err := s.Commit(t.Context(), rev, []coord.Record{rec("a", "2"), rec("", "x"), rec("b", "2")}); err == nil {
		t.Fatal("a record without a key was taken")
	}
	want(t, s, rev, "a=1")
}

// testBorrowing changes what was given and what was got.
func testBorrowing(t *testing.T, s coord.Store) {
	v := []byte("one")
	rev := commit(t, s, 0, coord.Record{Key: "a", Value: v})
	copy(v, "two")
	want(t, s, rev, "a=one")
	records, _, err := s.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	copy(records[0].Value, "two")
	want(t, s, rev, "a=one")
}

// testOneWinner lets many commit at the same revision.
func testOneWinner(t *testing.T, s coord.Store) {
	rev := commit(t, s, 0, rec("count", ""))
	for round := range 20 {
		var (
			wg   sync.WaitGroup
			mu   sync.Mutex
			won  []string
			next uint64
		)
		for i := range 8 {
			wg.Go(func() {
				me := fmt.Sprint(round, "-", i)
				r, err := s.Commit(t.Context(), rev, []coord.Record{rec("count", me)})
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					won, next = append(won, me), r
				case !errors.Is(err, coord.ErrStale):
					t.Errorf("commit: %v", err)
				}
			})
		}
		wg.Wait()
		if len(won) != 1 {
			t.Fatalf("%d commits won at one revision: %v", len(won), won)
		}
		rev = next
		want(t, s, rev, "count="+won[0])
	}
}

func testWatch(t *testing.T, s coord.Store) {
	rev := commit(t, s, 0, rec("a", "1"))
	ctx, cancel := context.WithCancel(t.Context())
	revs, done := make(chan uint64, 100), make(chan error, 1)
	go func() { done <- s.Watch(ctx, func(r uint64) { revs <- r }) }()
	await := func(want uint64) {
		t.Helper()
		timeout := time.After(patience)
		for {
			select {
			case r := <-revs:
				if r > want {
					t.Fatalf("watch reported %d, the store is at %d", r, want)
				}
				if r == want {
					return
				}
			case <-timeout:
				t.Fatalf("watch did not report revision %d", want)
			}
		}
	}
	await(rev)
	for i := range 10 {
		rev = commit(t, s, rev, rec("a", fmt.Sprint(i)))
		if i%4 == 0 {
			await(rev)
		}
	}
	await(rev)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("watch ended with %v", err)
	}
}

func testCancelled(t *testing.T, s coord.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Commit(ctx, 0, []coord.Record{rec("a", "1")}); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled commit returned %v", err)
	}
}

func testLarge(t *testing.T, s coord.Store) {
	var changes []coord.Record
	for i := range 2000 {
		changes = append(changes, rec(fmt.Sprintf("node/%05d", i), strings.Repeat("x", i%700)))
	}
	rev := commit(t, s, 0, changes...)
	records, got, err := s.Load(t.Context())
	if err != nil || got != rev || len(records) != len(changes) {
		t.Fatalf("load: %d records at %d, %v", len(records), got, err)
	}
	slices.SortFunc(records, func(a, b coord.Record) int { return strings.Compare(a.Key, b.Key) })
	for i, r := range records {
		if r.Key != changes[i].Key || !bytes.Equal(r.Value, changes[i].Value) {
			t.Fatalf("record %d is %q", i, r.Key)
		}
	}
}

func testClosed(t *testing.T, s coord.Store) {
	done := make(chan error, 1)
	watching := make(chan struct{})
	var once sync.Once
	go func() {
		done <- s.Watch(context.Background(), func(uint64) { once.Do(func() { close(watching) }) })
	}()
	<-watching
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err == nil {
			t.Error("watch of a closed store ended without an error")
		}
	case <-time.After(patience):
		t.Fatal("watch did not notice that the store was closed")
	}
	if _, _, err := s.Load(t.Context()); err == nil {
		t.Error("a closed store loads")
	}
	if _, err := s.Commit(t.Context(), 0, []coord.Record{rec("a", "1")}); err == nil {
		t.Error("a closed store commits")
	}
}
