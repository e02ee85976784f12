package overlay

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"overlayd/overlay/coord"
)

// The exit codes of the command line, which are also what a Fault carries.
const (
	ExitOK          = 0
	ExitFailure     = 1
	ExitUsage       = 2
	ExitNotRunning  = 3 // no daemon answers on the socket
	ExitNotJoined   = 4 // not joined, or waiting for approval
	ExitDegraded    = 5
	ExitDenied      = 6 // denied, revoked, expired
	ExitUnreachable = 7 // unreachable or timed out
	ExitConflict    = 8
	ExitPermission  = 9
)

// Fault is an error that a person is going to read: what went wrong, what to do
// about it, and the exit code that scripts see.
type Fault struct {
	Code    int    // one of the Exit constants
	Message string // lower case, names the act and the object
	Hint    string // the next step; may be empty
}

// Error returns the message without the hint.
func (f *Fault) Error() string { return f.Message }

func fault(code int, hint, format string, args ...any) *Fault {
	return &Fault{Code: code, Hint: hint, Message: fmt.Sprintf(format, args...)}
}

// AsFault turns any error into a Fault: a Fault stays as it is, a coordinator's
// Problem keeps its words and hint, so does an error with a Hint method, and
// everything else is a plain failure.
func AsFault(err error) *Fault {
	if f, ok := errors.AsType[*Fault](err); ok {
		return f
	}
	if h, ok := errors.AsType[interface {
		error
		Hint() string
	}](err); ok {
		return &Fault{Code: ExitFailure, Message: err.Error(), Hint: h.Hint()}
	}
	p, ok := coord.AsProblem(err)
	if !ok {
		return &Fault{Code: ExitFailure, Message: err.Error()}
	}
	return &Fault{Code: problemCodes[p.Kind], Message: p.Message, Hint: p.Hint}
}

var problemCodes = map[coord.Kind]int{
	coord.KindInternal:    ExitFailure,
	coord.KindInvalid:     ExitUsage,
	coord.KindNotFound:    ExitFailure,
	coord.KindConflict:    ExitConflict,
	coord.KindDenied:      ExitDenied,
	coord.KindPending:     ExitNotJoined,
	coord.KindUnreachable: ExitUnreachable,
}

func isAddrInUse(err error) bool { return errors.Is(err, syscall.EADDRINUSE) }

func isPermission(err error) bool { return errors.Is(err, fs.ErrPermission) }
