package key

import (
	"crypto/ecdh"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
)

// Private is a WireGuard private key (X25519, RFC 7748).
type Private struct{ h hidden }

// NewPrivate makes a random WireGuard key, clamped as the wg tool does.
func NewPrivate() Private {
	h := random()
	b := h()
	b[0] &= 248
	b[31] = b[31]&127 | 64
	return Private{h}
}

// ParsePrivate takes the 32 bytes that Expose returned.
func ParsePrivate(b []byte) (Private, error) {
	h, err := parse(b)
	return Private{h}, err
}

// Expose returns a copy of the key's 32 bytes.
func (k Private) Expose() []byte { return k.h.bytes() }

// Equal compares in constant time.
func (k Private) Equal(o Private) bool { return k.h.equal(o.h) }

// Public returns the public half.
func (k Private) Public() Public {
	return Public{[Size]byte(k.ecdh().PublicKey().Bytes())}
}

// Shared returns the X25519 secret of this key and a peer's. It fails for the
// peer keys of low order that RFC 7748 section 6.1 warns of.
func (k Private) Shared(p Public) (Secret, error) {
	pub, err := ecdh.X25519().NewPublicKey(p.b[:])
	if err != nil {
		return Secret{}, err
	}
	b, err := k.ecdh().ECDH(pub)
	if err != nil {
		return Secret{}, err
	}
	return ParseSecret(b)
}

func (k Private) ecdh() *ecdh.PrivateKey {
	priv, err := ecdh.X25519().NewPrivateKey(k.h.bytes())
	if err != nil {
		panic("internal error: X25519 takes any 32 bytes")
	}
	return priv
}

// Format prints the same words for every key and every verb.
func (Private) Format(f fmt.State, _ rune) { io.WriteString(f, hiddenPrivate) }

// LogValue keeps the key out of slog.
func (Private) LogValue() slog.Value { return slog.StringValue(hiddenPrivate) }

// MarshalText keeps the key out of JSON and YAML.
func (Private) MarshalText() ([]byte, error) { return []byte(hiddenPrivate), nil }

const hiddenPrivate = "key.Private(hidden)"

// Public is a WireGuard public key. Its text form is the one of the wg tool:
// padded standard base64.
type Public struct{ b [Size]byte }

// PublicFromBytes takes the 32 bytes of an X25519 public key.
func PublicFromBytes(b []byte) (Public, error) {
	if len(b) != Size {
		return Public{}, errLength
	}
	return Public{[Size]byte(b)}, nil
}

// ParsePublic reads the form that String writes.
func ParsePublic(s string) (Public, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != Size {
		return Public{}, fmt.Errorf("%q is not a WireGuard public key", s)
	}
	return Public{[Size]byte(b)}, nil
}

// ParsePublicHex reads the form that Hex writes.
func ParsePublicHex(s string) (Public, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != Size {
		return Public{}, fmt.Errorf("%q is not a WireGuard public key", s)
	}
	return Public{[Size]byte(b)}, nil
}

// Bytes returns the key's 32 bytes.
func (p Public) Bytes() []byte { return p.b[:] }

// IsZero reports whether the key was never set.
func (p Public) IsZero() bool { return p == Public{} }

// String returns padded standard base64, as wg prints it.
func (p Public) String() string { return base64.StdEncoding.EncodeToString(p.b[:]) }

// Short returns the first eight characters of String, for logs.
func (p Public) Short() string { return p.String()[:8] }

// Hex returns lower-case hexadecimal, as WireGuard's configuration protocol
// wants it.
func (p Public) Hex() string { return hex.EncodeToString(p.b[:]) }

// MarshalText is String.
func (p Public) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText is ParsePublic.
func (p *Public) UnmarshalText(b []byte) (err error) {
	*p, err = ParsePublic(string(b))
	return err
}
