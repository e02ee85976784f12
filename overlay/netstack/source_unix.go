//go:build unix

package netstack

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// source reads a socket of the host. It has a buffer only while there is
// something in it.
type source struct {
	raw    syscall.RawConn
	try    func(fd uintptr) bool // made once
	stream bool
	most   int // of next
	piece  *piece
	n      int // results of try
	err    error
}

// newSource makes one of a TCP or UDP connection.
func newSource(c net.Conn) (*source, error) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return nil, os.ErrInvalid
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	_, stream := c.(*net.TCPConn)
	s := &source{raw: raw, stream: stream}
	s.try = func(fd uintptr) bool {
		if s.piece == nil {
			s.piece = newPiece(s.most)
		}
		for {
			s.n, s.err = unix.Read(int(fd), s.piece.b[:s.most])
			switch s.err {
			case unix.EINTR:
				continue
			case unix.EAGAIN:
				s.done()
				return false
			}
			if s.err != nil && !s.stream {
				dropErrors(int(fd))
			}
			return true
		}
	}
	return s, nil
}

// next waits for bytes, or a datagram, and returns at most so many of them, which
// are no more than pieceBytes; they are good until done.
func (s *source) next(most int) ([]byte, error) {
	s.most, s.n, s.err = most, 0, nil
	if err := s.raw.Read(s.try); err != nil {
		return nil, err
	}
	if s.err != nil {
		return nil, s.err
	}
	if s.n == 0 && s.stream {
		return nil, io.EOF
	}
	return s.piece.b[:s.n], nil
}

// done gives the buffer back.
func (s *source) done() {
	if s.piece != nil {
		s.piece.done()
		s.piece = nil
	}
}

// noBroadcast takes from a socket what Go gives it: to send to all hosts of a
// network.
func noBroadcast(c syscall.RawConn) error {
	var err error
	cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 0) })
	return errors.Join(cerr, err)
}
