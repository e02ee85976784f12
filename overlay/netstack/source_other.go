//go:build !unix

package netstack

import (
	"errors"
	"net"
	"syscall"
)

// source reads a socket of the host.
type source struct {
	conn  net.Conn
	piece *piece
}

// newSource makes one of a TCP or UDP connection.
func newSource(c net.Conn) (*source, error) {
	return &source{conn: c}, nil
}

// next waits for bytes, or a datagram, and returns at most so many of them, which
// are no more than pieceBytes; they are good until done.
func (s *source) next(most int) ([]byte, error) {
	if s.piece == nil {
		s.piece = newPiece(most)
	}
	n, err := s.conn.Read(s.piece.b[:most])
	return s.piece.b[:n], err
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
	cerr := c.Control(func(fd uintptr) {
		err = syscall.SetsockoptInt(syscall.Handle(fd), syscall.SOL_SOCKET, syscall.SO_BROADCAST, 0)
	})
	return errors.Join(cerr, err)
}
