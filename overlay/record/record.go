package record

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Options say how a Log is kept. The zero value works.
type Options struct {
	MaxBytes int64        // of a file before it is rotated; 0: 16 MiB
	Keep     int          // rotated files; 0: 8
	Queue    int          // values that wait to be written, and lines that wait for room; 0: 4096
	Chain    bool         // lines name the hash of the one before
	Log      *slog.Logger // nil: slog.Default
}

const (
	defaultMaxBytes = 16 << 20
	defaultKeep     = 8
	defaultQueue    = 4096
	// retryEvery is how soon a file that could not be written is tried again.
	retryEvery = time.Second
)

// Log is one record. One process at a time may have it open.
type Log struct {
	log   *slog.Logger
	files files
	queue chan any // never closed
	last  []byte

	// What could not be written and is tried again, the oldest first: at most as
	// many lines as the queue holds values, and as many bytes as a file. Only Run
	// uses it.
	waiting [][]byte
	weight  int64 // of waiting, in bytes

	dropped atomic.Uint64

	mu     sync.Mutex // guards what follows
	failed error
	since  time.Time
}

// Status says how a Log is.
type Status struct {
	Dropped uint64    // values that will never be written
	Err     error     // why nothing can be written now; nil: it can
	Since   time.Time // since when not
}

// Open opens a record and makes it if there is none. Nothing is written before
// Run.
func Open(dir, name string, o Options) (*Log, error) {
	if o.MaxBytes == 0 {
		o.MaxBytes = defaultMaxBytes
	}
	if o.Keep == 0 {
		o.Keep = defaultKeep
	}
	if o.Queue == 0 {
		o.Queue = defaultQueue
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.MaxBytes < 0 || o.Keep < 0 || o.Queue < 0 {
		return nil, errors.New("open record: a size below zero")
	}
	l := &Log{log: o.Log, queue: make(chan any, o.Queue)}
	l.files = files{dir: dir, name: name, most: o.MaxBytes, keep: o.Keep, chain: o.Chain}
	if err := l.files.open(); err != nil {
		return nil, fmt.Errorf("open record %s: %w", name, err)
	}
	l.last = l.files.last
	return l, nil
}

// Last returns the last line that was in the newest file of a chained record
// when it was opened; nil: there was none.
func (l *Log) Last() []byte { return l.last }

// Append writes a value that marshals to a JSON object, soon. It must not change
// any more.
func (l *Log) Append(v any) {
	select {
	case l.queue <- v:
	default:
		l.dropped.Add(1)
	}
}

// mark is a place in the queue that somebody waits for.
type mark chan error

// Sync returns when everything that was appended before is on the disk, or
// cannot be.
func (l *Log) Sync(ctx context.Context) error {
	m := make(mark, 1)
	select {
	case l.queue <- m:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-m:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Status returns how the record is.
func (l *Log) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Status{Dropped: l.dropped.Load(), Err: l.failed, Since: l.since}
}

// Run writes until ctx ends, and then what is in the queue, and closes the
// files.
func (l *Log) Run(ctx context.Context) error {
	defer l.files.close()
	retry := time.NewTicker(retryEvery)
	defer retry.Stop()
	for {
		select {
		case v := <-l.queue:
			l.write(v)
		case <-retry.C:
			l.retry()
		case <-ctx.Done():
			l.drain()
			return nil
		}
	}
}

func (l *Log) drain() {
	for {
		select {
		case v := <-l.queue:
			l.write(v)
		default:
			if l.retry(); l.Status().Err != nil {
				l.dropped.Add(uint64(len(l.waiting)))
				return
			}
			l.note(l.files.sync())
			return
		}
	}
}

// retry writes what could not be written before, if anything could not. That the
// file can be opened proves nothing: the disk may still be full.
func (l *Log) retry() {
	if l.Status().Err == nil {
		return
	}
	err := l.files.reopen()
	for err == nil && len(l.waiting) > 0 {
		var n int
		n, err = l.files.append(l.waiting[:min(len(l.waiting), mostBatch)])
		for _, line := range l.waiting[:n] {
			l.weight -= int64(len(line))
		}
		l.waiting = l.waiting[n:]
	}
	if len(l.waiting) == 0 {
		l.waiting = nil
	}
	if err == nil {
		err = l.files.sync()
	}
	l.note(err)
}

// keep has lines wait for the next try, as far as there is room.
func (l *Log) keep(lines [][]byte) {
	for _, line := range lines {
		if len(l.waiting) == cap(l.queue) || l.weight+int64(len(line)) > l.files.most {
			l.dropped.Add(1)
			continue
		}
		l.waiting = append(l.waiting, line)
		l.weight += int64(len(line))
	}
}

// mostBatch is how many lines go into one write.
const mostBatch = 256

// write writes a value, with those that wait behind it.
func (l *Log) write(v any) {
	var lines [][]byte
	var marks []mark
	for {
		if m, ok := v.(mark); ok {
			marks = append(marks, m)
		} else if b, err := json.Marshal(v); err != nil || len(b) < 2 || b[0] != '{' {
			l.dropped.Add(1)
			l.log.Error("value not recorded", "record", l.files.name, "err", fmt.Errorf("marshal %T: %w", v, err))
		} else {
			lines = append(lines, b)
		}
		if len(lines) == mostBatch {
			break
		}
		select {
		case v = <-l.queue:
			continue
		default:
		}
		break
	}
	l.put(lines)
	if len(marks) == 0 {
		return
	}
	err := l.Status().Err
	if err == nil {
		err = l.files.sync()
		l.note(err)
	}
	for _, m := range marks {
		m <- err
	}
}

// put writes lines, unless the files are known to be broken.
func (l *Log) put(lines [][]byte) {
	if len(lines) == 0 {
		return
	}
	if l.Status().Err != nil {
		l.keep(lines)
		return
	}
	n, err := l.files.append(lines)
	l.keep(lines[n:])
	l.note(err)
}

// note remembers whether writing works, and says so when that changes.
func (l *Log) note(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err != nil && l.failed == nil:
		l.since = time.Now()
		l.log.Error("record cannot be written", "record", l.files.name, "err", err)
	case err == nil && l.failed != nil:
		l.since = time.Time{}
		l.log.Info("record is written again", "record", l.files.name, "dropped", l.dropped.Load())
	}
	l.failed = err
}

// files are the files of one record. Only its writer uses them.
type files struct {
	dir, name string
	most      int64
	keep      int
	chain     bool

	f    *os.File // nil after a failure
	size int64    // of whole lines in f
	last []byte   // of a chained f when it was opened; nil: it was empty
	head head
}
