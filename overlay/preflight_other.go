//go:build !linux

package overlay

import (
	"net"
	"runtime"
	"syscall"
)

// preflight says what this system lacks: package routing knows Linux only.
func preflight(bool) error {
	return fault(ExitFailure, "run it with --userspace, or on Linux", "overlayd cannot change routes on %s", runtime.GOOS)
}

func needRoot() error { return preflight(false) }

// markedDialer: there are no marks where there are no policy rules.
func markedDialer(bool) *net.Dialer { return new(net.Dialer) }

func markSocket(string, string, syscall.RawConn) error { return nil }

func haveIptables() bool { return false }
