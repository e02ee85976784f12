package underlay

import (
	"crypto/rand"
	"net/netip"
	"testing"

	"golang.org/x/crypto/blake2s"

	"overlayd/overlay/key"
)

// initiation is an initiation that shows a key.
func initiation(k key.Public) []byte {
	b := make([]byte, initiationSize)
	rand.Read(b[4:initiationMAC1])
	b[0] = typeInitiation
	secret := blake2s.Sum256(append([]byte("mac1----"), k.Bytes()...))
	mac, err := blake2s.New128(secret[:])
	if err != nil {
		panic(err)
	}
	mac.Write(b[:initiationMAC1])
	copy(b[initiationMAC1:], mac.Sum(nil))
	return b
}

// TestAddressed: only an initiation with this machine's key goes on to WireGuard.
func TestAddressed(t *testing.T) {
	own := key.NewPrivate()
	r := newGuestReceiver(New(Options{Key: own}), nil)
	good := initiation(own.Public())
	for range 2 { // nothing is left of the one before
		if !r.addressed(good) {
			t.Error("one that shows the key is refused")
		}
	}
	if r.addressed(initiation(key.NewPrivate().Public())) {
		t.Error("one for another machine is taken")
	}
	for _, at := range []int{0, 4, initiationMAC1 - 1, initiationMAC1, initiationMAC2 - 1} {
		bad := append([]byte(nil), good...)
		bad[at] ^= 1
		if r.addressed(bad) {
			t.Errorf("one with another byte %d is taken", at)
		}
	}
	for _, n := range []int{0, 4, initiationMAC2, initiationSize - 1} {
		if r.addressed(good[:n]) {
			t.Errorf("one of %d bytes is taken", n)
		}
	}
	if newGuestReceiver(New(Options{}), nil).addressed(good) {
		t.Error("a machine without a key takes one")
	}
	next := key.NewPrivate()
	r.b.own.Store(&ownKey{next, next.Public()})
	if r.addressed(good) || !r.addressed(initiation(next.Public())) {
		t.Error("after a change of the key the old one counts")
	}
	if n := testing.AllocsPerRun(100, func() { r.addressed(good) }); n != 0 {
		t.Errorf("%.0f allocations", n)
	}
}

// TestGuestEndpoint: a source keeps its endpoint, and two never share one.
func TestGuestEndpoint(t *testing.T) {
	r := newGuestReceiver(New(Options{}), nil)
	at := netip.MustParseAddrPort("198.51.100.2:40000")
	g := r.guest(at)
	if r.guest(at) != g || g.DstToString() != "198.51.100.2:40000" || g.DstIP() != at.Addr() || len(g.DstToBytes()) != 6 {
		t.Errorf("%+v", g)
	}
	for port := range uint16(3 * guestsKnown) {
		if a := netip.AddrPortFrom(at.Addr(), port); r.guest(a).at != a {
			t.Fatalf("%s has the endpoint of %s", a, r.guest(a).at)
		}
	}
	if n := testing.AllocsPerRun(100, func() { r.guest(at) }); n != 0 {
		t.Errorf("%.0f allocations", n)
	}
}
