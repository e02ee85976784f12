package key

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
)

// Pin names a TLS server by its public key: SHA-256 of the certificate's
// SubjectPublicKeyInfo (the pin of RFC 7469).
type Pin struct{ b [Size]byte }

// PinOf returns the pin of a certificate's public key.
func PinOf(cert *x509.Certificate) Pin {
	return Pin{sha256.Sum256(cert.RawSubjectPublicKeyInfo)}
}

// ParsePin reads the form that String writes.
func ParsePin(s string) (Pin, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != Size {
		return Pin{}, fmt.Errorf("%q is not a key fingerprint", s)
	}
	return Pin{[Size]byte(b)}, nil
}

// IsZero reports whether the pin was never set.
func (p Pin) IsZero() bool { return p == Pin{} }

// String returns unpadded URL-safe base64, 43 characters.
func (p Pin) String() string { return base64.RawURLEncoding.EncodeToString(p.b[:]) }

// MarshalText is String.
func (p Pin) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText is ParsePin.
func (p *Pin) UnmarshalText(b []byte) (err error) {
	*p, err = ParsePin(string(b))
	return err
}
