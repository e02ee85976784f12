package overlay

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"overlayd/overlay/coord"
	"overlayd/overlay/key"
)

// stateSchema is the version of the files in the state directory. A program
// that finds another one refuses to touch them.
const stateSchema = 1

// The files of a state directory.
const (
	identityFile = "node.json"
	mapFile      = "map.pb"
	lockFile     = "lock"
	hubFile      = "hub.json"
	storeFile    = "coord.db"
)

// identity is what makes this machine a member: written once at enrolment.
type identity struct {
	Machine   key.Machine
	WireGuard key.Private

	// Next takes the place of WireGuard when the coordinator has heard of it; zero:
	// there is none.
	Next key.Private

	NodeID    string // empty until enrolled
	Name      string
	Role      coord.Role
	Endpoint  string // the coordinator's host:port
	Pin       key.Pin
	Advertise []netip.Prefix
}

// rotates reports whether a new WireGuard key waits for its turn.
func (i *identity) rotates() bool { return !i.Next.Equal(key.Private{}) }

func (i *identity) joined() bool { return i.NodeID != "" }

// Joined reports whether the machine of a state directory is a member of a
// network already.
func Joined(dir string) bool {
	id, err := stateDir{dir}.identity()
	return err == nil && id != nil && id.joined()
}

// identityJSON is identity on disk: the only place where its keys are written.
type identityJSON struct {
	Schema    int            `json:"schema"`
	Machine   []byte         `json:"machine_key"`
	WireGuard []byte         `json:"wireguard_key"`
	Next      []byte         `json:"next_wireguard_key,omitempty"`
	NodeID    string         `json:"node_id"`
	Name      string         `json:"name"`
	Role      coord.Role     `json:"role"`
	Endpoint  string         `json:"endpoint"`
	Pin       string         `json:"pin"`
	Advertise []netip.Prefix `json:"advertise"`
}

// stateDir reads and writes the files of one state directory.
type stateDir struct{ path string }

func (d stateDir) file(name string) string { return filepath.Join(d.path, name) }

// identity returns what is saved, nil when nothing is. A file that cannot be
// read as one is left as it is and named in the error.
func (d stateDir) identity() (*identity, error) {
	var j identityJSON
	ok, err := d.readJSON(identityFile, &j)
	if !ok || err != nil {
		return nil, err
	}
	damaged := func(what string) error {
		return d.damaged(identityFile, what+" is missing or malformed")
	}
	id := &identity{NodeID: j.NodeID, Name: j.Name, Role: j.Role, Endpoint: j.Endpoint, Advertise: j.Advertise}
	if id.Machine, err = key.ParseMachine(j.Machine); err != nil {
		return nil, damaged("machine_key")
	}
	if id.WireGuard, err = key.ParsePrivate(j.WireGuard); err != nil {
		return nil, damaged("wireguard_key")
	}
	if len(j.Next) > 0 {
		if id.Next, err = key.ParsePrivate(j.Next); err != nil {
			return nil, damaged("next_wireguard_key")
		}
	}
	if j.Pin != "" {
		if id.Pin, err = key.ParsePin(j.Pin); err != nil {
			return nil, damaged("pin")
		}
	}
	return id, nil
}

func (d stateDir) saveIdentity(id *identity) error {
	j := identityJSON{
		Schema: stateSchema, Machine: id.Machine.Expose(), WireGuard: id.WireGuard.Expose(),
		NodeID: id.NodeID, Name: id.Name, Role: id.Role, Endpoint: id.Endpoint, Advertise: id.Advertise,
	}
	if id.rotates() {
		j.Next = id.Next.Expose()
	}
	if !id.Pin.IsZero() {
		j.Pin = id.Pin.String()
	}
	return d.writeJSON(identityFile, j)
}

// cachedMap returns the last map, nil when there is none. The file is the
// SHA-256 of the message and the message.
func (d stateDir) cachedMap() (*coord.Map, error) {
	b, err := os.ReadFile(d.file(mapFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the last map: %w", err)
	}
	if len(b) < sha256.Size {
		return nil, d.damaged(mapFile, "it is truncated")
	}
	sum := sha256.Sum256(b[sha256.Size:])
	if !bytes.Equal(sum[:], b[:sha256.Size]) {
		return nil, d.damaged(mapFile, "its checksum does not match")
	}
	m, err := coord.ParseMap(b[sha256.Size:])
	if err != nil {
		return nil, d.damaged(mapFile, err.Error())
	}
	return m, nil
}

func (d stateDir) saveMap(m *coord.Map) error {
	body := m.Append(nil)
	sum := sha256.Sum256(body)
	return d.write(mapFile, append(sum[:], body...))
}

// readJSON reads a file that starts with our schema. It reports whether the
// file is there.
func (d stateDir) readJSON(name string, v any) (bool, error) {
	b, err := os.ReadFile(d.file(name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read state: %w", err)
	}
	var head struct {
		Schema int `json:"schema"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return true, d.damaged(name, "it is not JSON")
	}
	if head.Schema != stateSchema {
		return true, fault(ExitConflict,
			"run the version of overlayd that wrote it, or choose another --state-dir",
			"%s has schema %d, this overlayd reads %d", d.file(name), head.Schema, stateSchema)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		// the decoder's words may quote a secret
		return true, d.damaged(name, "a field is missing, unknown or malformed")
	}
	return true, nil
}

func (d stateDir) writeJSON(name string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	return d.write(name, append(b, '\n'))
}

// write replaces a file so that after a power cut either the old or the new one
// is there, whole.
func (d stateDir) write(name string, b []byte) error {
	f, err := os.CreateTemp(d.path, "."+name+"-")
	if err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	defer os.Remove(f.Name()) // fails after the rename, as it should
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), d.file(name))
	}
	if err == nil {
		err = syncDir(d.path)
	}
	if err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	return nil
}

func (d stateDir) damaged(name, why string) error {
	hint := "restore it from a backup, or move it away and join again with a new invite"
	switch name {
	case insideFile:
		hint = "move it away: it is made anew, of what the network is now"
	case waysFile:
		hint = "move it away, and set up proxy and forwards anew"
	case mapFile:
		hint = "move it away: the coordinator sends a new one"
	case hubFile:
		hint = "restore it from a backup: without it every node has to join again"
	}
	return fault(ExitFailure, hint, "%s is damaged: %s; it was left as it is", d.file(name), why)
}

// open makes the directory when it is not there, checks that it is ours, and
// takes its lock. The returned function gives the lock back.
func (d stateDir) open() (unlock func(), err error) {
	if err := os.MkdirAll(d.path, 0o700); err != nil {
		return nil, permissionFault(err, "make state directory %s", d.path)
	}
	if err := checkOwner(d.path); err != nil {
		return nil, err
	}
	d.sweep()
	return lockDir(d.path, d.file(lockFile))
}

// has reports whether a file is there.
func (d stateDir) has(name string) (bool, error) {
	switch _, err := os.Stat(d.file(name)); {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	default:
		return false, fmt.Errorf("read state: %w", err)
	}
}

// forget removes a file that turned out to be worth nothing.
func (d stateDir) forget(name string) { os.Remove(d.file(name)) }

// sweep removes temporary files that a crash left behind.
func (d stateDir) sweep() {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return
	}
	for _, e := range entries {
		for _, name := range []string{identityFile, mapFile, hubFile, waysFile, endFile} {
			if strings.HasPrefix(e.Name(), "."+name+"-") {
				os.Remove(d.file(e.Name()))
			}
		}
	}
}

func permissionFault(err error, format string, args ...any) error {
	what := fmt.Sprintf(format, args...)
	if errors.Is(err, fs.ErrPermission) {
		return fault(ExitPermission, "run it as root", "%s: permission denied", what)
	}
	return fmt.Errorf("%s: %w", what, err)
}
