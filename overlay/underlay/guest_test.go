package underlay

import (
	"testing"

	"golang.org/x/crypto/blake2s"

	"overlayd/overlay/key"
)

// TestAddressed: an initiation is for the key that this machine has now, also
// when it was replaced since.
func TestAddressed(t *testing.T) {
	first, second := key.NewPrivate(), key.NewPrivate()
	initiation := func(k key.Private) []byte {
		b := make([]byte, initiationSize)
		b[0] = typeInitiation
		public := k.Public()
		sum := blake2s.Sum256(append([]byte("mac1----"), public.Bytes()...))
		mac, err := blake2s.New128(sum[:])
		if err != nil {
			t.Fatal(err)
		}
		mac.Write(b[:initiationMAC1])
		copy(b[initiationMAC1:], mac.Sum(nil))
		return b
	}
	b := New(Options{Key: first})
	r := newGuestReceiver(b, nil)
	check := func(when string, k key.Private, want bool) {
		t.Helper()
		if got := r.addressed(initiation(k)); got != want {
			t.Errorf("%s: %t, want %t", when, got, want)
		}
	}
	check("this machine's key", first, true)
	check("another key", second, false)
	b.SetKey(second)
	check("the new key", second, true)
	check("the old key", first, false)
	if spoiled := initiation(second); r.addressed(spoiled[:initiationSize-1]) || newGuestReceiver(New(Options{}), nil).addressed(spoiled) {
		t.Error("what is short, or for a machine without a key, is taken")
	}
}
