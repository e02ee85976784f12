package key

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// Size is the length in bytes of every key, secret and digest in this package.
const Size = 32

// errLength deliberately does not say what was read.
var errLength = errors.New("a key is 32 bytes")

// hidden keeps 32 bytes inside a function, because fmt asks no Formatter for
// %p, nor for an unexported field of somebody's struct, but never looks into a
// function. Functions do not compare with == either, which would not be
// constant time.
type hidden func() *[Size]byte // nil means zeros

func hide(b [Size]byte) hidden { return func() *[Size]byte { return &b } }

func random() hidden {
	var b [Size]byte
	rand.Read(b[:]) // never fails: crypto/rand aborts the program instead
	return hide(b)
}

func parse(b []byte) (hidden, error) {
	if len(b) != Size {
		return nil, errLength
	}
	return hide([Size]byte(b)), nil
}

// bytes returns a copy.
func (h hidden) bytes() []byte {
	b := make([]byte, Size)
	if h != nil {
		copy(b, h()[:])
	}
	return b
}

func (h hidden) equal(o hidden) bool { return subtle.ConstantTimeCompare(h.bytes(), o.bytes()) == 1 }

// Secret is 32 bytes known to two parties: an invite's secret, a relay's
// secret, a relay session's key.
type Secret struct{ h hidden }

// NewSecret makes a random secret.
func NewSecret() Secret { return Secret{random()} }

// ParseSecret takes the 32 bytes that Expose returned.
func ParseSecret(b []byte) (Secret, error) {
	h, err := parse(b)
	return Secret{h}, err
}

// Expose returns a copy of the secret's 32 bytes.
func (s Secret) Expose() []byte { return s.h.bytes() }

// Hash returns SHA-256 of the secret: what may be stored to recognise it later.
func (s Secret) Hash() [Size]byte { return sha256.Sum256(s.h.bytes()) }

// Equal compares in constant time.
func (s Secret) Equal(o Secret) bool { return s.h.equal(o.h) }

// IsZero reports whether the secret was never set.
func (s Secret) IsZero() bool { return s.Equal(Secret{}) }

// Format prints the same words for every secret and every verb.
func (Secret) Format(f fmt.State, _ rune) { io.WriteString(f, hiddenSecret) }

// LogValue keeps the secret out of slog.
func (Secret) LogValue() slog.Value { return slog.StringValue(hiddenSecret) }

// MarshalText keeps the secret out of JSON and YAML.
func (Secret) MarshalText() ([]byte, error) { return []byte(hiddenSecret), nil }

const hiddenSecret = "key.Secret(hidden)"
