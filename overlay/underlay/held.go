package underlay

import (
	"slices"
	"time"
)

const (
	// heldMost is how many datagrams wait for a way to one peer: a handshake
	// and the first packets of what comes after it.
	heldMost = 10
	// heldFor is how long they are worth sending: WireGuard makes a new
	// handshake after 5 s, and TCP has repeated its packet long before.
	heldFor = 5 * time.Second
)

// held are a peer's newest datagrams, oldest first, while there is no way.
type held []heldDatagram

type heldDatagram struct {
	at time.Time
	b  []byte // our own copy
}

// add keeps a copy of p and returns how many older datagrams gave way: a
// handshake message takes the place of the one before it.
func (h *held) add(now time.Time, p []byte) (dropped int) {
	before := len(*h)
	if p[0] == typeInitiation || p[0] == typeResponse {
		*h = slices.DeleteFunc(*h, func(d heldDatagram) bool { return d.b[0] == p[0] })
	}
	if over := len(*h) + 1 - heldMost; over > 0 {
		*h = slices.Delete(*h, 0, over)
	}
	*h = append(*h, heldDatagram{now, slices.Clone(p)})
	return before + 1 - len(*h)
}

// expire lets go of what has waited too long and returns how many that were.
func (h *held) expire(now time.Time) (dropped int) {
	before := len(*h)
	*h = slices.DeleteFunc(*h, func(d heldDatagram) bool { return now.Sub(d.at) > heldFor })
	if len(*h) == 0 {
		*h = nil
	}
	return before - len(*h)
}

// take returns all that waits, and keeps nothing.
func (h *held) take() [][]byte {
	var bufs [][]byte
	for _, d := range *h {
		bufs = append(bufs, d.b)
	}
	*h = nil
	return bufs
}
