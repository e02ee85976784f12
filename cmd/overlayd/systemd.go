package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	sdnotify "github.com/coreos/go-systemd/v22/daemon"

	"overlayd/overlay"
)

// systemd is the service manager of this machine, or of one user of it.
type systemd struct {
	own        bool // it is the user's, who is not root
	unitDir    string
	notify     func(state string) // to the service manager, if it started us
	systemctl  func(ctx context.Context, args ...string) (string, error)
	executable func() (string, error)
	ready      func() error // nil when services can be installed here
}

func hostSystemd() systemd {
	s := systemd{
		unitDir: "/etc/systemd/system",
		notify: func(state string) {
			_, _ = sdnotify.SdNotify(false, state) // nobody to tell when it fails
		},
		systemctl:  systemctl,
		executable: os.Executable,
		ready:      systemdReady,
	}
	if os.Geteuid() > 0 {
		s.own, s.unitDir, s.ready = true, userUnits(os.Getenv), userSystemdReady
		s.systemctl = func(ctx context.Context, args ...string) (string, error) {
			return systemctl(ctx, append([]string{"--user"}, args...)...)
		}
	}
	return s
}

// journal is the command that shows what a service said.
func (s systemd) journal() string {
	if s.own {
		return "journalctl --user"
	}
	return "journalctl"
}

// userUnits is where a user's own units are (systemd.unit(5)).
func userUnits(getenv func(string) string) string {
	base := getenv("XDG_CONFIG_HOME")
	if !filepath.IsAbs(base) {
		base = filepath.Join(getenv("HOME"), ".config")
	}
	return filepath.Join(base, "systemd", "user")
}

// userSystemdReady refuses users without a service manager of their own.
func userSystemdReady() error {
	if _, err := os.Stat(filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "systemd")); err != nil || os.Getenv("XDG_RUNTIME_DIR") == "" {
		return failure(overlay.ExitFailure, "log in by yourself and not by su, or let something else run overlayd up --userspace in the foreground",
			"no systemd of yours runs here")
	}
	return nil
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
