package relay

import (
	"bufio"
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
)

// The part of RFC 6455 that carries binary messages. Its frames:
//
//	byte 0   FIN 0x80, RSV 0x70 (zero), opcode 0x0f
//	byte 1   MASK 0x80, length 0x7f; 126: 2 more bytes hold it, 127: 8 more, big endian
//	         4 bytes of mask, from a client only
//	         the payload
//
// It is written here because what matters is the path of the bytes: a message
// is put together and masked where it lies, leaves with one write, and is read
// into a buffer that is used again, whose size is the limit.
const (
	opContinue = 0x0
	opBinary   = 0x2
	opClose    = 0x8
	opPing     = 0x9
	opPong     = 0xa

	finBit, maskBit = 0x80, 0x80
	controlOps      = 0x8 // the bit that control frames have

	// maxControl is the longest payload of a control frame (section 5.5).
	maxControl = 125
	// maxFrameHeader is opcode, length, 8 bytes more of it, mask.
	maxFrameHeader = 2 + 8 + 4
)

// errWebSocket means that the other side does not keep to RFC 6455, or to what
// of it is used here: binary messages of limited length.
var errWebSocket = errors.New("not a WebSocket message of a kind we know")

// messages reads the messages of one connection. It belongs to one goroutine.
type messages struct {
	r      *bufio.Reader
	client bool // this end is the client: what it reads is not masked
	pong   func(payload []byte)
	head   [8]byte
	inside [maxControl]byte // payload of a control frame
}

// frameReadBuffer takes a header and the start of its payload; the rest is read
// to where it belongs.
const frameReadBuffer = 4 << 10

func newMessages(r io.Reader, client bool, pong func([]byte)) *messages {
	return &messages{r: bufio.NewReaderSize(r, frameReadBuffer), client: client, pong: pong}
}

// message reads the next binary message into b and returns its length. It is
// io.EOF when the other side has said goodbye.
func (f *messages) message(b []byte) (n int, err error) {
	for begun := false; ; {
		op, fin, length, mask, err := f.header()
		if err != nil {
			return 0, err
		}
		switch {
		case op&controlOps != 0:
			if err := f.control(op, fin, length, mask); err != nil {
				return 0, err
			}
			continue
		case op == opBinary && begun, op == opContinue && !begun, op != opBinary && op != opContinue,
			length > uint64(len(b)-n):
			return 0, errWebSocket
		}
		part := b[n : n+int(length)]
		if _, err := io.ReadFull(f.r, part); err != nil {
			return 0, unexpected(err)
		}
		xor(part, mask)
		n += len(part)
		if fin {
			return n, nil
		}
		begun = true
	}
}

// header reads a frame's first bytes.
func (f *messages) header() (op byte, fin bool, length uint64, mask [4]byte, err error) {
	h := f.head[:2]
	if _, err = io.ReadFull(f.r, h); err != nil {
		return 0, false, 0, mask, err
	}
	op, fin = h[0]&0x0f, h[0]&finBit != 0
	masked := h[1]&maskBit != 0
	length = uint64(h[1] &^ maskBit)
	if h[0]&0x70 != 0 || masked == f.client {
		return 0, false, 0, mask, errWebSocket
	}
	switch length {
	case 126:
		_, err = io.ReadFull(f.r, f.head[:2])
		length = uint64(binary.BigEndian.Uint16(f.head[:]))
	case 127:
		_, err = io.ReadFull(f.r, f.head[:8])
		length = binary.BigEndian.Uint64(f.head[:])
	}
	if err == nil && masked {
		_, err = io.ReadFull(f.r, f.head[:4])
		mask = [4]byte(f.head[:4])
	}
	return op, fin, length, mask, unexpected(err)
}

// control reads the rest of a control frame and does what it asks for.
func (f *messages) control(op byte, fin bool, length uint64, mask [4]byte) error {
	if !fin || length > maxControl {
		return errWebSocket
	}
	payload := f.inside[:length]
	if _, err := io.ReadFull(f.r, payload); err != nil {
		return unexpected(err)
	}
	xor(payload, mask)
	switch op {
	case opPing:
		f.pong(payload)
		return nil
	case opPong:
		return nil
	case opClose:
		return io.EOF
	}
	return errWebSocket
}

// unexpected is for where a connection must not end.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// finishFrame puts the header of a frame right before its payload, which is all
// of b from maxFrameHeader on, masks the payload if a client sends it, and
// returns what to write.
func finishFrame(b []byte, op byte, client bool) []byte {
	payload := b[maxFrameHeader:]
	var h [maxFrameHeader]byte
	head := append(h[:0], finBit|op)
	switch n := len(payload); {
	case n < 126:
		head = append(head, byte(n))
	case n <= 0xffff:
		head = binary.BigEndian.AppendUint16(append(head, 126), uint16(n))
	default:
		head = binary.BigEndian.AppendUint64(append(head, 127), uint64(n))
	}
	if client {
		var mask [4]byte
		rand.Read(mask[:]) // never fails
		head[1] |= maskBit
		head = append(head, mask[:]...)
		xor(payload, mask)
	}
	start := maxFrameHeader - len(head)
	copy(b[start:], head)
	return b[start:]
}

// xor masks, or unmasks, b.
func xor(b []byte, mask [4]byte) {
	m := binary.LittleEndian.Uint32(mask[:])
	if m == 0 {
		return
	}
	wide := uint64(m)<<32 | uint64(m)
	for len(b) >= 32 {
		binary.LittleEndian.PutUint64(b, binary.LittleEndian.Uint64(b)^wide)
		binary.LittleEndian.PutUint64(b[8:], binary.LittleEndian.Uint64(b[8:])^wide)
		binary.LittleEndian.PutUint64(b[16:], binary.LittleEndian.Uint64(b[16:])^wide)
		binary.LittleEndian.PutUint64(b[24:], binary.LittleEndian.Uint64(b[24:])^wide)
		b = b[32:]
	}
	for i := range b {
		b[i] ^= mask[i&3]
	}
}

// The opening handshake (RFC 6455, section 4).

// acceptKey is what a server answers to a client's key, which proves that it
// speaks WebSocket.
func acceptKey(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")) // the RFC's constant
	return base64.StdEncoding.EncodeToString(sum[:])
}

// newKey makes a client's key.
func newKey() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return base64.StdEncoding.EncodeToString(b[:])
}

// askUpgrade makes a request one for a WebSocket.
func askUpgrade(h http.Header, key string) {
	h.Set("Connection", "Upgrade")
	h.Set("Upgrade", "websocket")
	h.Set("Sec-WebSocket-Version", "13")
	h.Set("Sec-WebSocket-Key", key)
}

// asksUpgrade reports whether a request is for a WebSocket, and its key.
func asksUpgrade(r *http.Request) (key string, ok bool) {
	key = r.Header.Get("Sec-WebSocket-Key")
	raw, err := base64.StdEncoding.DecodeString(key)
	ok = r.Method == http.MethodGet && r.ProtoMajor == 1 && r.ProtoMinor >= 1 &&
		hasToken(r.Header, "Connection", "upgrade") && hasToken(r.Header, "Upgrade", "websocket") &&
		r.Header.Get("Sec-WebSocket-Version") == "13" && err == nil && len(raw) == 16
	return key, ok
}

// grantsUpgrade reports whether an answer agrees to speak WebSocket.
func grantsUpgrade(r *http.Response, key string) bool {
	return r.StatusCode == http.StatusSwitchingProtocols &&
		hasToken(r.Header, "Connection", "upgrade") && hasToken(r.Header, "Upgrade", "websocket") &&
		r.Header.Get("Sec-WebSocket-Accept") == acceptKey(key)
}

// hasToken looks for a word in a header that is a list.
func hasToken(h http.Header, name, word string) bool {
	return slices.ContainsFunc(h.Values(name), func(list string) bool {
		return slices.ContainsFunc(strings.Split(list, ","), func(s string) bool {
			return strings.EqualFold(strings.TrimSpace(s), word)
		})
	})
}
