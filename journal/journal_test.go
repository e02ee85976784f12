package journal

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func open(t *testing.T, dir string) *Journal {
	t.Helper()
	j, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func TestNotesSurvive(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	if _, err := os.Stat(filepath.Join(dir, name)); !os.IsNotExist(err) {
		t.Errorf("opening wrote something: %v", err)
	}
	for _, n := range [][4]string{
		{"sysctl", "b", "0", "1"},
		{"sysctl", "a", "1", "2"},
		{"other", "a", "x", "y"},
		{"sysctl", "b", "1", "2"}, // the first old value stays
	} {
		if err := j.Note(n[0], n[1], n[2], n[3]); err != nil {
			t.Fatal(err)
		}
	}
	j = open(t, dir) // as after kill -9
	if old, now, ok := j.Noted("sysctl", "b"); old != "0" || now != "2" || !ok {
		t.Errorf("b: %q %q %v", old, now, ok)
	}
	if got := j.Keys("sysctl"); !slices.Equal(got, []string{"b", "a"}) {
		t.Errorf("keys: %q", got)
	}
	if err := errors.Join(j.Forget("sysctl", "b"), j.Forget("sysctl", "never noted")); err != nil {
		t.Error(err)
	}
	j = open(t, dir)
	if _, _, ok := j.Noted("sysctl", "b"); ok {
		t.Error("b is still noted")
	}
	if old, _, ok := j.Noted("other", "a"); old != "x" || !ok {
		t.Error("other's a is lost")
	}
	info, err := os.Stat(filepath.Join(dir, name))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if files, _ := os.ReadDir(dir); len(files) != 1 {
		t.Errorf("left in the directory: %v", files)
	}
}

// TestOtherScopes: notes of an earlier boot are void, those of another network
// namespace are somebody else's, to be kept.
func TestOtherScopes(t *testing.T) {
	boot, netns := scope()
	if boot == "" {
		t.Skip("this system has no scopes")
	}
	dir := t.TempDir()
	j := open(t, dir)
	err := j.save([]Entry{
		{Kind: "sysctl", Key: "a", Old: "0", New: "1", Boot: "earlier", Netns: netns},
		{Kind: "sysctl", Key: "b", Old: "0", New: "1", Boot: boot, Netns: "another"},
	}, "test")
	if err != nil {
		t.Fatal(err)
	}
	j = open(t, dir)
	if keys := j.Keys("sysctl"); len(keys) > 0 {
		t.Errorf("shows %q", keys)
	}
	if err := j.Note("sysctl", "b", "5", "6"); err != nil {
		t.Fatal(err)
	}
	j = open(t, dir)
	if len(j.entries) != 2 || j.entries[0].Netns != "another" || j.entries[0].Old != "0" {
		t.Errorf("entries: %+v", j.entries)
	}
}

func TestCorrupt(t *testing.T) {
	good := `{"schema":"overlayd.journal/v1","entries":[{"kind":"k","key":"a","old":"0","new":"1","time":"2026-01-01T00:00:00Z","boot":"","netns":""}]}`
	for _, tt := range []struct{ name, content string }{
		{"empty", ""},
		{"truncated", good[:len(good)/2]},
		{"something else", "kernel"},
		{"two", good + good},
		{"another version", strings.Replace(good, "v1", "v2", 1)},
		{"a field of a later version", strings.Replace(good, `"kind"`, `"more":1,"kind"`, 1)},
		{"no key", strings.Replace(good, `"key":"a"`, `"key":""`, 1)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, []byte(tt.content), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Open(dir)
			var corrupt *CorruptError
			if !errors.As(err, &corrupt) || !strings.Contains(err.Error(), path) || !strings.Contains(corrupt.Hint(), path) {
				t.Errorf("got %v", err)
			}
			if b, _ := os.ReadFile(path); string(b) != tt.content {
				t.Error("the file was changed")
			}
		})
	}
	if _, err := parse([]byte(good)); err != nil {
		t.Error(err)
	}
}

// TestNoteFails: a note that is not on disk is no note.
func TestNoteFails(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "gone")
	j := open(t, dir)
	if err := j.Note("sysctl", "a", "0", "1"); err == nil || !strings.HasPrefix(err.Error(), "note sysctl a: ") {
		t.Errorf("got %v", err)
	}
	if _, _, ok := j.Noted("sysctl", "a"); ok {
		t.Error("noted all the same")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"schema":"overlayd.journal/v1","entries":[{"kind":"k","key":"a"}]}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := parse(b)
		if err != nil {
			return
		}
		j := &Journal{path: filepath.Join(t.TempDir(), name), now: time.Now}
		if err := j.save(entries, "test"); err != nil {
			t.Skip(err) // a year that JSON has no form for
		}
		again, err := os.ReadFile(j.path)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := parse(again); err != nil || len(back) != len(entries) {
			t.Errorf("wrote what it cannot read: %v", err)
		}
	})
}
