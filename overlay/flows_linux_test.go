package overlay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"overlayd/internal/netnstest"
	"overlayd/overlay/filter"
)

// TestFullDisk: a disk without room stops the record, not those who tell it
// something, and status says so; with room again it goes on, and what was lost
// meanwhile is counted.
func TestFullDisk(t *testing.T) {
	netnstest.In(t, func(t *testing.T) {
		mount := t.TempDir()
		if err := unix.Mount("tmpfs", mount, "tmpfs", 0, "size=4m"); err != nil {
			t.Fatal(err)
		}
		// The mount is this thread's only; by this path it is there for all.
		dir := fmt.Sprintf("/proc/self/task/%d/root%s", unix.Gettid(), mount)
		ballast := filepath.Join(dir, "ballast")
		r := newFlowRecord(slog.New(slog.DiscardHandler), dir)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.run(ctx) }()
		defer func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}()
		event := filter.Event{Kind: filter.FlowDenied, At: time.Now(), User: "alice", Proto: protoUDP,
			Remote: netip.MustParseAddrPort("172.18.0.11:5"), Local: netip.MustParseAddrPort("192.168.1.201:53"), Why: filter.WhyPolicy}
		until := func(what string, ok func(lost uint64, err error) bool) {
			t.Helper()
			for began := time.Now(); !ok(r.status()); {
				if time.Since(began) > 20*time.Second {
					lost, err := r.status()
					t.Fatalf("%s: %d lost, %v", what, lost, err)
				}
				r.note(&event)
				_ = r.sync(ctx) // so that one after the other is written
			}
		}
		if err := os.WriteFile(ballast, make([]byte, 4<<20-16<<10), 0o600); err != nil {
			t.Fatal(err)
		}
		until("a full disk", func(_ uint64, err error) bool { return errors.Is(err, unix.ENOSPC) })
		_, err := r.status()
		if items := (enforced{unkept: err}).health(); len(items) != 1 || items[0].ID != "record_stopped" {
			t.Errorf("%+v", items)
		}
		until("more than waits", func(lost uint64, _ error) bool { return lost > 0 })
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
		until("room again", func(_ uint64, err error) bool { return err == nil })
	})
}
