package overlay

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"connectrpc.com/connect"

	"overlayd/overlay/coord"
)

// Ended says why no daemon answers, when one has left word.
func TestEnded(t *testing.T) {
	d := stateDir{t.TempDir()}
	silent := fault(ExitNotRunning, "start it", "no overlayd answers on x")
	if got := Ended(d.path, "/run/x", silent); got != silent {
		t.Errorf("without a word: %v", got)
	}
	d.ended("/run/x", &coord.Problem{Kind: coord.KindDenied, Message: "this machine was\nremoved", Hint: "ask for a new invite"}, testNow)
	f := AsFault(Ended(d.path, "/run/x", silent))
	if f.Code != ExitNotRunning || !strings.HasPrefix(f.Message, "no overlayd answers on x: it ended at ") ||
		!strings.HasSuffix(f.Message, ", as this machine was;removed") || f.Hint != "ask for a new invite" {
		t.Errorf("%+v", f)
	}
	if got := Ended(d.path, "/run/y", silent); got != silent {
		t.Errorf("of another daemon's socket: %v", got)
	}
	other := errors.New("another error")
	if got := Ended(d.path, "/run/x", other); got != other {
		t.Errorf("another error becomes %v", got)
	}
	if err := os.WriteFile(d.file(endFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := Ended(d.path, "/run/x", silent); got != silent {
		t.Errorf("with a damaged word: %v", got)
	}
}

// A call in whose middle the daemon ends says that, and not what the transport says.
func TestBrokenOff(t *testing.T) {
	for _, end := range []error{io.ErrUnexpectedEOF, fmt.Errorf("post: %w", syscall.ECONNRESET), fmt.Errorf("post: %w", io.EOF)} {
		f := AsFault(SocketFault("x", connect.NewError(connect.CodeUnavailable, end)))
		if f.Code != ExitUnreachable || !strings.Contains(f.Message, "in the middle of this call") || f.Hint == "" {
			t.Errorf("%v becomes %+v", end, f)
		}
	}
	f := AsFault(SocketFault("x", connect.NewError(connect.CodeInternal, errors.New("something else"))))
	if f.Code != ExitFailure || f.Message != "something else" {
		t.Errorf("%+v", f)
	}
}
