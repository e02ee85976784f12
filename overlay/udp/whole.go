package udp

import (
	"errors"
	"net/netip"
)

// SendWhole sends one datagram that arrives in one piece or not at all: it
// shows whether a path carries its length. A datagram longer than the own
// link's MTU is an error. What others send by the socket in the same few
// microseconds is not cut either: see the package's comment.
func (s *Socket) SendWhole(dst netip.AddrPort, b []byte) error {
	s.whole.Lock()
	defer s.whole.Unlock()
	if err := s.pass(true); err != nil {
		return err
	}
	err := s.send(dst, b, true)
	return errors.Join(err, s.pass(false))
}
