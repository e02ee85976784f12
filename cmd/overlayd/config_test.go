package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseConfig(t *testing.T) {
	got, err := parseConfig([]byte("# lab\nstate-dir: /srv/x\n\nadvertise:\n  - 192.168.1.0/24\n  - 10.0.0.0/8\nport: 51820\njson: true\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := []entry{
		{key: "state-dir", line: 2, values: []string{"/srv/x"}},
		{key: "advertise", line: 4, values: []string{"192.168.1.0/24", "10.0.0.0/8"}, list: true},
		{key: "port", line: 7, values: []string{"51820"}},
		{key: "json", line: 8, values: []string{"true"}},
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(entry{})); d != "" {
		t.Error(d)
	}
	for _, empty := range []string{"", "# nothing\n", "---\n", "null\n"} {
		if got, err := parseConfig([]byte(empty)); err != nil || len(got) > 0 {
			t.Errorf("%q: %v, %v", empty, got, err)
		}
	}
}

func TestConfigMistakes(t *testing.T) {
	for _, c := range []struct{ name, text, want, hint string }{
		{"unknown key", "state-dir: /x\nadvertize: 10.0.0.0/8\n", `:2: unknown setting "advertize"`, "did you mean advertise?"},
		{"underscore", "state_dir: /x\n", `:1: unknown setting "state_dir"`, "did you mean state-dir?"},
		{"nothing like it", "color: always\n", `:1: unknown setting "color"`, "overlayd help up"},
		{"config in config", "config: /y\n", `:1: unknown setting "config"`, ""},
		{"twice", "port: 1\nname: a\nport: 2\n", `:3: "port" is already set in line 1`, "keep one"},
		{"value of another verb", "ttl: 1h\n", `:1: unknown setting "ttl"`, ""},
		{"bad value of another verb", "\ninvite-ttl: soon\n", `:2: invite-ttl: "soon" is not a time span`, ""},
		{"bad in list", "advertise:\n  - 10.0.0.0/8\n  - 192.168.1.5/24\n", `:1: advertise: 192.168.1.5/24 has host bits set`, "192.168.1.0/24"},
		{"list for one", "port: [1, 2]\n", `:1: "port" takes one value`, ""},
		{"mapping", "port: {a: b}\n", `:1: "port" takes a plain value`, ""},
		{"no value", "port:\n", `:1: "port" has no value`, ""},
		{"empty list", "advertise: []\n", `:1: "advertise" has no value`, ""},
		{"list on top", "- port\n", `:1: not a list of settings`, "name: value"},
		{"not YAML", "port: 1\n  name: [\n", `not YAML`, ""},
		{"alias", "name: &n x\nport: *n\n", `:2: "port" takes a plain value`, ""},
		{"not a bool", "json: perhaps\n", `:1: json: "perhaps": invalid syntax`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			file := filepath.Join(t.TempDir(), "c.yaml")
			if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if code := w.do("version", "--config", file); code != 2 {
				t.Errorf("exit code %d", code)
			}
			if !strings.Contains(w.err.String(), c.want) || !strings.Contains(w.err.String(), c.hint) {
				t.Errorf("printed:\n%s\nwant %s and %s", &w.err, c.want, c.hint)
			}
		})
	}
	w := newWorld(t)
	if code := w.do("version", "--config", "/nowhere/c.yaml"); code != 1 || !strings.Contains(w.err.String(), "/nowhere/c.yaml") {
		t.Errorf("missing file: %d, %s", code, &w.err)
	}
}

func FuzzParseConfig(f *testing.F) {
	for _, s := range []string{"a: b\n", "a: [b, c]\n", "a: b\na: c\n", "- a\n", "a: {b: c}", "&x a: *x", "a: |\n  b\n", "? a\n", "\x00", "a: !!binary x\n", "<<: {a: b}\n", "a: b\n---\nc: d\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := parseConfig(b)
		if err != nil {
			if l, ok := errors.AsType[*lineError](err); !ok || l.text == "" || l.line < 0 {
				t.Fatalf("error without a place: %v", err)
			}
			return
		}
		seen := map[string]bool{}
		for _, e := range entries {
			if e.key == "" || e.line < 1 || len(e.values) == 0 || !e.list && len(e.values) != 1 || seen[e.key] {
				t.Fatalf("entry %+v of %q", e, b)
			}
			seen[e.key] = true
		}
	})
}
