package record

import (
	"os"
	"path/filepath"
	"testing"
)

// TestRotationCutShort reads a record of which a rotation was cut short at any
// point: each leaves one number without a file.
func TestRotationCutShort(t *testing.T) {
	for gap := range 4 {
		dir := t.TempDir()
		for n := range 4 {
			if n == gap {
				continue
			}
			if err := os.WriteFile(path(dir, "r", n), []byte{'0' + byte(n), '\n'}, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		var got string
		if err := Read(dir, "r", func(line []byte) error { got += string(line); return nil }); err != nil {
			t.Fatal(err)
		}
		want := ""
		for n := 3; n >= 0; n-- {
			if n != gap {
				want += string(rune('0' + n))
			}
		}
		if got != want {
			t.Errorf("without file %d: %q, want %q", gap, got, want)
		}
	}
	if err := Read(filepath.Join(t.TempDir(), "none"), "r", func([]byte) error { t.Error("a line"); return nil }); err != nil {
		t.Error(err)
	}
}
