package overlay

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"overlayd/overlay/coord"
	"overlayd/overlay/key"
)

func testIdentity() *identity {
	return &identity{
		Machine: key.NewMachine(), WireGuard: key.NewPrivate(), NodeID: "n1", Name: "laptop",
		Role: coord.RoleMember, Endpoint: "203.0.113.10:443",
	}
}

func TestIdentityRoundTrip(t *testing.T) {
	d := stateDir{t.TempDir()}
	if id, err := d.identity(); id != nil || err != nil {
		t.Fatalf("an empty directory holds %v, %v", id, err)
	}
	want := testIdentity()
	if err := d.saveIdentity(want); err != nil {
		t.Fatal(err)
	}
	got, err := d.identity()
	if err != nil {
		t.Fatal(err)
	}
	if got.Machine.Public() != want.Machine.Public() || !got.WireGuard.Equal(want.WireGuard) || got.Name != want.Name || !got.joined() {
		t.Errorf("read back %+v", got)
	}
	fi, err := os.Stat(d.file(identityFile))
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v: want 0600", fi.Mode(), err)
	}
}

// TestDamagedFiles: a file that is not what we wrote is refused by name, stays
// as it is, and its contents do not show in the error.
func TestDamagedFiles(t *testing.T) {
	whole := stateDir{t.TempDir()}
	if err := whole.saveIdentity(testIdentity()); err != nil {
		t.Fatal(err)
	}
	identityBytes, err := os.ReadFile(whole.file(identityFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := whole.saveMap(testMap(testNode("a", 1, coord.RoleMember, true))); err != nil {
		t.Fatal(err)
	}
	mapBytes, err := os.ReadFile(whole.file(mapFile))
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(mapBytes)
	flipped[len(flipped)-1] ^= 1

	tests := []struct {
		name, file string
		content    []byte
		code       int
	}{
		{"empty identity", identityFile, nil, ExitFailure},
		{"truncated identity", identityFile, identityBytes[:len(identityBytes)/2], ExitFailure},
		{"identity of another version", identityFile, bytes.Replace(identityBytes, []byte(`"schema": 1`), []byte(`"schema": 9`), 1), ExitConflict},
		{"identity with a short key", identityFile, []byte(`{"schema":1,"machine_key":"c2VjcmV0LWJ5dGVz","wireguard_key":"c2VjcmV0LWJ5dGVz"}`), ExitFailure},
		{"identity with an unknown field", identityFile, []byte(`{"schema":1,"c2VjcmV0LWJ5dGVz":true}`), ExitFailure},
		{"empty map", mapFile, nil, ExitFailure},
		{"truncated map", mapFile, mapBytes[:len(mapBytes)-3], ExitFailure},
		{"map with a flipped bit", mapFile, flipped, ExitFailure},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := stateDir{t.TempDir()}
			if err := os.WriteFile(d.file(tt.file), tt.content, 0o600); err != nil {
				t.Fatal(err)
			}
			var err error
			if tt.file == mapFile {
				_, err = d.cachedMap()
			} else {
				_, err = d.identity()
			}
			f, ok := errors.AsType[*Fault](err)
			if !ok {
				t.Fatalf("error %v, want a Fault", err)
			}
			if f.Code != tt.code || !strings.Contains(f.Message, d.file(tt.file)) || f.Hint == "" {
				t.Errorf("code %d, message %q, hint %q", f.Code, f.Message, f.Hint)
			}
			if strings.Contains(f.Message, "c2VjcmV0") {
				t.Errorf("the error quotes the file: %q", f.Message)
			}
			left, err := os.ReadFile(d.file(tt.file))
			if err != nil || !bytes.Equal(left, tt.content) {
				t.Errorf("the file was changed (%v)", err)
			}
		})
	}
}

func TestMapRoundTrip(t *testing.T) {
	d := stateDir{t.TempDir()}
	if m, err := d.cachedMap(); m != nil || err != nil {
		t.Fatalf("an empty directory holds %v, %v", m, err)
	}
	want := testMap(testNode("a", 1, coord.RoleMember, true), testNode("b", 2, coord.RoleGateway, false, approved("10.1.0.0/16")))
	if err := d.saveMap(want); err != nil {
		t.Fatal(err)
	}
	got, err := d.cachedMap()
	if err != nil {
		t.Fatal(err)
	}
	if !got.Passes[0].Key.Equal(want.Passes[0].Key) {
		t.Error("the relay pass lost its key")
	}
	if d := cmp.Diff(testPlan(want, testHost("10.0.0.1/24")).String(), testPlan(got, testHost("10.0.0.1/24")).String()); d != "" {
		t.Errorf("the cached map leads to another plan (-want +got):\n%s", d)
	}
}

func TestStateDirIsForOneDaemon(t *testing.T) {
	d := stateDir{filepath.Join(t.TempDir(), "state")}
	unlock, err := d.open()
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(d.path)
	if err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("directory mode %v, %v: want 0700", fi.Mode(), err)
	}
	_, err = d.open()
	if f, ok := errors.AsType[*Fault](err); !ok || f.Code != ExitConflict {
		t.Errorf("a second daemon got %v, want a conflict", err)
	}
	unlock()
	if unlock, err = d.open(); err != nil {
		t.Errorf("after the first has ended: %v", err)
	} else {
		unlock()
	}
}

// TestSweep: what a crash between write and rename leaves is removed, and
// nothing else.
func TestSweep(t *testing.T) {
	d := stateDir{t.TempDir()}
	for _, name := range []string{".node.json-123", ".map.pb-9", "node.json.bak", ".hidden"} {
		if err := os.WriteFile(d.file(name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	unlock, err := d.open()
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	entries, err := os.ReadDir(d.path)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if d := cmp.Diff([]string{".hidden", "lock", "node.json.bak"}, got); d != "" {
		t.Errorf("left (-want +got):\n%s", d)
	}
}
