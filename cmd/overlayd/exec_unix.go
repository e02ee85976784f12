//go:build unix

package main

import (
	"os"
	"os/exec"
	"syscall"

	"overlayd/overlay"
)

// become replaces this process by another program, so that the terminal and its
// signals are that one's.
func become(name string, args []string) error {
	path, err := exec.LookPath(name)
	if err != nil {
		return failure(overlay.ExitFailure, "install it", "%s is not on this machine", name)
	}
	return syscall.Exec(path, append([]string{name}, args...), os.Environ())
}
