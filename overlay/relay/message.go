package relay

import (
	"encoding/binary"
	"errors"
	"time"

	"overlayd/overlay/udp"
)

// Over TLS the same datagrams travel in WebSocket messages:
//
//	message = (length 2, big endian | datagram)...
//
// A datagram lies within one message. Length 0 means nothing: padding.
const (
	lengthSize  = 2
	maxDatagram = 1<<16 - 1
	// maxMessage is the longest message that is taken: one datagram of any size.
	maxMessage = lengthSize + maxDatagram
	// usualMessage is where a message is full: it is one TLS record then, which
	// the other side cannot read before all of it has come.
	usualMessage = 16<<10 - maxFrameHeader
	// longMessage is as long as a train by UDP: what comes out of it leaves the
	// relay with one system call, and the next machine takes it in with one.
	longMessage = 62 << 10
	// quickWrite is how soon 16 KiB must leave for messages to be long ones: at 250
	// Mbit/s. On a slower line what is urgent would wait for them.
	quickWrite = 500 * time.Microsecond
)

// pace is how long 16 KiB take to leave, smoothed. The zero value is ready to use.
type pace struct {
	writes int
	each   time.Duration
}

// paceAfter is how many messages make a pace.
const paceAfter = 8

// wrote takes note of a message of n bytes. Short ones say nothing: the line had
// nothing to do.
func (p *pace) wrote(n int, took time.Duration) {
	if n < usualMessage/2 {
		return
	}
	p.writes = min(p.writes+1, paceAfter)
	each := took * usualMessage / time.Duration(n)
	p.each += (each - p.each) / time.Duration(p.writes)
}

// message returns where a message is full.
func (p *pace) message() int {
	if p.writes == paceAfter && p.each <= quickWrite {
		return longMessage
	}
	return usualMessage
}

// errMessage means that a message ends within a datagram.
var errMessage = errors.New("a message is cut off")

// appendDatagram appends a datagram to a message.
func appendDatagram(b, datagram []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(datagram)))
	return append(b, datagram...)
}

// trains makes trains of a message's datagrams, where they lie: datagrams in a
// row that are equally long, the last perhaps shorter, are moved together. They
// are appended to out, and borrowed from m. What stands before an error is good.
func trains(out []udp.Train, m []byte) ([]udp.Train, error) {
	var last *udp.Train // what takes another datagram; nil: none does
	end := 0            // of the last train, in m
	for at := 0; at < len(m); {
		if len(m)-at < lengthSize {
			return out, errMessage
		}
		size := int(binary.BigEndian.Uint16(m[at:]))
		at += lengthSize
		if size > len(m)-at {
			return out, errMessage
		}
		datagram := m[at : at+size]
		at += size
		switch {
		case size == 0:
		case last != nil && size <= last.Size:
			end += copy(m[end:], datagram)
			last.Buf = last.Buf[:len(last.Buf)+size]
			if size < last.Size {
				last = nil
			}
		default:
			out = append(out, udp.Train{Buf: datagram, Size: size})
			last, end = &out[len(out)-1], at
		}
	}
	return out, nil
}
