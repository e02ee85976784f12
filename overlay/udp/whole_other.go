//go:build !linux

package udp

import "errors"

// pass refuses: the don't-fragment bit is set in another way on each system.
func (s *Socket) pass(whole bool) error {
	if whole {
		return errors.ErrUnsupported
	}
	return nil
}
