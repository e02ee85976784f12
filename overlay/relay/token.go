package relay

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"time"

	"overlayd/overlay/key"
)

const (
	// tokenLife is how long an answer to a challenge may take.
	tokenLife = 10 * time.Second
	// tokenKeyLife is how long tokens are made with one key; they are recognised
	// for as long again. At least tokenLife.
	tokenKeyLife = time.Minute
)

// tokens makes and recognises the tokens of CHALLENGE. None is stored.
type tokens struct {
	mu       sync.Mutex // guards all below
	current  key.Secret
	previous key.Secret
	rotateAt time.Duration // since the server's start, as all times here
}

func newTokens() *tokens {
	return &tokens{current: key.NewSecret(), previous: key.NewSecret(), rotateAt: tokenKeyLife}
}

// keys returns the keys of now, and replaces them when they are old.
func (t *tokens) keys(now time.Duration) (current, previous key.Secret) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now >= t.rotateAt {
		t.previous, t.current = t.current, key.NewSecret()
		if now >= t.rotateAt+tokenKeyLife { // nobody asked for a whole life: both are old
			t.previous = key.NewSecret()
		}
		t.rotateAt = now + tokenKeyLife
	}
	return t.current, t.previous
}

// make returns the token for an ATTACH with this nonce and ticket from src. By
// UDP it proves the address; in a call, where TCP has done that, it makes sure
// that an ATTACH which was recorded on another connection counts for nothing.
func (t *tokens) make(now time.Duration, src origin, f attach) (k token) {
	current, _ := t.keys(now)
	binary.LittleEndian.PutUint64(k[:], uint64(now))
	sum := tokenMAC(current, k, src, f)
	copy(k[8:], sum[:])
	return k
}

// made returns when an ATTACH's token was made, if it is one of ours for this
// very ATTACH and source, and young enough.
func (t *tokens) made(now time.Duration, src origin, f attach) (at time.Duration, ok bool) {
	current, previous := t.keys(now)
	at = time.Duration(binary.LittleEndian.Uint64(f.token[:]))
	if at < 0 || at > now || now-at > tokenLife {
		return 0, false
	}
	for _, k := range []key.Secret{current, previous} {
		sum := tokenMAC(k, f.token, src, f)
		if hmac.Equal(sum[:], f.token[8:]) {
			return at, true
		}
	}
	return 0, false
}

func tokenMAC(k key.Secret, t token, src origin, f attach) (m [macSize]byte) {
	h := hmac.New(sha256.New, k.Expose())
	p := src.place()
	h.Write(t[:8])
	h.Write(p[:])
	h.Write(f.nonce[:])
	h.Write(f.ticket[:])
	var sum [sha256.Size]byte
	copy(m[:], h.Sum(sum[:0]))
	return m
}
