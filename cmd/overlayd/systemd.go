package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	sdnotify "github.com/coreos/go-systemd/v22/daemon"

	"overlayd/overlay"
)

// systemd is the service manager of this machine.
type systemd struct {
	unitDir    string
	notify     func(state string) // to the service manager, if it started us
	systemctl  func(ctx context.Context, args ...string) (string, error)
	executable func() (string, error)
	ready      func() error // nil when services can be installed here
}

func hostSystemd() systemd {
	return systemd{
		unitDir: "/etc/systemd/system",
		notify: func(state string) {
			_, _ = sdnotify.SdNotify(false, state) // nobody to tell when it fails
		},
		systemctl:  systemctl,
		executable: os.Executable,
		ready:      systemdReady,
	}
}

// systemdReady refuses machines and users without a system manager.
func systemdReady() error {
	if _, err := os.Stat("/run/systemd/system"); err != nil { // sd_booted(3)
		return failure(overlay.ExitFailure, "let the service manager of this machine run overlayd up in the foreground",
			"systemd does not run this machine")
	}
	if os.Geteuid() != 0 {
		return failure(overlay.ExitPermission, "run it as root (sudo)", "only root can manage services")
	}
	return nil
}

func systemctl(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "systemctl", args...).Output()
	if x, ok := errors.AsType[*exec.ExitError](err); ok && len(x.Stderr) > 0 {
		err = errors.New(strings.TrimSpace(string(x.Stderr)))
	}
	if err != nil {
		return string(out), fmt.Errorf("systemctl %s: %w", strings.Join(args, " "), err)
	}
	return string(out), nil
}
