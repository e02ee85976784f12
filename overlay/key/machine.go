package key

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// Machine is a node's identity, an Ed25519 private key made at the node's
// first start.
type Machine struct{ h hidden } // the seed of RFC 8032

// NewMachine makes a random machine key.
func NewMachine() Machine { return Machine{random()} }

// ParseMachine takes the 32 bytes that Expose returned.
func ParseMachine(b []byte) (Machine, error) {
	h, err := parse(b)
	return Machine{h}, err
}

// Expose returns a copy of the key's 32-byte seed.
func (k Machine) Expose() []byte { return k.h.bytes() }

// Public returns the public half.
func (k Machine) Public() MachinePublic {
	return MachinePublic{[Size]byte(k.Signer().Public().(ed25519.PublicKey))}
}

// Signer returns the key in the form that crypto packages take. It holds the
// secret: hand it over, never store or print it.
func (k Machine) Signer() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(k.h.bytes()) }

// Format prints the same words for every key and every verb.
func (Machine) Format(f fmt.State, _ rune) { io.WriteString(f, hiddenMachine) }

// LogValue keeps the key out of slog.
func (Machine) LogValue() slog.Value { return slog.StringValue(hiddenMachine) }

// MarshalText keeps the key out of JSON and YAML.
func (Machine) MarshalText() ([]byte, error) { return []byte(hiddenMachine), nil }

const hiddenMachine = "key.Machine(hidden)"

// machinePrefix starts the text form of a public machine key, so that it is not
// taken for a WireGuard key.
const machinePrefix = "mkey:"

// MachinePublic is the public half of a [Machine] key.
type MachinePublic struct{ b [Size]byte }

// MachinePublicFromBytes takes the 32 bytes of an Ed25519 public key.
func MachinePublicFromBytes(b []byte) (MachinePublic, error) {
	if len(b) != Size {
		return MachinePublic{}, errLength
	}
	return MachinePublic{[Size]byte(b)}, nil
}

// ParseMachinePublic reads the form that String writes.
func ParseMachinePublic(s string) (MachinePublic, error) {
	rest, ok := strings.CutPrefix(s, machinePrefix)
	b, err := base64.RawURLEncoding.Strict().DecodeString(rest)
	if !ok || err != nil || len(b) != Size {
		return MachinePublic{}, fmt.Errorf("%q is not a public machine key", s)
	}
	return MachinePublic{[Size]byte(b)}, nil
}

// Bytes returns the key's 32 bytes.
func (p MachinePublic) Bytes() []byte { return p.b[:] }

// Ed25519 returns the key in the form that crypto packages take.
func (p MachinePublic) Ed25519() ed25519.PublicKey { return ed25519.PublicKey(p.b[:]) }

// IsZero reports whether the key was never set.
func (p MachinePublic) IsZero() bool { return p == MachinePublic{} }

// String returns "mkey:" and unpadded URL-safe base64.
func (p MachinePublic) String() string {
	return machinePrefix + base64.RawURLEncoding.EncodeToString(p.b[:])
}

// MarshalText is String.
func (p MachinePublic) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText is ParseMachinePublic.
func (p *MachinePublic) UnmarshalText(b []byte) (err error) {
	*p, err = ParseMachinePublic(string(b))
	return err
}
