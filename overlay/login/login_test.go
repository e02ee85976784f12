package login

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestHash(t *testing.T) {
	h := NewHash("correct horse")
	back, err := ParseHash(h.Encode())
	if err != nil {
		t.Fatal(err)
	}
	for password, want := range map[string]bool{"correct horse": true, "Correct horse": false, "": false, strings.Repeat("x", MaxPassword+1): false} {
		if got := back.Matches(password); got != want {
			t.Errorf("%q matches: %v", password, got)
		}
	}
	if (Hash{}).Matches("") {
		t.Error("no hash matches no password")
	}
	if NewHash("correct horse").Encode() == h.Encode() {
		t.Error("two hashes of one password are the same")
	}
	for _, v := range []string{"%v", "%s", "%q", "%#v"} {
		if s := fmt.Sprintf(v, h); !strings.Contains(s, "hidden") {
			t.Errorf("%s shows a hash: %s", v, s)
		}
	}
}

func TestParseHashRefuses(t *testing.T) {
	good := NewHash("correct horse").Encode()
	for name, s := range map[string]string{
		"nothing":          "",
		"another function": strings.Replace(good, "argon2id", "argon2i", 1),
		"another version":  strings.Replace(good, "v=19", "v=16", 1),
		"too much memory":  strings.Replace(good, "m=19456", "m=4000000", 1),
		"no threads":       strings.Replace(good, "p=1", "p=0", 1),
		"too long":         good + "$x",
		"words after":      strings.Replace(good, "p=1", "p=1 ", 1),
		"no sum":           good[:strings.LastIndexByte(good, '$')+1],
	} {
		if _, err := ParseHash(s); err == nil {
			t.Errorf("%s: %s is taken", name, s)
		}
	}
}

func FuzzParseHash(f *testing.F) {
	f.Add(NewHash("correct horse").Encode())
	f.Add("$argon2id$v=19$m=8,t=1,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA")
	f.Add("$argon2id$v=19$m=,t=,p=$$")
	f.Fuzz(func(t *testing.T, s string) {
		h, err := ParseHash(s)
		if err == nil && h.Encode() != s {
			t.Errorf("%q is read as %q", s, h.Encode())
		}
	})
}

func TestPasswords(t *testing.T) {
	p := NewPassword()
	if err := CheckPassword(p); err != nil || len(p) != 23 || p == NewPassword() {
		t.Errorf("made up: %q, %v", p, err)
	}
	for _, bad := range []string{"", "short", "tab\tin the middle", strings.Repeat("x", MaxPassword+1)} {
		if CheckPassword(bad) == nil {
			t.Errorf("%.20q is taken", bad)
		}
	}
}

// The examples of RFC 6238, appendix B, cut to six digits.
func TestCode(t *testing.T) {
	s, err := ParseSeed([]byte("12345678901234567890"))
	if err != nil {
		t.Fatal(err)
	}
	for at, want := range map[int64]string{59: "287082", 1111111109: "081804", 1111111111: "050471", 1234567890: "005924", 2000000000: "279037", 20000000000: "353130"} {
		if got := s.Code(time.Unix(at, 0)); got != want {
			t.Errorf("at %d: %s, want %s", at, got, want)
		}
	}
}

func TestCheck(t *testing.T) {
	s, now := NewSeed(), time.Unix(1_000_000_000, 0)
	code := s.Code(now)
	used, ok := s.Check(code[:3]+" "+code[3:], now, 0)
	if !ok || used != span(now) {
		t.Fatalf("%d, %v", used, ok)
	}
	for name, c := range map[string]struct {
		code string
		at   time.Time
		last int64
		want bool
	}{
		"again":            {code, now, used, false},
		"a slow clock":     {code, now.Add(codeSpan), 0, true},
		"a fast clock":     {code, now.Add(-codeSpan), 0, true},
		"too late":         {code, now.Add(2 * codeSpan), 0, false},
		"an older one":     {s.Code(now.Add(-codeSpan)), now, used, false},
		"the next":         {s.Code(now.Add(codeSpan)), now.Add(codeSpan), used, true},
		"nothing":          {"", now, 0, false},
		"too many digits":  {code + "0", now, 0, false},
		"somebody else's":  {NewSeed().Code(now) + "", now, 0, false},
		"letters":          {"abcdef", now, 0, false},
		"of another month": {s.Code(now.Add(-720 * time.Hour)), now, 0, false},
	} {
		if _, ok := s.Check(c.code, c.at, c.last); ok != c.want {
			t.Errorf("%s: %v", name, ok)
		}
	}
	if _, ok := (Seed{}).Check("000000", now, 0); ok {
		t.Error("without a seed a code is right")
	}
	if text := fmt.Sprintf("%v %+v %s %x", s, s, s, s); strings.Contains(text, s.Text()) || !strings.Contains(text, "hidden") {
		t.Errorf("a seed shows itself: %s", text)
	}
	if u := s.URI("overlayd vps", "alice"); u != "otpauth://totp/overlayd%20vps:alice?issuer=overlayd%20vps&secret="+s.Text() {
		t.Error(u)
	}
}

func FuzzCheck(f *testing.F) {
	s, now := NewSeed(), time.Unix(1_000_000_000, 0)
	f.Add("123456")
	f.Add("12 34 56")
	f.Add("")
	f.Fuzz(func(t *testing.T, code string) {
		used, ok := s.Check(code, now, 0)
		if ok && strings.ReplaceAll(code, " ", "") != s.code(used) {
			t.Errorf("%q is taken", code)
		}
	})
}
