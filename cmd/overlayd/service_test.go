package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"overlayd/overlay"
)

func TestUnitText(t *testing.T) {
	w := newWorld(t)
	if code := w.do("service", "install", "--print", "gateway", testLink.Encode(), "--advertise", "192.168.1.0/24",
		"--advertise", "10.9.0.0/16", "--name", "lab-gw"); code != 0 {
		t.Fatal(&w.err)
	}
	golden(t, "gateway.service.golden", w.out.String())
	if len(w.calls) > 0 {
		t.Errorf("--print did %v", w.calls)
	}
	verifyUnit(t, w.out.String())

	w.env["OVERLAYD_PUBLIC"] = "vpn.example.org"
	if code := w.do("service", "install", "--print", "--state-dir", "/srv/50% $x", "relay", "--listen", ":8443"); code != 0 {
		t.Fatal(&w.err)
	}
	for _, want := range []string{
		`ExecStart=/usr/local/bin/overlayd relay --public=vpn.example.org --listen=:8443 "--state-dir=/srv/50%% $$x"` + "\n",
		`ExecStopPost=/usr/local/bin/overlayd cleanup "--state-dir=/srv/50%% $$x" --interface=ovl0` + "\n",
		"RuntimeDirectory=overlayd\n",
	} {
		if !strings.Contains(w.out.String(), want) {
			t.Errorf("no %s in\n%s", want, &w.out)
		}
	}
	verifyUnit(t, w.out.String())
}

// verifyUnit lets systemd itself read the unit, where it is installed.
func verifyUnit(t *testing.T, text string) {
	t.Helper()
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Log("no systemd-analyze here")
		return
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "overlayd.service")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(text, "/usr/local/bin/overlayd", program)), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(analyze, "verify", "--man=no", "--recursive-errors=no", file).CombinedOutput()
	if err != nil || strings.Contains(string(out), "overlayd.service:") {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

func TestInstallAndUninstall(t *testing.T) {
	w := newWorld(t)
	state := filepath.Join(t.TempDir(), "state")
	link := testLink.Encode()
	if code := w.do("service", "install", "--state-dir", state, "up", link); code != 0 {
		t.Fatal(&w.err)
	}
	path := filepath.Join(w.systemd.unitDir, "overlayd.service")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text)+w.out.String(), "ovl://") {
		t.Error("the link is in the unit file or on the screen")
	}
	saved := filepath.Join(state, "link")
	if i, err := os.Stat(saved); err != nil || i.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", i, err)
	}
	if b, err := os.ReadFile(saved); err != nil || strings.TrimSpace(string(b)) != link {
		t.Errorf("the link was not kept: %v", err)
	}
	compare(t, "stdout", w.out.String(), "saved the link in "+saved+" until it has served\nwrote "+path+
		"\nstarted it, now and at every boot\nlaptop is 172.18.0.11; 192.168.1.0/24 through lab-gw\n")
	if d := cmp.Diff([]string{"systemctl daemon-reload", "systemctl enable --quiet overlayd", "systemctl restart --no-block overlayd"}, w.calls); d != "" {
		t.Error(d)
	}

	if code := w.do("service", "status"); code != 0 {
		t.Errorf("exit code %d: %s", code, &w.err)
	}
	compare(t, "stdout", w.out.String(), "state     active, running\nat boot   enabled\nsays      laptop is 172.18.0.11")

	w.calls = nil
	if code := w.do("service", "uninstall"); code != 0 {
		t.Fatal(&w.err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the unit file is still there")
	}
	if d := cmp.Diff([]string{"systemctl disable --quiet --now overlayd", "systemctl daemon-reload"}, w.calls); d != "" {
		t.Error(d)
	}
	if code := w.do("service", "uninstall"); code != 1 {
		t.Errorf("exit code %d for a service that is not there", code)
	}
	if code := w.do("service", "status"); code != 3 {
		t.Errorf("exit code %d for a service that is not there", code)
	}
}

// The link of a second relay is no part of the unit either.
// TestInstallOwn: who is not root gets a service of his own, with his own places, and
// only of what needs no root.
func TestInstallOwn(t *testing.T) {
	w := newWorld(t)
	w.systemd.own, w.notRoot = true, true
	w.systemd.unitDir = filepath.Join(t.TempDir(), "systemd", "user")
	home := t.TempDir()
	w.env["HOME"] = home
	for _, args := range [][]string{{"up"}, {"relay", "--public", "203.0.113.10"}} {
		if code := w.do(append([]string{"service", "install"}, args...)...); code != overlay.ExitPermission || !strings.Contains(w.err.String(), "--userspace") {
			t.Errorf("%s: exit code %d\n%s", args, code, &w.err)
		}
	}
	if code := w.do("service", "install", "up", "--userspace", testLink.Encode()); code != 0 {
		t.Fatal(&w.err)
	}
	text, err := os.ReadFile(filepath.Join(w.systemd.unitDir, "overlayd.service"))
	if err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(home, ".local/state/overlayd")
	want := "ExecStart=/usr/local/bin/overlayd up --userspace=true --state-dir=" + state + " --socket=" + state + "/overlayd.sock --link-file=" + state + "/link\n"
	if !strings.Contains(string(text), want) || !strings.Contains(string(text), "WantedBy=default.target") || strings.Contains(string(text), "tun") || strings.Contains(string(text), "Capability") {
		t.Errorf("want\n%s\nin\n%s", want, text)
	}
	if !strings.Contains(w.out.String(), "loginctl enable-linger") {
		t.Errorf("got\n%s", &w.out)
	}
	verifyUnit(t, string(text))
}

func TestInstallOfAFurtherRelay(t *testing.T) {
	w := newWorld(t)
	state := filepath.Join(t.TempDir(), "state")
	link := testLink.Encode()
	if code := w.do("service", "install", "--state-dir", state, "relay", "--join", link, "--public", "198.51.100.10"); code != 0 {
		t.Fatal(&w.err)
	}
	text, err := os.ReadFile(filepath.Join(w.systemd.unitDir, "overlayd.service"))
	if err != nil {
		t.Fatal(err)
	}
	saved := filepath.Join(state, "link")
	if s := string(text); strings.Contains(s, "ovl://") || strings.Contains(s, "--join") || !strings.Contains(s, "--link-file="+saved) {
		t.Errorf("the unit:\n%s", s)
	}
	if b, err := os.ReadFile(saved); err != nil || strings.TrimSpace(string(b)) != link {
		t.Errorf("the link was not kept: %v", err)
	}
}

func TestInstallRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		args string
		set  func(*world)
		code int
		err  string
	}{
		"another verb":    {args: "status", code: 2, err: "a service runs relay, gateway or up"},
		"bad flag":        {args: "up --advertise 10.0.0.0/8", code: 2, err: "unknown flag --advertise"},
		"bad value":       {args: "gateway --advertise 10.0.0.1/8", code: 2, err: "host bits"},
		"bad link":        {args: "up ovl://x", code: 2, err: "mangled"},
		"bad combination": {args: "relay --tls-key k", code: 2, err: "belong together"},
		"temporary program": {args: "up", code: 1, err: "gone after the next boot", set: func(w *world) {
			w.systemd.executable = func() (string, error) { return "/tmp/x/overlayd", nil }
		}},
		"foreign unit": {args: "up", code: 8, err: "was not written by overlayd", set: func(w *world) {
			if err := os.WriteFile(filepath.Join(w.systemd.unitDir, "overlayd.service"), []byte("[Unit]\n"), 0o600); err != nil {
				panic(err)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if c.set != nil {
				c.set(w)
			}
			if code := w.do(append([]string{"service", "install"}, strings.Fields(c.args)...)...); code != c.code {
				t.Errorf("exit code %d: %s", code, &w.err)
			}
			compare(t, "stderr", w.err.String(), c.err)
			if len(w.calls) > 0 {
				t.Errorf("did %v", w.calls)
			}
		})
	}
}
