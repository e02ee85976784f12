package coord

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// The file has two buckets: what the file is, and the records. A record's value
// begins with its checksum, because bbolt has none for data.
var (
	boltMeta    = []byte("overlayd.coord")
	boltRecords = []byte("records")

	boltFormatKey   = []byte("format")
	boltRevisionKey = []byte("revision") // 8 bytes, big endian
)

// boltFormat is the layout above; a file of another one is refused.
const boltFormat = "1"

// boltLockWait is how long a daemon that is just ending may hold the file.
const boltLockWait = 2 * time.Second

// Bolt is a Store in one file, which one process has open at a time.
type Bolt struct {
	db *bbolt.DB

	mu     sync.Mutex // guards moved, closed
	moved  chan struct{}
	closed bool
}

var _ Store = (*Bolt)(nil)

// OpenBolt opens the database in a file, and makes it if there is none. A file
// that is not a whole database of ours is refused and kept as it is.
func OpenBolt(path string) (*Bolt, error) {
	switch info, err := os.Stat(path); {
	case errors.Is(err, os.ErrNotExist):
		if err := createBolt(path); err != nil {
			return nil, fmt.Errorf("create database %s: %w", path, err)
		}
	case err != nil:
		return nil, fmt.Errorf("open database: %w", err)
	case !info.Mode().IsRegular():
		return nil, damaged(path, "it is not a regular file")
	default:
		if err := checkBoltHeader(path); err != nil {
			return nil, err
		}
	}
	db, err := openChecked(path)
	if err != nil {
		return nil, err
	}
	return &Bolt{db: db, moved: make(chan struct{})}, nil
}

// damaged says that a file is refused, and what to do.
func damaged(path, why string) error {
	return problem(KindInternal,
		"the file was kept; put back a copy of it, or move it away to start a new network, which every machine has to join again",
		"the database %s is damaged or not one of overlayd: %s", path, why)
}

// createBolt makes a whole database beside the path and then renames it, so
// that a crash leaves either none or a whole one.
func createBolt(path string) error {
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	db, err := bbolt.Open(tmp, 0o600, &bbolt.Options{Timeout: boltLockWait})
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		meta, err := tx.CreateBucket(boltMeta)
		if err != nil {
			return err
		}
		if _, err := tx.CreateBucket(boltRecords); err != nil {
			return err
		}
		if err := meta.Put(boltFormatKey, []byte(boltFormat)); err != nil {
			return err
		}
		return meta.Put(boltRevisionKey, binary.BigEndian.AppendUint64(nil, 0))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// openChecked opens a file and reads all of it. Pages that point outside the
// file are memory faults in bbolt, which are turned into errors here.
func openChecked(path string) (db *bbolt.DB, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			db, err = nil, damaged(path, fmt.Sprint(r)) // its lock stays: the process is about to end
		}
	}()
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{Timeout: boltLockWait})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, problem(KindConflict, "stop the other overlayd, or give this one another --state-dir", "the database %s is in use", path)
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("open database: %w", err)
	case err != nil:
		return nil, damaged(path, err.Error())
	}
	if err := db.View(func(tx *bbolt.Tx) error { return checkBolt(tx, path) }); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// checkBolt reads every record, and then lets bbolt compare its pages.
func checkBolt(tx *bbolt.Tx, path string) error {
	meta, records := tx.Bucket(boltMeta), tx.Bucket(boltRecords)
	if meta == nil || records == nil {
		return damaged(path, "it is a database of another program")
	}
	if f := meta.Get(boltFormatKey); string(f) != boltFormat {
		return problem(KindConflict, "use the version of overlayd that wrote it; the file was kept",
			"the database %s has format %.20q, and this version knows %s", path, f, boltFormat)
	}
	if len(meta.Get(boltRevisionKey)) != 8 {
		return damaged(path, "it has no revision")
	}
	if err := records.ForEach(func(k, v []byte) error {
		_, err := openValue(k, v)
		return err
	}); err != nil {
		return damaged(path, err.Error())
	}
	var first error
	for err := range tx.Check() { // it must be read to its end
		if first == nil {
			first = damaged(path, err.Error())
		}
	}
	return first
}

// sealValue puts the checksum of key and value before the value.
func sealValue(k string, v []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, valueSum([]byte(k), v)), v...)
}

// openValue returns the value without its checksum; it is borrowed from v.
func openValue(k, v []byte) ([]byte, error) {
	if len(v) < 4 || binary.BigEndian.Uint32(v) != valueSum(k, v[4:]) {
		return nil, fmt.Errorf("the checksum of the record %.80q does not match", k)
	}
	return v[4:], nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func valueSum(k, v []byte) uint32 {
	return crc32.Update(crc32.Checksum(k, castagnoli), castagnoli, v)
}

// Load returns all records.
func (b *Bolt) Load(context.Context) (records []Record, rev uint64, err error) {
	err = b.db.View(func(tx *bbolt.Tx) error {
		rev = boltRevision(tx)
		return tx.Bucket(boltRecords).ForEach(func(k, v []byte) error {
			v, err := openValue(k, v)
			if err != nil {
				return damaged(b.db.Path(), err.Error())
			}
			records = append(records, Record{string(k), append([]byte{}, v...)})
			return nil
		})
	})
	if err != nil {
		return nil, 0, fmt.Errorf("load database: %w", err)
	}
	return records, rev, nil
}

func boltRevision(tx *bbolt.Tx) uint64 {
	return binary.BigEndian.Uint64(tx.Bucket(boltMeta).Get(boltRevisionKey))
}

// Commit writes the changes in one transaction and syncs the file.
func (b *Bolt) Commit(ctx context.Context, rev uint64, changes []Record) (uint64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	err := b.db.Update(func(tx *bbolt.Tx) error {
		if boltRevision(tx) != rev {
			return ErrStale
		}
		records := tx.Bucket(boltRecords)
		for _, c := range changes {
			var err error
			if c.Value == nil {
				err = records.Delete([]byte(c.Key))
			} else {
				err = records.Put([]byte(c.Key), sealValue(c.Key, c.Value))
			}
			if err != nil {
				return fmt.Errorf("record %s: %w", c.Key, err)
			}
		}
		return tx.Bucket(boltMeta).Put(boltRevisionKey, binary.BigEndian.AppendUint64(nil, rev+1))
	})
	if err != nil {
		return 0, fmt.Errorf("commit: %w", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.moved)
	b.moved = make(chan struct{})
	return rev + 1, nil
}

// Watch reports this process's commits: no other can make any.
func (b *Bolt) Watch(ctx context.Context, moved func(rev uint64)) error {
	for {
		b.mu.Lock()
		next, closed := b.moved, b.closed
		b.mu.Unlock()
		if closed {
			return fmt.Errorf("watch: %w", bolterrors.ErrDatabaseNotOpen)
		}
		var rev uint64
		if err := b.db.View(func(tx *bbolt.Tx) error { rev = boltRevision(tx); return nil }); err != nil {
			return fmt.Errorf("watch: %w", err)
		}
		moved(rev)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-next:
		}
	}
}

// Close waits for running calls, wakes watchers, and frees the file.
func (b *Bolt) Close() error {
	b.mu.Lock()
	if !b.closed {
		b.closed = true
		close(b.moved)
		b.moved = make(chan struct{})
	}
	b.mu.Unlock()
	return b.db.Close()
}
