package overlay

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// longestDatagram is what UDP over IPv4 carries.
const longestDatagram = 65507

// Datagrams on the local socket: their length in two bytes, big endian, and
// themselves.

// appendDatagram appends a datagram in that form.
func appendDatagram(b, datagram []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(datagram)))
	return append(b, datagram...)
}

// readDatagram reads one into buf, which is long enough for any. At the end of
// the stream it returns io.EOF, inside a datagram io.ErrUnexpectedEOF.
func readDatagram(r io.Reader, buf []byte) (int, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, err
	}
	n := int(binary.BigEndian.Uint16(head[:]))
	if n > longestDatagram {
		return 0, fmt.Errorf("read datagram: %d bytes are more than UDP carries", n)
	}
	if _, err := io.ReadFull(r, buf[:n]); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, err
	}
	return n, nil
}

// carryDatagrams carries datagrams between a stream, framed, and a UDP socket,
// until the stream's end is closed, the socket says that nobody is there, or ctx
// ends. Both are closed then.
func carryDatagrams(ctx context.Context, stream, socket net.Conn) error {
	var once sync.Once
	var why error
	end := func(err error) {
		once.Do(func() { why = err })
		stream.Close()
		socket.Close()
	}
	stop := context.AfterFunc(ctx, func() { end(context.Cause(ctx)) })
	defer stop()
	var back sync.WaitGroup
	back.Go(func() {
		buf, frame := make([]byte, longestDatagram), []byte(nil)
		for {
			n, err := socket.Read(buf)
			if err == nil {
				frame = appendDatagram(frame[:0], buf[:n])
				_, err = stream.Write(frame)
			}
			if err != nil {
				end(err)
				return
			}
		}
	})
	in, buf := bufio.NewReader(stream), make([]byte, longestDatagram)
	for {
		n, err := readDatagram(in, buf)
		if errors.Is(err, io.EOF) {
			end(nil) // the caller has heard enough
			break
		}
		if err == nil {
			_, err = socket.Write(buf[:n])
		}
		if err != nil {
			end(err)
			break
		}
	}
	back.Wait()
	return why
}
