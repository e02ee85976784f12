package relay

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"

	"overlayd/overlay/key"
)

// The first byte of every datagram on a relay's port:
//
//	1..4  WireGuard   bytes 1..3: label, little endian; to the relay the destination's,
//	9     peer probe              from the relay the source's; 0: the relay's own node
//	8     control     bytes 1..3: type, version, flags
//
// Control messages, version 1, flags 0; numbers are little endian. Every one but
// UNKNOWN ends with a MAC: HMAC-SHA256 under the session key over all that is
// before it, first 16 bytes. "→" is node to relay, "←" relay to node.
//
//	type          offset: field, bytes                                              total
//	1 → ATTACH    4: nonce 16 | 20: token 24, zeros at first | 44: ticket 36 | MAC     96
//	2 ← CHALLENGE 4: nonce 16 | 20: token 24 | 44: address 18 | MAC                     78
//	3 ← READY     4: nonce 16 | 20: boot 8 | 28: address 18 | 46: lease 2 | 48: keepalive 2 | MAC  66
//	4 → PING      4: session 8 | 12: count 8 | 20: zeros 26 | MAC                       62
//	5 ← PONG      4: session 8 | 12: count 8 | 20: address 18 | 38: boot 8 | MAC        62
//	6 ← UNKNOWN                                                                          4
//	7 ← GOAWAY    4: session 8 | 12: reason 2 | MAC                                     30
//
// nonce    chosen by the node for one try at attaching; its first 8 bytes name the session
// token    8 bytes time of making, 16 bytes MAC under a key only the relay has
// address  the node's address as the relay sees it: 16 bytes IPv6 or mapped IPv4, port 2
// boot     random per start of the relay
// lease    seconds after which a session without any PING is forgotten
// count    grows with every PING of a session; PONG repeats it
// reason   see Reason
//
// No answer is longer than what it answers: CHALLENGE, READY and GOAWAY than
// ATTACH, PONG than PING, UNKNOWN than any datagram that the relay forwards.
const (
	kindControl = 0x08
	kindProbe   = 0x09

	frameAttach    = 1
	frameChallenge = 2
	frameReady     = 3
	framePing      = 4
	framePong      = 5
	frameUnknown   = 6
	frameGoAway    = 7

	frameVersion = 1

	headerSize  = 4
	macSize     = 16
	nonceSize   = 16
	tokenSize   = 24
	addressSize = 18

	attachSize    = headerSize + nonceSize + tokenSize + ticketSize + macSize
	challengeSize = headerSize + nonceSize + tokenSize + addressSize + macSize
	readySize     = headerSize + nonceSize + 8 + addressSize + 2 + 2 + macSize
	pingSize      = headerSize + 8 + 8 + 26 + macSize
	pongSize      = headerSize + 8 + 8 + addressSize + 8 + macSize
	unknownSize   = headerSize
	goAwaySize    = headerSize + 8 + 2 + macSize
)

// These do not compile when an answer outgrows its request.
const (
	_ = uint(attachSize - challengeSize)
	_ = uint(attachSize - readySize)
	_ = uint(attachSize - goAwaySize)
	_ = uint(pingSize - pongSize)
	_ = uint(minData - unknownSize)
)

// sizeOf holds each control message's exact length by type.
var sizeOf = [...]int{
	frameAttach:    attachSize,
	frameChallenge: challengeSize,
	frameReady:     readySize,
	framePing:      pingSize,
	framePong:      pongSize,
	frameUnknown:   unknownSize,
	frameGoAway:    goAwaySize,
}

// Reason says why a relay ended or refused a session.
type Reason uint16

// The reasons, as GOAWAY carries them.
const (
	ReasonNone     Reason = iota
	ReasonStopping        // the relay stops; it may be back at once
	ReasonRemoved         // the node was removed from its network
	ReasonExpired         // the ticket is no longer valid
	ReasonFull            // the relay has no room for another session
)

// String returns one word.
func (r Reason) String() string {
	if int(r) < len(reasonNames) {
		return reasonNames[r]
	}
	return "unknown"
}

var reasonNames = [...]string{"none", "stopping", "removed", "expired", "full"}

type (
	nonce [nonceSize]byte
	token [tokenSize]byte
)

// session returns the name of the session that an ATTACH with this nonce makes.
func (n nonce) session() uint64 { return binary.LittleEndian.Uint64(n[:]) }

type attach struct {
	nonce  nonce
	token  token
	ticket [ticketSize]byte
}

type challenge struct {
	nonce    nonce
	token    token
	observed netip.AddrPort
}

type ready struct {
	nonce     nonce
	boot      uint64
	observed  netip.AddrPort
	lease     uint16 // seconds
	keepalive uint16 // seconds
}

type ping struct{ session, count uint64 }

type pong struct {
	session, count uint64
	observed       netip.AddrPort
	boot           uint64
}

type goAway struct {
	session uint64
	reason  Reason
}

func appendHeader(b []byte, kind byte) []byte { return append(b, kindControl, kind, frameVersion, 0) }

// seal appends the MAC of b[start:].
func seal(b []byte, start int, k key.Secret) []byte {
	m := mac(k, b[start:])
	return append(b, m[:]...)
}

func mac(k key.Secret, b []byte) (m [macSize]byte) {
	h := hmac.New(sha256.New, k.Expose())
	h.Write(b)
	var sum [sha256.Size]byte
	copy(m[:], h.Sum(sum[:0]))
	return m
}

// authentic reports whether a frame of right length ends with its MAC.
func authentic(k key.Secret, frame []byte) bool {
	end := len(frame) - macSize
	m := mac(k, frame[:end])
	return hmac.Equal(m[:], frame[end:])
}

// frameType returns the type of a control message that has the right version,
// flags and length for it, and 0 for any other datagram.
func frameType(frame []byte) byte {
	if len(frame) < headerSize || frame[0] != kindControl || frame[2] != frameVersion || frame[3] != 0 {
		return 0
	}
	t := frame[1]
	if int(t) >= len(sizeOf) || t == 0 || len(frame) != sizeOf[t] {
		return 0
	}
	return t
}

func (f attach) Append(b []byte, k key.Secret) []byte {
	start := len(b)
	b = appendHeader(b, frameAttach)
	b = append(b, f.nonce[:]...)
	b = append(b, f.token[:]...)
	b = append(b, f.ticket[:]...)
	return seal(b, start, k)
}

// parseAttach and its like take a frame of their type, as frameType says.
func parseAttach(b []byte) attach {
	return attach{nonce: nonce(b[4:20]), token: token(b[20:44]), ticket: [ticketSize]byte(b[44:80])}
}

func (f challenge) Append(b []byte, k key.Secret) []byte {
	start := len(b)
	b = appendHeader(b, frameChallenge)
	b = append(b, f.nonce[:]...)
	b = append(b, f.token[:]...)
	b = appendAddress(b, f.observed)
	return seal(b, start, k)
}

func parseChallenge(b []byte) challenge {
	return challenge{nonce: nonce(b[4:20]), token: token(b[20:44]), observed: parseAddress(b[44:62])}
}

func (f ready) Append(b []byte, k key.Secret) []byte {
	start := len(b)
	b = appendHeader(b, frameReady)
	b = append(b, f.nonce[:]...)
	b = binary.LittleEndian.AppendUint64(b, f.boot)
	b = appendAddress(b, f.observed)
	b = binary.LittleEndian.AppendUint16(b, f.lease)
	b = binary.LittleEndian.AppendUint16(b, f.keepalive)
	return seal(b, start, k)
}

func parseReady(b []byte) ready {
	return ready{
		nonce:     nonce(b[4:20]),
		boot:      binary.LittleEndian.Uint64(b[20:]),
		observed:  parseAddress(b[28:46]),
		lease:     binary.LittleEndian.Uint16(b[46:]),
		keepalive: binary.LittleEndian.Uint16(b[48:]),
	}
}

func (f ping) Append(b []byte, k key.Secret) []byte {
	start := len(b)
	b = appendHeader(b, framePing)
	b = binary.LittleEndian.AppendUint64(b, f.session)
	b = binary.LittleEndian.AppendUint64(b, f.count)
	var zeros [pingSize - headerSize - 16 - macSize]byte
	b = append(b, zeros[:]...)
	return seal(b, start, k)
}

func parsePing(b []byte) ping {
	return ping{binary.LittleEndian.Uint64(b[4:]), binary.LittleEndian.Uint64(b[12:])}
}

func (f pong) Append(b []byte, k key.Secret) []byte {
	start := len(b)
	b = appendHeader(b, framePong)
	b = binary.LittleEndian.AppendUint64(b, f.session)
	b = binary.LittleEndian.AppendUint64(b, f.count)
	b = appendAddress(b, f.observed)
	b = binary.LittleEndian.AppendUint64(b, f.boot)
	return seal(b, start, k)
}

func parsePong(b []byte) pong {
	return pong{
		session:  binary.LittleEndian.Uint64(b[4:]),
		count:    binary.LittleEndian.Uint64(b[12:]),
		observed: parseAddress(b[20:38]),
		boot:     binary.LittleEndian.Uint64(b[38:]),
	}
}

func appendUnknown(b []byte) []byte { return appendHeader(b, frameUnknown) }

func (f goAway) Append(b []byte, k key.Secret) []byte {
	start := len(b)
	b = appendHeader(b, frameGoAway)
	b = binary.LittleEndian.AppendUint64(b, f.session)
	b = binary.LittleEndian.AppendUint16(b, uint16(f.reason))
	return seal(b, start, k)
}

func parseGoAway(b []byte) goAway {
	return goAway{binary.LittleEndian.Uint64(b[4:]), Reason(binary.LittleEndian.Uint16(b[12:]))}
}

// appendAddress writes an address without its zone, which means nothing to the
// other side.
func appendAddress(b []byte, a netip.AddrPort) []byte {
	ip := a.Addr().As16()
	b = append(b, ip[:]...)
	return binary.LittleEndian.AppendUint16(b, a.Port())
}

func parseAddress(b []byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b)).Unmap(), binary.LittleEndian.Uint16(b[16:]))
}

// Data. WireGuard's messages have these lengths; a transport message has a
// header and a tag at least.
const (
	dataInitiation = 1
	dataResponse   = 2
	dataCookie     = 3
	dataTransport  = 4

	minData = 32
	// minProbe is type, label, nonce of 24, tag of 16.
	minProbe = 4 + 24 + 16
)

// shaped reports whether a datagram whose first byte is kind may have this length.
func shaped(kind byte, length int) bool {
	switch kind {
	case dataTransport:
		return length >= minData
	case dataInitiation:
		return length == 148
	case dataResponse:
		return length == 92
	case dataCookie:
		return length == 64
	case kindProbe:
		return length >= minProbe
	}
	return false
}

// stamp writes a label into bytes 1 to 3.
func stamp(b []byte, l Label) {
	_ = b[3]
	b[1], b[2], b[3] = byte(l), byte(l>>8), byte(l>>16)
}

func labelOf(b []byte) Label { return Label(b[1]) | Label(b[2])<<8 | Label(b[3])<<16 }
