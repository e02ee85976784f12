package relay

import (
	"crypto/rand"
	"net/netip"

	"overlayd/overlay/key"
)

// Inquiry asks a relay where it sees a datagram come from. It is an ATTACH that
// stops at the challenge: no session is made or moved, so it can be asked by any
// way, beside a session that goes another. It does no I/O.
type Inquiry struct {
	nonce  nonce
	ticket [ticketSize]byte
	key    key.Secret
}

// NewInquiry returns an inquiry by the owner of a ticket.
func NewInquiry(ticket []byte, k key.Secret) *Inquiry {
	q := &Inquiry{key: k}
	copy(q.ticket[:], ticket)
	rand.Read(q.nonce[:]) // never fails
	return q
}

// Frame returns the question, which may be sent several times.
func (q *Inquiry) Frame() []byte {
	return attach{nonce: q.nonce, ticket: q.ticket}.Append(make([]byte, 0, attachSize), q.key)
}

// Answer takes a control message. ok means that it is the relay's answer, and
// observed where the relay saw the question come from. A relay that knows nothing
// of the ticket's secret does not answer.
func (q *Inquiry) Answer(frame []byte) (observed netip.AddrPort, ok bool) {
	if frameType(frame) != frameChallenge {
		return netip.AddrPort{}, false
	}
	f := parseChallenge(frame)
	if f.nonce != q.nonce || !authentic(q.key, frame) {
		return netip.AddrPort{}, false
	}
	return f.observed, true
}
