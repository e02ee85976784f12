//go:build !linux

package netstack

import "syscall"

// hear does nothing: what a connected socket reports is what there is to hear.
func hear(int) error { return nil }

func hearErrors(string, string, syscall.RawConn) error { return nil }

// dropErrors does nothing: there is no queue.
func dropErrors(int) {}
