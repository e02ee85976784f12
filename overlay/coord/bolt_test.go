package coord_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"overlayd/overlay/coord"
	"overlayd/overlay/coord/storetest"
)

func openBolt(t *testing.T, path string) coord.Store {
	t.Helper()
	s, err := coord.OpenBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestBolt(t *testing.T) {
	var path string
	storetest.TestStore(t,
		func(t *testing.T) coord.Store {
			path = filepath.Join(t.TempDir(), "coord.db")
			return openBolt(t, path)
		},
		func(t *testing.T) coord.Store { return openBolt(t, path) })
}

// TestBoltDamage hands over files that are not whole databases of ours. Each is
// refused by name, with a way out, and kept byte for byte.
func TestBoltDamage(t *testing.T) {
	good := goodFile(t)
	page := 4096
	edit := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(good)) }
	foreign := filepath.Join(t.TempDir(), "foreign")
	db, err := bbolt.Open(foreign, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(func(tx *bbolt.Tx) error { _, err := tx.CreateBucket([]byte("x")); return err }), db.Close()); err != nil {
		t.Fatal(err)
	}
	foreignBytes, err := os.ReadFile(foreign)
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string][]byte{
		"empty":             {},
		"one byte":          {0},
		"text":              []byte(strings.Repeat("this is no database\n", 1000)),
		"zeros":             make([]byte, 64<<10),
		"cut after headers": good[:2*page],
		"cut in half":       good[:len(good)/2],
		"one page short":    edit(func(b []byte) []byte { return b[:usedPages(b)*page-1] }),
		"a bit in a value":  bytes.ReplaceAll(good, []byte("a value to find"), []byte("a value to fine")),
		"zeroed pages":      edit(func(b []byte) []byte { clear(b[2*page:]); return b }),
		"random pages": edit(func(b []byte) []byte {
			r := rand.New(rand.NewPCG(1, 2))
			for i := 2 * page; i < len(b); i++ {
				b[i] = byte(r.Uint32())
			}
			return b
		}),
		"both headers": edit(func(b []byte) []byte { b[20] ^= 1; b[page+20] ^= 1; return b }),
		"foreign":      foreignBytes,
	}
	for name, content := range tests {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "coord.db")
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := coord.OpenBolt(path)
			if err == nil {
				s.Close()
				t.Fatal("it was opened")
			}
			p, ok := coord.AsProblem(err)
			if !ok || p.Hint == "" || !strings.Contains(p.Message, path) {
				t.Errorf("refused with %#v", err)
			}
			if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, content) {
				t.Errorf("the file was changed (%v)", err)
			}
		})
	}
	t.Run("one header", func(t *testing.T) { // the other one is enough
		path := filepath.Join(t.TempDir(), "coord.db")
		content := edit(func(b []byte) []byte { b[20] ^= 1; return b })
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := coord.OpenBolt(path); err == nil {
			s.Close()
		} else if _, ok := coord.AsProblem(err); !ok {
			t.Error(err)
		}
	})
}

// TestBoltRandomDamage flips random bits: the file is opened or refused, and
// nothing crashes.
func TestBoltRandomDamage(t *testing.T) {
	good := goodFile(t)
	r := rand.New(rand.NewPCG(3, 4))
	n := 300
	if testing.Short() {
		n = 50
	}
	for i := range n {
		b := bytes.Clone(good)
		for range 1 + r.IntN(4) {
			b[r.IntN(len(b))] ^= 1 << r.IntN(8)
		}
		path := filepath.Join(t.TempDir(), fmt.Sprint(i))
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := coord.OpenBolt(path)
		if err != nil {
			if _, ok := coord.AsProblem(err); !ok {
				t.Errorf("damage %d: %v", i, err)
			}
			continue
		}
		if _, _, err := s.Load(t.Context()); err != nil {
			t.Errorf("damage %d was found only by Load: %v", i, err)
		}
		s.Close()
	}
}

func TestBoltInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "coord.db")
	s := openBolt(t, path)
	defer s.Close()
	_, err := coord.OpenBolt(path)
	if p, ok := coord.AsProblem(err); !ok || p.Kind != coord.KindConflict {
		t.Errorf("a second process got %v", err)
	}
}

func goodFile(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "coord.db")
	s := openBolt(t, path)
	var rev uint64
	for i := range 30 {
		var changes []coord.Record
		for j := range 20 {
			changes = append(changes, coord.Record{Key: fmt.Sprintf("node/%d-%d", i, j), Value: []byte(strings.Repeat("v", 100))})
		}
		changes = append(changes, coord.Record{Key: "marked", Value: []byte("a value to find")})
		var err error
		if rev, err = s.Commit(t.Context(), rev, changes); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// usedPages is the larger of the two headers' numbers of pages in use.
func usedPages(b []byte) int {
	most := 0
	for _, off := range []int{16 + 40, 4096 + 16 + 40} {
		n := 0
		for i := 7; i >= 0; i-- {
			n = n<<8 | int(b[off+i])
		}
		most = max(most, n)
	}
	return most
}
