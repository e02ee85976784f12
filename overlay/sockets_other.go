//go:build !linux

package overlay

import (
	"net"
	"syscall"
	"time"
)

func bindTo(string) func(string, string, syscall.RawConn) error { return nil }

func bindEarly(string, string, syscall.RawConn) error { return nil }

func giveUpAfter(net.Conn, time.Duration) {}
