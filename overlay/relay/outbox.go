package relay

import (
	"encoding/binary"
	"slices"
	"sync"
	"time"
)

// outbox holds what waits for a connection that may be slow. Control messages
// go first, and are few; of the data the oldest go when there is no room. It
// holds datagrams as a message has them: with their lengths in front.
type outbox struct {
	mu     sync.Mutex // guards all below
	filled sync.Cond  // something came, or it was closed
	closed bool       // nothing more comes; what is in it may still be taken
	urgent []byte     // control messages, as a message
	pong   []byte     // payload of the last WebSocket ping
	pinged bool       // it is unanswered
	data   []byte     // a circle: n bytes from first
	first  int
	n      int
	most   int // what data may grow to

	waiting int           // of those that wait for room
	left    chan struct{} // holds one token: something was taken while somebody waited
}

const (
	// outboxBytes is what may wait for a connection: 50 ms of 40 Mbit/s, four
	// trains of 64 KiB. It is taken as it is needed, and kept.
	outboxBytes = 256 << 10
	outboxFirst = 16 << 10
	// urgentBytes holds ten of the longest control messages. A node that asks
	// for more while it does not read waits in vain.
	urgentBytes = 1 << 10
)

func newOutbox(most int) *outbox {
	o := &outbox{most: most, urgent: make([]byte, 0, urgentBytes), left: make(chan struct{}, 1)}
	o.filled.L = &o.mu
	return o
}

// push takes a train of datagrams of size bytes each, the last may be shorter,
// and returns how many datagrams were dropped: older ones to make room.
func (o *outbox) push(train []byte, size int) (dropped int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return (len(train) + size - 1) / size
	}
	for len(train) > 0 {
		d := train[:min(size, len(train))]
		train = train[len(d):]
		dropped += o.add(d)
	}
	o.filled.Signal()
	return dropped
}

// pushEach is push for datagrams that do not lie in a row.
func (o *outbox) pushEach(datagrams [][]byte) (dropped int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return len(datagrams)
	}
	for _, d := range datagrams {
		dropped += o.add(d)
	}
	o.filled.Signal()
	return dropped
}

// await returns when there is room for datagrams, after that long, or when the
// outbox is closed.
func (o *outbox) await(datagrams [][]byte, patience time.Duration) {
	need := 0
	for _, d := range datagrams {
		need += lengthSize + len(d)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	full := func() bool { return !o.closed && o.n > 0 && o.n+need > o.most }
	if !full() {
		return
	}
	o.waiting++
	defer func() {
		o.waiting--
		o.signal() // others may fit as well
	}()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for full() {
		o.mu.Unlock()
		var late bool
		select {
		case <-o.left:
		case <-timer.C:
			late = true
		}
		o.mu.Lock()
		if late {
			return
		}
	}
}

// signal wakes one that waits for room. mu is held.
func (o *outbox) signal() {
	if o.waiting == 0 {
		return
	}
	select {
	case o.left <- struct{}{}:
	default:
	}
}

// add takes one datagram and returns how many were dropped: itself, or older
// ones. mu is held.
func (o *outbox) add(d []byte) (dropped int) {
	if len(d) > maxDatagram || lengthSize+len(d) > o.most {
		return 1
	}
	dropped = o.room(lengthSize + len(d))
	var length [lengthSize]byte
	binary.BigEndian.PutUint16(length[:], uint16(len(d)))
	o.put(length[:])
	o.put(d)
	return dropped
}

// room makes room for k bytes: by growing, then by dropping the oldest. mu is held.
func (o *outbox) room(k int) (dropped int) {
	if need := o.n + k; need > len(o.data) && len(o.data) < o.most {
		size := max(len(o.data), outboxFirst)
		for size < need {
			size *= 2
		}
		grown := make([]byte, min(size, o.most))
		o.copyOut(grown[:o.n])
		o.data, o.first = grown, 0
	}
	for len(o.data)-o.n < k {
		o.skip(lengthSize + o.oldest())
		dropped++
	}
	return dropped
}

// put appends bytes that there is room for. mu is held, as for all below.
func (o *outbox) put(b []byte) {
	end := o.first + o.n
	if end >= len(o.data) {
		end -= len(o.data)
	}
	copied := copy(o.data[end:], b)
	copy(o.data, b[copied:])
	o.n += len(b)
}

// copyOut copies the oldest bytes to b, which is no longer than what there is.
func (o *outbox) copyOut(b []byte) {
	copied := copy(b, o.data[o.first:])
	copy(b[copied:], o.data)
}

func (o *outbox) skip(k int) {
	o.n -= k
	if o.first += k; o.first >= len(o.data) {
		o.first -= len(o.data)
	}
	if o.n == 0 {
		o.first = 0
	}
}

// oldest returns the length of the oldest datagram.
func (o *outbox) oldest() int {
	var length [lengthSize]byte
	o.copyOut(length[:])
	return int(binary.BigEndian.Uint16(length[:]))
}

// pushUrgent takes a control message, and reports whether there was room.
func (o *outbox) pushUrgent(frame []byte) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || len(o.urgent)+lengthSize+len(frame) > urgentBytes {
		return false
	}
	o.urgent = appendDatagram(o.urgent, frame)
	o.filled.Signal()
	return true
}

// pushPong answers a WebSocket ping. Only the last one needs an answer (RFC
// 6455, section 5.5.3).
func (o *outbox) pushPong(payload []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return
	}
	o.pong, o.pinged = append(o.pong[:0], payload...), true
	o.filled.Signal()
}

// take waits for something, and appends it to b: one frame's payload, of most
// bytes unless one datagram is longer. op says which frame. ok is false when it is
// closed and empty.
func (o *outbox) take(b []byte, most int) (m []byte, op byte, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.urgent) == 0 && !o.pinged && o.n == 0 {
		if o.closed {
			return b, 0, false
		}
		o.filled.Wait()
	}
	if o.pinged {
		o.pinged = false
		return append(b, o.pong...), opPong, true
	}
	start := len(b)
	b = append(b, o.urgent...)
	o.urgent = o.urgent[:0]
	for o.n > 0 {
		k := lengthSize + o.oldest()
		if used := len(b) - start; used > 0 && used+k > most {
			break
		}
		b = slices.Grow(b, k)[:len(b)+k]
		o.copyOut(b[len(b)-k:])
		o.skip(k)
	}
	o.signal()
	return b, opBinary, true
}

// close lets nothing more in.
func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.filled.Broadcast()
	o.signal()
}

// drop forgets what waits. For a connection that is broken.
func (o *outbox) drop() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.urgent, o.pinged, o.n, o.first = o.urgent[:0], false, 0, 0
	o.filled.Broadcast()
	o.signal()
}
