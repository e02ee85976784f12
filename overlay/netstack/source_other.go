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
	most  int
	piece *piece
}

// newSource makes one of a TCP or UDP connection, which reads at most so many
// bytes at once.
func newSource(c net.Conn, most int) (*source, error) {
	return &source{conn: c, most: min(most, pieceBytes)}, nil
}

// next waits for bytes, or a datagram, and returns them; they are good until
// done.
func (s *source) next() ([]byte, error) {
	if s.piece == nil {
		s.piece = newPiece(s.most)
	}
	n, err := s.conn.Read(s.piece.b[:s.most])
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
