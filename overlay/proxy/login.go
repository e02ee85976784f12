package proxy

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
)

// shortestPassword is how long one has to be that a person chose.
const shortestPassword = 12

// longestPassword is what SOCKS can carry (RFC 1929).
const longestPassword = 255

// Login is a name with a password, of which only a salted hash is kept. It prints
// itself without.
type Login struct {
	name string
	salt [16]byte
	hash [sha256.Size]byte
}

// DefaultUser is the name when none is chosen.
const DefaultUser = "overlayd"

// NewLogin makes a login of a password, which clients give with the name.
func NewLogin(name, password string) (*Login, error) {
	if len(password) < shortestPassword || len(password) > longestPassword {
		return nil, fmt.Errorf("a password has %d to %d bytes", shortestPassword, longestPassword)
	}
	if name == "" || len(name) > longestPassword {
		return nil, errors.New("a login has a name of at most 255 bytes")
	}
	l := &Login{name: name}
	rand.Read(l.salt[:]) // never fails
	l.hash = l.sum(password)
	return l, nil
}

// NewPassword makes up a password of 26 characters, 130 bits.
func NewPassword() string { return rand.Text() }

func (l *Login) sum(password string) [sha256.Size]byte {
	return sha256.Sum256(append(l.salt[:], password...))
}

// matches reports whether name and password are right, in the same time whether
// or not.
func (l *Login) matches(name, password string) bool {
	hash := l.sum(password)
	right := subtle.ConstantTimeCompare(hash[:], l.hash[:])
	return right&subtle.ConstantTimeCompare([]byte(name), []byte(l.name)) == 1
}

// Name returns the name.
func (l *Login) Name() string { return l.name }

// Format implements fmt.Formatter.
func (l *Login) Format(s fmt.State, _ rune) { io.WriteString(s, "proxy.Login(hidden)") }

// Saved is a login as it is kept in a file that nobody else may read.
type Saved struct {
	Name string `json:"name"`
	Salt []byte `json:"salt"`
	Hash []byte `json:"hash"`
}

// Save returns it in the form for a file.
func (l *Login) Save() Saved { return Saved{Name: l.name, Salt: l.salt[:], Hash: l.hash[:]} }

// Load reads what Save wrote.
func (v Saved) Load() (*Login, error) {
	l := &Login{name: v.Name}
	if v.Name == "" || copy(l.salt[:], v.Salt) != len(l.salt) || len(v.Salt) != len(l.salt) ||
		copy(l.hash[:], v.Hash) != len(l.hash) || len(v.Hash) != len(l.hash) {
		return nil, errors.New("read login: it is malformed")
	}
	return l, nil
}
