package netstack

import (
	"errors"
	"net"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// errnos are the stack's errors in the words of the system, so that callers need
// not know which of the two they talk to. Go has these numbers on every system.
var errnos = []struct {
	stack tcpip.Error
	errno syscall.Errno
}{
	{&tcpip.ErrConnectionRefused{}, syscall.ECONNREFUSED},
	{&tcpip.ErrConnectionReset{}, syscall.ECONNRESET},
	{&tcpip.ErrConnectionAborted{}, syscall.ECONNABORTED},
	{&tcpip.ErrAborted{}, syscall.EPIPE},
	{&tcpip.ErrClosedForSend{}, syscall.EPIPE},
	{&tcpip.ErrHostUnreachable{}, syscall.EHOSTUNREACH},
	{&tcpip.ErrHostDown{}, syscall.EHOSTUNREACH},
	{&tcpip.ErrNetworkUnreachable{}, syscall.ENETUNREACH},
	{&tcpip.ErrTimeout{}, syscall.ETIMEDOUT},
	{&tcpip.ErrPortInUse{}, syscall.EADDRINUSE},
	{&tcpip.ErrBadLocalAddress{}, syscall.EADDRNOTAVAIL},
	{&tcpip.ErrNoPortAvailable{}, syscall.EADDRNOTAVAIL},
	{&tcpip.ErrMessageTooLong{}, syscall.EMSGSIZE},
	{&tcpip.ErrNoBufferSpace{}, syscall.ENOBUFS},
	{&tcpip.ErrInvalidEndpointState{}, syscall.EINVAL},
}

// errnoOf returns the system's error for one of the stack's.
func errnoOf(err tcpip.Error) error { return errnoOfText(err.String()) }

func errnoOfText(text string) error {
	for _, e := range errnos {
		if e.stack.String() == text {
			return e.errno
		}
	}
	return errors.New(text)
}

// reason is the stack's error inside of one that the adapter made of its text.
func reason(err error) error {
	if o, ok := errors.AsType[*net.OpError](err); ok {
		return errnoOfText(o.Err.Error())
	}
	return errnoOfText(err.Error())
}
