package routing

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// memory is a Journal in memory that fails when it is asked to.
type memory struct {
	notes []note
	fail  error
}

type note struct{ kind, key, old, new string }

func (m *memory) find(kind, key string) int {
	return slices.IndexFunc(m.notes, func(n note) bool { return n.kind == kind && n.key == key })
}

func (m *memory) Note(kind, key, old, new string) error {
	if m.fail != nil {
		return m.fail
	}
	if i := m.find(kind, key); i >= 0 {
		m.notes[i].new = new
	} else {
		m.notes = append(m.notes, note{kind, key, old, new})
	}
	return nil
}

func (m *memory) Noted(kind, key string) (old, new string, ok bool) {
	if i := m.find(kind, key); i >= 0 {
		return m.notes[i].old, m.notes[i].new, true
	}
	return "", "", false
}

func (m *memory) Keys(kind string) (keys []string) {
	for _, n := range m.notes {
		keys = append(keys, n.key)
	}
	return keys
}

func (m *memory) Forget(kind, key string) error {
	if i := m.find(kind, key); i >= 0 {
		m.notes = slices.Delete(m.notes, i, i+1)
	}
	return nil
}

// fakeSys is a /proc/sys that turns what the kernel turns with ip_forward.
type fakeSys map[string]string

func (f fakeSys) Read(key string) (string, error) {
	v, ok := f[key]
	if !ok {
		return "", fs.ErrNotExist
	}
	return v, nil
}

func (f fakeSys) Write(key, value string) error {
	if _, ok := f[key]; !ok {
		return fs.ErrNotExist
	}
	if key == forwardKey && f[key] != value {
		for k := range f {
			if strings.HasSuffix(k, "/forwarding") || k == redirectsKey {
				f[k] = forwardDefault(k, value == "1")
			}
		}
	}
	f[key] = value
	return nil
}

func (f fakeSys) Links() ([]string, error) { return []string{"eth0", "eth1"}, nil }

func plainHost() fakeSys {
	return fakeSys{
		forwardKey: "0", redirectsKey: "1",
		confKey("default", "forwarding"): "0", confKey("eth0", "forwarding"): "0", confKey("eth1", "forwarding"): "0",
		confKey("eth0", "rp_filter"): "1",
	}
}

func TestSysctlsComeBack(t *testing.T) {
	with := func(kv ...string) fakeSys {
		s := plainHost()
		for i := 0; i < len(kv); i += 2 {
			s[kv[i]] = kv[i+1]
		}
		return s
	}
	wish := []sysctl{{forwardKey, "1"}, {confKey("eth0", "forwarding"), "1"}, {confKey("eth0", "rp_filter"), "2"}}
	for _, tt := range []struct {
		name      string
		before    fakeSys
		meanwhile func(fakeSys)
		want      func(fakeSys) // changes before into what must be there after
	}{
		{"a plain host", with(), nil, nil},
		{"a router already", with(forwardKey, "1", redirectsKey, "0", confKey("eth0", "forwarding"), "1"), nil, nil},
		{"a router, but not on that link", with(forwardKey, "1", redirectsKey, "0"), nil, nil},
		{"redirects refused", with(redirectsKey, "0"), nil, nil},
		{"one link forwards by itself", with(confKey("eth1", "forwarding"), "1"), nil, nil},
		{"changed by somebody since", with(),
			func(s fakeSys) { s[confKey("eth0", "rp_filter")] = "0" },
			func(s fakeSys) { s[confKey("eth0", "rp_filter")] = "0" }},
		{"turned off by somebody since", with(redirectsKey, "0"),
			func(s fakeSys) { s.Write(forwardKey, "0") },
			func(s fakeSys) { s[redirectsKey] = "1" }},
		{"a link gone since", with(),
			func(s fakeSys) { delete(s, confKey("eth0", "rp_filter")) },
			func(s fakeSys) { delete(s, confKey("eth0", "rp_filter")) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sys, want := maps.Clone(tt.before), maps.Clone(tt.before)
			s := sysctls{journal: &memory{}, values: sys}
			for range 2 { // applied again, nothing more is noted
				for _, f := range wish {
					if err := s.set(f); err != nil {
						t.Fatal(err)
					}
				}
			}
			for _, f := range wish {
				if sys[f.key] != f.value {
					t.Errorf("%s is %s", f.key, sys[f.key])
				}
			}
			if tt.meanwhile != nil {
				tt.meanwhile(sys)
				tt.want(want)
			}
			if err := s.restore(func(string) bool { return false }); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, sys); diff != "" {
				t.Error(diff)
			}
			if keys := s.journal.Keys(kindSysctl); len(keys) > 0 {
				t.Errorf("still noted: %v", keys)
			}
		})
	}
}

// TestSysctlsKept drops one wish of two: the other's notes stay.
func TestSysctlsKept(t *testing.T) {
	sys := plainHost()
	sys[confKey("eth1", "forwarding")] = "1"
	before := maps.Clone(sys)
	s := sysctls{journal: &memory{}, values: sys}
	for _, f := range []sysctl{{forwardKey, "1"}, {confKey("eth0", "rp_filter"), "2"}} {
		if err := s.set(f); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.restore(func(key string) bool { return key == forwardKey }); err != nil {
		t.Fatal(err)
	}
	if sys[forwardKey] != "1" || sys[confKey("eth0", "rp_filter")] != "1" {
		t.Errorf("after dropping one: %v", sys)
	}
	if err := s.restore(func(string) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, sys); diff != "" {
		t.Error(diff)
	}
}

// TestNothingChangesUnnoted breaks the journal: then no value may change.
func TestNothingChangesUnnoted(t *testing.T) {
	sys := plainHost()
	full := errors.New("disk full")
	s := sysctls{journal: &memory{fail: full}, values: sys}
	if err := s.set(sysctl{forwardKey, "1"}); !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
	if diff := cmp.Diff(plainHost(), sys); diff != "" {
		t.Error(diff)
	}
}

func TestErrorHints(t *testing.T) {
	err := fmt.Errorf("apply: %w", &Error{Act: "route add 192.168.1.0/24 dev ovl0", Err: fs.ErrPermission})
	if got := err.Error(); got != "apply: route add 192.168.1.0/24 dev ovl0: permission denied" {
		t.Error(got)
	}
	var h interface{ Hint() string }
	if !errors.As(err, &h) || h.Hint() == "" {
		t.Error("no hint")
	}
}
