package login

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"crypto/subtle"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
)

const (
	codeSpan   = 30 * time.Second // for which a code holds: RFC 6238's default, and all that most apps can
	codeDigits = 6
	codeMod    = 1_000_000 // 10 to the codeDigits
	codeBytes  = 20        // of a secret: as long as SHA-1's sum, see RFC 4226 section 4

	// codeSlack is how many spans a clock may be off, either way.
	codeSlack = 1
)

// Seed is the secret that a person's app and the coordinator share.
type Seed struct{ b []byte }

// NewSeed makes one.
func NewSeed() Seed {
	s := Seed{make([]byte, codeBytes)}
	rand.Read(s.b)
	return s
}

// ParseSeed takes what Expose gave.
func ParseSeed(b []byte) (Seed, error) {
	if len(b) != codeBytes {
		return Seed{}, errors.New("the seed of the codes is malformed")
	}
	return Seed{append([]byte(nil), b...)}, nil
}

// Expose returns the bytes, for the store.
func (s Seed) Expose() []byte { return s.b }

// IsZero reports whether there is none.
func (s Seed) IsZero() bool { return len(s.b) == 0 }

// Format keeps a seed out of logs under every verb.
func (Seed) Format(f fmt.State, _ rune) { fmt.Fprint(f, "login.Seed(hidden)") }

// Text is the seed as people type it into an app: base32.
func (s Seed) Text() string {
	return base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(s.b)
}

// URI is what a QR code for an app holds.
func (s Seed) URI(issuer, user string) string {
	q := url.Values{"secret": {s.Text()}, "issuer": {issuer}}
	return "otpauth://totp/" + url.PathEscape(issuer+":"+user) + "?" + strings.ReplaceAll(q.Encode(), "+", "%20")
}

// Code returns the code of a moment.
func (s Seed) Code(at time.Time) string { return s.code(span(at)) }

func span(at time.Time) int64 { return at.Unix() / int64(codeSpan/time.Second) }

// code is HOTP (RFC 4226) of a span's number.
func (s Seed) code(n int64) string {
	m := hmac.New(sha1.New, s.b)
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(n))
	m.Write(b[:])
	sum := m.Sum(nil)
	at := sum[len(sum)-1] & 0xf
	v := binary.BigEndian.Uint32(sum[at:]) & 0x7fffffff
	return fmt.Sprintf("%0*d", codeDigits, v%codeMod)
}

// Check reports whether a code is right now, and of which span it is: the caller
// keeps that, and hands it in as last, so that no code is taken twice. Spaces in
// the code do not count.
func (s Seed) Check(code string, now time.Time, last int64) (used int64, ok bool) {
	code = strings.ReplaceAll(code, " ", "")
	if s.IsZero() || len(code) != codeDigits {
		return last, false
	}
	here := span(now)
	for n := here - codeSlack; n <= here+codeSlack; n++ {
		if subtle.ConstantTimeCompare([]byte(s.code(n)), []byte(code)) == 1 && n > last {
			used, ok = n, true
		}
	}
	if !ok {
		return last, false
	}
	return used, true
}
