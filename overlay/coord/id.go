package coord

import (
	"crypto/rand"
	"strings"
)

// idAlphabet has no letters that are taken for digits, and is in lower case.
const idAlphabet = "abcdefghjkmnpqrstuvwxyz23456789"

// maxID is the longest id that is taken from outside.
const maxID = 64

// newID returns a prefix and n random characters: 4.95 bits each, so ten make a
// clash among a million ids one in 1,600.
func newID(prefix string, n int) string {
	b := make([]byte, n)
	for i := 0; i < n; {
		var r [1]byte
		rand.Read(r[:])
		// 248 is the largest multiple of 31 in a byte: beyond it some
		// characters would be likelier than others.
		if r[0] < 248 {
			b[i] = idAlphabet[int(r[0])%len(idAlphabet)]
			i++
		}
	}
	return prefix + string(b)
}

// validID reports whether s could have come from this or another version's
// newID.
func validID(s string) bool {
	const chars = "abcdefghijklmnopqrstuvwxyz0123456789-"
	return s != "" && len(s) <= maxID && strings.Trim(s, chars) == ""
}
