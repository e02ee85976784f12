//go:build !linux

package overlay

import "syscall"

func bindTo(string) func(string, string, syscall.RawConn) error { return nil }

func bindEarly(string, string, syscall.RawConn) error { return nil }
