//go:build !unix

package main

import (
	"errors"
	"os"
	"os/exec"

	"overlayd/overlay"
)

// become runs another program in the place of this one, and ends as it does.
func become(name string, args []string) error {
	cmd := exec.Command(name, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return quiet(exit.ExitCode())
	}
	if errors.Is(err, exec.ErrNotFound) {
		return failure(overlay.ExitFailure, "install it", "%s is not on this machine", name)
	}
	return err
}
