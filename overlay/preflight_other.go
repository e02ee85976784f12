//go:build !linux

package overlay

import (
	"net"
	"runtime"
	"syscall"
)

// preflight says what this system lacks: package routing knows Linux only.
func preflight(bool, string) error {
	return fault(ExitFailure, "run it with --userspace, or on Linux", "overlayd cannot change routes on %s", runtime.GOOS)
}

// sudo is the hint for who is not root.
const sudo = "run it as administrator"

func needRoot(hint string) error { return preflight(false, hint) }

// markedDialer: there are no marks where there are no policy rules.
func markedDialer(bool) *net.Dialer { return new(net.Dialer) }

func markSocket(string, string, syscall.RawConn) error { return nil }

func haveIptables() bool { return false }
