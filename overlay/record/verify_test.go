package record

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestVerifyCopy: what an auditor has, and what can be said of it.
func TestVerifyCopy(t *testing.T) {
	chained := Options{Chain: true, MaxBytes: 1000, Keep: 100} // some eight lines a file
	early, late := t.TempDir(), t.TempDir()
	write(t, early, chained, 0, 20)
	if err := os.CopyFS(late, os.DirFS(early)); err != nil {
		t.Fatal(err)
	}
	write(t, late, chained, 20, 30)
	kept := headPath(early, "control")
	other := t.TempDir()
	write(t, other, chained, 100, 130)
	plain := t.TempDir()
	write(t, plain, Options{}, 0, 3)
	firstOf := func(dir string, n int) uint64 {
		seq, err := firstSeq(path(dir, "control", n))
		if err != nil {
			t.Fatal(err)
		}
		return seq
	}
	// copied makes a copy without some files.
	copied := func(from string, not ...string) string {
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
			t.Fatal(err)
		}
		for _, name := range not {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	// without takes line n out of a file, counted from 0; negative: from the end.
	without := func(file string, n int) string {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		lines := bytes.SplitAfter(bytes.TrimSuffix(b, []byte("\n")), []byte("\n"))
		if n < 0 {
			n += len(lines)
		}
		b = bytes.Join(append(lines[:n:n], lines[n+1:]...), nil)
		if err := os.WriteFile(file, append(bytes.TrimSuffix(b, []byte("\n")), '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	for _, tt := range []struct {
		name, path, kept string
		first, last      uint64
		ends             bool
		problem, err     string
	}{
		{"a directory", copied(late), "", 1, 30, true, "", ""},
		{"a directory and an older head", copied(late), kept, 1, 30, true, "", ""},
		{"a directory without head", copied(late, "control.head"), "", 1, 30, false, "the head is missing", ""},
		{"a directory without the newest", copied(late, "control.jsonl"), "", 1, firstOf(late, 0) - 1, true, "30 are missing at the end", ""},
		{"a line is gone", filepath.Dir(without(path(copied(late), "control", 1), 2)), "", 1, 30, true, "missing", ""},
		{"the last is gone, and the head knows", without(path(copied(late), "control", 0), -1), "", firstOf(late, 0), 29, true, "number 30 is missing at the end", ""},
		{"the last is gone, and nobody knows", without(path(copied(late, "control.head"), "control", 0), -1), "", firstOf(late, 0), 29, false, "", ""},
		{"one file", path(copied(late, "control.head"), "control", 0), "", firstOf(late, 0), 30, false, "", ""},
		{"an older file", path(late, "control", 1), "", firstOf(late, 1), firstOf(late, 0) - 1, false, "", ""},
		{"an older file, a line gone", without(path(copied(late), "control", 1), 3), "", firstOf(late, 1), firstOf(late, 0) - 1, false, "is missing", ""},
		{"another record in its place", other, kept, 1, 30, true, "number 20 was changed", ""},
		{"the older head is of what is gone", path(late, "control", 0), kept, firstOf(late, 0), 30, true, "number 20, the last when its head was copied, is not kept any more", ""},
		{"older than the head", path(copied(late), "control", 2), headPath(late, "control"), firstOf(late, 2), firstOf(late, 1) - 1, true, "to 30 are missing at the end", ""},
		{"nothing there", filepath.Join(late, "nothing"), "", 0, 0, false, "", "no such file"},
		{"an empty directory", t.TempDir(), "", 0, 0, false, "", "no control.jsonl in"},
		{"not chained", path(plain, "control", 0), "", 0, 0, false, "", "of no record with a chain"},
		{"no head", late, path(late, "control", 0), 0, 0, false, "", "control.jsonl: invalid"},
		{"head nowhere", late, filepath.Join(late, "nothing"), 0, 0, false, "", "no such file"},
	} {
		v, err := VerifyCopy(tt.path, "control", tt.kept)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		if err != nil || v.First != tt.first || v.Last != tt.last || v.Ends != tt.ends {
			t.Errorf("%s: %+v, %v; want %d to %d, ends %v", tt.name, v, err, tt.first, tt.last, tt.ends)
		}
		if all := strings.Join(v.Problems, "; "); (tt.problem == "") != (all == "") || !strings.Contains(all, tt.problem) {
			t.Errorf("%s: %q, want %q", tt.name, all, tt.problem)
		}
	}
}
