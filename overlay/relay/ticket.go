package relay

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"time"

	"overlayd/overlay/key"
)

// Label is a node's number within its network: 1 to MaxLabel.
type Label uint32

// MaxLabel is the largest label: 24 bits, the room that a WireGuard message leaves.
const MaxLabel Label = 1<<24 - 1

// Network names the network that a node belongs to. Labels mean something
// within one network only.
type Network [16]byte

// String returns the network in hex.
func (n Network) String() string { return hex.EncodeToString(n[:]) }

// Ticket lets a node attach to a relay. The coordinator makes it, and hands it
// to the node together with the [SessionKey], which proves its possession.
type Ticket struct {
	Network  Network
	Label    Label
	NotAfter time.Time // to the second
	Serial   uint64    // grows with every ticket that the coordinator makes
}

// A ticket's layout, little endian:
//
//	0      version, 1
//	1..3   label
//	4..19  network
//	20..27 not after, Unix seconds
//	28..35 serial
const (
	ticketVersion = 1
	ticketSize    = 36
)

var errTicket = errors.New("not a relay ticket of a known version")

// Append appends the ticket's bytes to b.
func (t Ticket) Append(b []byte) []byte {
	b = append(b, ticketVersion, byte(t.Label), byte(t.Label>>8), byte(t.Label>>16))
	b = append(b, t.Network[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(t.NotAfter.Unix()))
	return binary.LittleEndian.AppendUint64(b, t.Serial)
}

// ParseTicket reads what Append wrote.
func ParseTicket(b []byte) (Ticket, error) {
	if len(b) != ticketSize || b[0] != ticketVersion {
		return Ticket{}, errTicket
	}
	t := Ticket{
		Label:    Label(binary.LittleEndian.Uint32(b) >> 8),
		Network:  Network(b[4:20]),
		NotAfter: time.Unix(int64(binary.LittleEndian.Uint64(b[20:])), 0),
		Serial:   binary.LittleEndian.Uint64(b[28:]),
	}
	if t.Label == 0 {
		return Ticket{}, errTicket
	}
	return t, nil
}

// SessionKey returns the key that goes with a ticket. The relay computes it
// from the ticket that a node shows, so it needs no list of nodes.
func SessionKey(relaySecret key.Secret, ticket []byte) key.Secret {
	h := hmac.New(sha256.New, relaySecret.Expose())
	h.Write(ticket)
	k, err := key.ParseSecret(h.Sum(nil))
	if err != nil {
		panic("internal error: " + err.Error()) // SHA-256 is as long as a secret
	}
	return k
}
