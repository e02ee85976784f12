package coord

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	"overlayd/overlay/coord/api"
)

// Problem is an error with its kind and what to do about it. It crosses the
// wire as it is.
type Problem struct {
	Kind    Kind
	Message string
	Hint    string // the next step; may be empty
}

// Kind sorts problems by what their reader can do.
type Kind string

// The kinds.
const (
	KindInvalid     Kind = "invalid"     // the request makes no sense
	KindConflict    Kind = "conflict"    // it clashes with something that is there
	KindDenied      Kind = "denied"      // not allowed: also expired, used up, revoked, removed
	KindPending     Kind = "pending"     // somebody has to approve it first
	KindNotFound    Kind = "not_found"   // it names what is not there
	KindUnreachable Kind = "unreachable" // the other side cannot be reached, or not now
	KindInternal    Kind = "internal"    // the other side failed
)

// kindCodes gives each kind its Connect code, which decides the HTTP status.
var kindCodes = map[Kind]connect.Code{
	KindInvalid:     connect.CodeInvalidArgument,
	KindConflict:    connect.CodeAlreadyExists,
	KindDenied:      connect.CodePermissionDenied,
	KindPending:     connect.CodeFailedPrecondition,
	KindNotFound:    connect.CodeNotFound,
	KindUnreachable: connect.CodeUnavailable,
	KindInternal:    connect.CodeInternal,
}

// Error returns the message; the hint is for whoever prints it.
func (p *Problem) Error() string { return p.Message }

func problem(k Kind, hint, format string, args ...any) *Problem {
	return &Problem{Kind: k, Message: fmt.Sprintf(format, args...), Hint: hint}
}

// AsProblem finds the problem in an error's chain. A failure of the transport
// is made into one; any other error is none.
func AsProblem(err error) (*Problem, bool) {
	if p, ok := errors.AsType[*Problem](err); ok {
		return p, true
	}
	if p, ok := sentProblem(err); ok {
		return p, true
	}
	ce, ok := errors.AsType[*connect.Error](err)
	if !ok {
		return nil, false
	}
	switch ce.Code() {
	case connect.CodeUnavailable, connect.CodeDeadlineExceeded, connect.CodeCanceled, connect.CodeAborted:
		return &Problem{Kind: KindUnreachable, Message: ce.Message()}, true
	case connect.CodeResourceExhausted:
		return &Problem{Kind: KindInvalid, Message: ce.Message()}, true
	}
	return &Problem{Kind: KindInternal, Message: ce.Message()}, true
}

// sentProblem finds a problem that the other side sent. A proxy's refusal has
// none, so it is never taken for the coordinator's.
func sentProblem(err error) (*Problem, bool) {
	ce, ok := errors.AsType[*connect.Error](err)
	if !ok {
		return nil, false
	}
	for _, d := range ce.Details() {
		m, err := d.Value()
		if err != nil {
			continue
		}
		if p, ok := m.(*api.Problem); ok {
			return &Problem{Kind: Kind(p.Kind), Message: p.Message, Hint: p.Hint}, true
		}
	}
	return nil, false
}

// Refusal makes an error ready for a caller of another of this machine's services.
func Refusal(err error) error { return wireError(err) }

// wireError makes an error ready to be sent. What is no Problem is our own
// failure, and its text stays here.
func wireError(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return connect.NewError(connect.CodeCanceled, err)
	}
	p, ok := errors.AsType[*Problem](err)
	if !ok {
		p = &Problem{Kind: KindInternal, Message: "the coordinator failed", Hint: "see the log of overlayd relay"}
	}
	ce := connect.NewError(kindCodes[p.Kind], errors.New(p.Message))
	if d, err := connect.NewErrorDetail(&api.Problem{Kind: string(p.Kind), Message: p.Message, Hint: p.Hint}); err == nil {
		ce.AddDetail(d)
	}
	return ce
}
