package main

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"overlayd/overlay"
)

// TestPlaces: a user who is not root has places of his own, which his verbs find;
// root's, and what is named, stay what they are.
func TestPlaces(t *testing.T) {
	home := t.TempDir()
	state := filepath.Join(home, ".local", "state", "overlayd")
	own := filepath.Join(state, "overlayd.sock")
	run := func(root bool, args ...string) (common, overlay.Options) {
		w := newWorld(t)
		w.env["HOME"] = home
		p := w.program()
		p.root = func() bool { return root }
		if code := p.main(t.Context(), args); code != 0 {
			t.Errorf("overlayd %v: code %d\n%s", args, code, &w.err)
		}
		return p.common, w.member
	}
	if _, o := run(false, "up", "--userspace"); !o.Userspace || !o.HostPorts || o.StateDir != state || o.Socket != own {
		t.Errorf("a user's daemon runs with %+v", o)
	}
	if _, o := run(false, "up", "--userspace", "--state-dir", "/srv/x", "--socket", "/srv/s"); o.StateDir != "/srv/x" || o.Socket != "/srv/s" {
		t.Errorf("what was named does not count: %+v", o)
	}
	if _, o := run(true, "up", "--userspace"); o.StateDir != overlay.DefaultStateDir || o.Socket != overlay.DefaultSocket {
		t.Errorf("root's daemon runs with %+v", o)
	}
	shared := filepath.Join(t.TempDir(), "shared.sock")
	listen := func(path string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
	}
	listen(own)
	if c, _ := run(false, "version"); c.socket != own {
		t.Errorf("a verb asks %s, want his own daemon's socket", c.socket)
	}
	listen(shared)
	if c, _ := run(false, "version", "--socket", shared); c.socket != shared {
		t.Errorf("a verb asks %s, want the one that was named", c.socket)
	}
	if c, _ := run(true, "version"); c.socket != overlay.DefaultSocket {
		t.Errorf("root's verb asks %s", c.socket)
	}
}
