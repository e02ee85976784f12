package publish

import (
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestSeal(t *testing.T) {
	e, now := Exposure{ID: "e1", Secret: []byte("secret")}, time.Unix(1e9, 0)
	s := e.seal("u1", now)
	if user, at, ok := e.unseal(s, now.Add(time.Hour)); !ok || user != "u1" || !at.Equal(now) {
		t.Errorf("%q, %v, %v", user, at, ok)
	}
	other := e
	other.ID = "e2"
	for name, ok := range map[string]bool{
		"too late":         second(e.unseal(s, now.Add(LoginFor))),
		"from the future":  second(e.unseal(s, now.Add(-time.Hour))),
		"another exposure": second(other.unseal(s, now)),
		"another user":     second(e.unseal(strings.Replace(s, "u1", "u2", 1), now)),
		"no secret":        second((&Exposure{ID: "e1"}).unseal((&Exposure{ID: "e1"}).seal("u1", now), now)),
	} {
		if ok {
			t.Errorf("%s: is taken", name)
		}
	}
}

func second(_ string, _ time.Time, ok bool) bool { return ok }

func FuzzUnseal(f *testing.F) {
	e, now := Exposure{ID: "e1", Secret: []byte("secret")}, time.Unix(1e9, 0)
	good := e.seal("u1", now)
	for _, s := range []string{good, "..", "u1.1000000000.", "u1.x.AAAA", ""} {
		f.Add(s)
	}
	f.Add(good[:len(good)-9] + "\n" + good[len(good)-9:]) // base64 leaves out the ends of lines
	f.Fuzz(func(t *testing.T, s string) {
		if _, _, ok := e.unseal(s, now); ok && s != good {
			t.Errorf("%q is taken", s)
		}
	})
}

func FuzzIsLocal(f *testing.F) {
	for _, s := range []string{"/", "/a?b=c", "//evil", "/\\evil", "https://evil", "/\t/evil", "", "/.overlayd/login"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !isLocal(s) {
			return
		}
		base := &url.URL{Scheme: "https", Host: "here.example"}
		if to, err := base.Parse(s); err == nil && (to.Host != "here.example" || to.Scheme != "https") {
			t.Errorf("%q leads to %s", s, to)
		}
	})
}
