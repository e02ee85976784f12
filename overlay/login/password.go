package login

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/argon2"
)

// What a hash costs: 19 MiB and some 30 ms, which a small VPS has to spare a few
// times at once, and a guesser not a billion times.
const (
	hashMemory  = 19 << 10 // KiB
	hashTime    = 2
	hashThreads = 1
	saltBytes   = 16
	hashBytes   = 32
)

// What a hash that was read may cost at most, or a damaged one would stop the
// machine.
const (
	mostMemory  = 256 << 10 // KiB
	mostTime    = 16
	mostThreads = 16
)

const (
	// MinPassword is the fewest bytes of a password that somebody chose.
	MinPassword = 10
	// MaxPassword bounds the work on what strangers send.
	MaxPassword = 512
)

// Hash is what is kept of a password.
type Hash struct {
	memory, time uint32
	threads      uint8
	salt, sum    []byte
}

// NewHash hashes a password, with a salt of its own.
func NewHash(password string) Hash {
	h := Hash{memory: hashMemory, time: hashTime, threads: hashThreads, salt: make([]byte, saltBytes)}
	rand.Read(h.salt)
	h.sum = h.of(password, hashBytes)
	return h
}

func (h Hash) of(password string, size int) []byte {
	return argon2.IDKey([]byte(password), h.salt, h.time, h.memory, h.threads, uint32(size))
}

// Matches reports whether it is the hash of this password. It takes some tens of
// milliseconds, and the memory that the hash says.
func (h Hash) Matches(password string) bool {
	if len(h.sum) == 0 || len(password) > MaxPassword {
		return false
	}
	return subtle.ConstantTimeCompare(h.of(password, len(h.sum)), h.sum) == 1
}

// Encode writes the hash with its parameters, as ParseHash reads it.
func (h Hash) Encode() string {
	b64 := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, h.memory, h.time, h.threads, b64(h.salt), b64(h.sum))
}

// Format keeps a hash out of logs under every verb.
func (Hash) Format(f fmt.State, _ rune) { fmt.Fprint(f, "login.Hash(hidden)") }

var errHash = errors.New("the hash of a password is malformed")

// ParseHash reads what Encode wrote.
func ParseHash(s string) (Hash, error) {
	parts := strings.Split(s, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return Hash{}, errHash
	}
	var h Hash
	if n, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &h.memory, &h.time, &h.threads); n != 3 || err != nil {
		return Hash{}, errHash
	}
	var err1, err2 error
	h.salt, err1 = base64.RawStdEncoding.Strict().DecodeString(parts[4])
	h.sum, err2 = base64.RawStdEncoding.Strict().DecodeString(parts[5])
	if err1 != nil || err2 != nil || len(h.salt) < 8 || len(h.salt) > 64 || len(h.sum) < 16 || len(h.sum) > 64 {
		return Hash{}, errHash
	}
	if h.memory < 8 || h.memory > mostMemory || h.time < 1 || h.time > mostTime || h.threads < 1 || h.threads > mostThreads || h.Encode() != s {
		return Hash{}, errHash
	}
	return h, nil
}

// passwordAlphabet has no letters that are taken for others.
const passwordAlphabet = "abcdefghjkmnpqrstuvwxyz23456789"

// NewPassword makes up a password: twenty characters of 4.95 bits in groups of
// five, that can be read to somebody by telephone.
func NewPassword() string {
	var b strings.Builder
	for n := 0; n < 20; {
		var r [1]byte
		rand.Read(r[:])
		if r[0] >= 248 { // the largest multiple of 31 in a byte: beyond it some would be likelier
			continue
		}
		if n > 0 && n%5 == 0 {
			b.WriteByte('-')
		}
		b.WriteByte(passwordAlphabet[int(r[0])%len(passwordAlphabet)])
		n++
	}
	return b.String()
}

// CheckPassword says what is wrong with a password that somebody chose.
func CheckPassword(s string) error {
	switch {
	case len(s) < MinPassword:
		return fmt.Errorf("the password is shorter than %d characters", MinPassword)
	case len(s) > MaxPassword:
		return fmt.Errorf("the password is longer than %d bytes", MaxPassword)
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return errors.New("the password has control characters in it")
	}
	return nil
}
