package key

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

// TestSecretsStayHidden prints every secret in every way a program prints by
// accident, and looks for its bytes in any usual encoding.
func TestSecretsStayHidden(t *testing.T) {
	secrets := map[string]struct {
		value any
		bytes []byte
	}{}
	s, m, p := NewSecret(), NewMachine(), NewPrivate()
	add := func(name string, v any, b []byte) {
		secrets[name] = struct {
			value any
			bytes []byte
		}{v, b}
	}
	add("Secret", s, s.Expose())
	add("*Secret", &s, s.Expose())
	add("Machine", m, m.Expose())
	add("Private", p, p.Expose())
	add("struct", struct {
		K Private
		S *Secret
	}{p, &s}, p.Expose())
	add("unexported field", struct{ k Private }{p}, p.Expose())
	add("slice", []Machine{m}, m.Expose())
	add("map", map[string]Private{"k": p}, p.Expose())

	for name, secret := range secrets {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%08b", "%t", "%c", "%p"} {
				fmt.Fprintf(&out, verb+"\n", secret.value)
			}
			slog.New(slog.NewTextHandler(&out, nil)).Info("m", "secret", secret.value)
			slog.New(slog.NewJSONHandler(&out, nil)).Info("m", "secret", secret.value)
			if err := json.NewEncoder(&out).Encode(secret.value); err != nil {
				t.Fatal(err)
			}
			for _, leak := range []string{
				string(secret.bytes[:4]),
				hex.EncodeToString(secret.bytes[:4]),
				strings.ToUpper(hex.EncodeToString(secret.bytes[:4])),
				base64.StdEncoding.EncodeToString(secret.bytes[:6]),
				base64.URLEncoding.EncodeToString(secret.bytes[:6]),
				strings.Trim(fmt.Sprint(secret.bytes[:4]), "[]"),
			} {
				if strings.Contains(out.String(), leak) {
					t.Errorf("printed %q:\n%s", leak, out.String())
				}
			}
		})
	}
}

func TestTextForms(t *testing.T) {
	m, p := NewMachine().Public(), NewPrivate().Public()
	if got, err := ParseMachinePublic(m.String()); err != nil || got != m {
		t.Errorf("machine key: %v, %v", got, err)
	}
	if got, err := ParsePublic(p.String()); err != nil || got != p {
		t.Errorf("public key: %v, %v", got, err)
	}
	if got, err := ParsePublicHex(p.Hex()); err != nil || got != p {
		t.Errorf("public key in hex: %v, %v", got, err)
	}
	for _, bad := range []string{"", "mkey:", p.String(), m.String() + "A", m.String()[:20]} {
		if _, err := ParseMachinePublic(bad); err == nil {
			t.Errorf("ParseMachinePublic(%q) took it", bad)
		}
	}
	for _, bad := range []string{"", "AAAA", m.String(), p.String() + "="} {
		if _, err := ParsePublic(bad); err == nil {
			t.Errorf("ParsePublic(%q) took it", bad)
		}
	}
}

func TestShared(t *testing.T) {
	a, b := NewPrivate(), NewPrivate()
	ab, err := a.Shared(b.Public())
	if err != nil {
		t.Fatal(err)
	}
	ba, err := b.Shared(a.Public())
	if err != nil || !ab.Equal(ba) {
		t.Errorf("the two sides disagree (%v)", err)
	}
	if _, err := b.Shared(Public{}); err == nil {
		t.Error("took the all-zero point, which makes every secret zero (RFC 7748 section 6.1)")
	}
}

func TestExposeRoundTrips(t *testing.T) {
	m, p, s := NewMachine(), NewPrivate(), NewSecret()
	m2, err := ParseMachine(m.Expose())
	if err != nil || m2.Public() != m.Public() {
		t.Errorf("machine: %v", err)
	}
	p2, err := ParsePrivate(p.Expose())
	if err != nil || !p2.Equal(p) || p2.Public() != p.Public() {
		t.Errorf("private: %v", err)
	}
	s2, err := ParseSecret(s.Expose())
	if err != nil || !s2.Equal(s) || s2.IsZero() {
		t.Errorf("secret: %v", err)
	}
	for _, n := range []int{0, 31, 33} {
		if _, err := ParseMachine(make([]byte, n)); err == nil {
			t.Errorf("a machine key of %d bytes was taken", n)
		}
	}
}
