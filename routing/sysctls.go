package routing

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

// kindSysctl is the kind of our notes in the journal.
const kindSysctl = "sysctl"

// redirectsKey is a switch that the kernel turns off when forwarding is turned
// on, and on when it is turned off.
const redirectsKey = "net/ipv4/conf/all/accept_redirects"

// sysctls changes values of /proc/sys such that they can be put back.
type sysctls struct {
	journal Journal
	values  values
	did     func(act string) // told of what was put back; nil: nobody is
}

func (s sysctls) done(f sysctl) {
	if s.did != nil {
		s.did(f.line(""))
	}
}

// values is /proc/sys, or a test's picture of it.
type values interface {
	Read(key string) (string, error)
	Write(key, value string) error
	Links() ([]string, error) // that have IPv4 settings, without "all" and "default"
}

// set gives a key a value, and notes the old one first.
func (s sysctls) set(f sysctl) error {
	old, err := s.values.Read(f.key)
	if err != nil {
		return err
	}
	if old == f.value {
		return nil
	}
	if f.key == forwardKey {
		if err := s.noteForward(); err != nil {
			return err
		}
	}
	if err := s.journal.Note(kindSysctl, f.key, old, f.value); err != nil {
		return err
	}
	return s.values.Write(f.key, f.value)
}

// original returns the value that a key would have without us.
func (s sysctls) original(key string) (string, error) {
	now, err := s.values.Read(key)
	if old, new, ok := s.journal.Noted(kindSysctl, key); ok && now == new {
		return old, err
	}
	return now, err
}

// forwardKeys returns the keys that change with forwardKey.
func (s sysctls) forwardKeys() ([]string, error) {
	links, err := s.values.Links()
	if err != nil {
		return nil, err
	}
	keys := []string{redirectsKey}
	for _, l := range append([]string{"default"}, links...) {
		keys = append(keys, confKey(l, "forwarding"))
	}
	return keys, nil
}

// forwardDefault is the value that the kernel gives one of forwardKeys when
// forwarding is turned on or off.
func forwardDefault(key string, on bool) string {
	if on == (key != redirectsKey) {
		return "1"
	}
	return "0"
}

// noteForward notes those values that turning forwarding on changes and turning
// it off would not bring back.
func (s sysctls) noteForward() error {
	keys, err := s.forwardKeys()
	if err != nil {
		return err
	}
	for _, key := range keys {
		old, err := s.values.Read(key)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a link that is gone meanwhile
		}
		if err != nil {
			return err
		}
		if old != forwardDefault(key, false) {
			if err := s.journal.Note(kindSysctl, key, old, forwardDefault(key, true)); err != nil {
				return err
			}
		}
	}
	return nil
}

// restore puts back every noted value that keep does not want and that still is
// as we wrote it. It tries all of them, and returns every error.
func (s sysctls) restore(keep func(key string) bool) error {
	if !keep(forwardKey) {
		if err := s.restoreForward(); err != nil {
			return err // what turns with it would be restored too early
		}
	}
	var errs []error
	for _, key := range s.journal.Keys(kindSysctl) {
		if keep(key) || keep(forwardKey) && s.turnsWithForward(key) {
			continue
		}
		errs = append(errs, s.restoreOne(key))
	}
	return errors.Join(errs...)
}

// turnsWithForward says that the note of key must outlive that of forwardKey.
func (s sysctls) turnsWithForward(key string) bool {
	_, _, noted := s.journal.Noted(kindSysctl, forwardKey)
	return noted && (key == redirectsKey || strings.HasSuffix(key, "/forwarding"))
}

// restoreForward turns forwarding back, but not the values that turn with it and
// that somebody changed since, or that the journal says more of.
func (s sysctls) restoreForward() error {
	old, new, ok := s.journal.Noted(kindSysctl, forwardKey)
	if !ok {
		return nil
	}
	now, err := s.values.Read(forwardKey)
	if err == nil && now == new {
		if err = s.turnForward(old); err == nil {
			s.done(sysctl{forwardKey, old})
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &Error{Act: sysctl{forwardKey, old}.line(""), Err: err}
	}
	return s.journal.Forget(kindSysctl, forwardKey)
}

// turnForward writes forwardKey, and writes back those of the values that turn
// with it which were not as turning had left them.
func (s sysctls) turnForward(value string) error {
	keys, err := s.forwardKeys()
	if err != nil {
		return err
	}
	before := make(map[string]string)
	for _, key := range keys {
		v, err := s.values.Read(key)
		_, _, noted := s.journal.Noted(kindSysctl, key)
		if err == nil && (noted || v != forwardDefault(key, true)) {
			before[key] = v
		}
	}
	if err := s.values.Write(forwardKey, value); err != nil {
		return err
	}
	for key, v := range before {
		if err := s.values.Write(key, v); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	return nil
}

// restoreOne puts back a noted value if it still is as we wrote it.
func (s sysctls) restoreOne(key string) error {
	old, new, ok := s.journal.Noted(kindSysctl, key)
	if !ok {
		return nil
	}
	now, err := s.values.Read(key)
	if err == nil && now == new && now != old {
		if err = s.values.Write(key, old); err == nil {
			s.done(sysctl{key, old})
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // its link may be gone
		return &Error{Act: sysctl{key, old}.line(""), Err: err}
	}
	return s.journal.Forget(kindSysctl, key)
}

// ofLink says that a key is a setting of link, and vanishes with it.
func ofLink(key, link string) bool {
	return strings.HasPrefix(key, "net/ipv4/conf/"+link+"/")
}
