package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"overlayd/overlay/coord"
)

// TestPrecedence sets one flag in every place at once, and takes the places
// away from the strongest to the weakest.
func TestPrecedence(t *testing.T) {
	w := newWorld(t)
	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, []byte("name: from-file\nadvertise: [10.1.0.0/16, 10.2.0.0/16]\nstate-dir: /file\nno-portmap: true\ninvite-ttl: 2h\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(want string, prefixes int, args ...string) {
		t.Helper()
		if code := w.do(append([]string{"gateway"}, args...)...); code != 0 {
			t.Fatalf("exit code %d: %s", code, &w.err)
		}
		if w.member.Name != want || len(w.member.Advertise) != prefixes || w.member.Role != coord.RoleGateway {
			t.Errorf("got %q and %v, want %q and %d prefixes", w.member.Name, w.member.Advertise, want, prefixes)
		}
	}
	w.env = map[string]string{"OVERLAYD_NAME": "from-env", "OVERLAYD_ADVERTISE": "10.3.0.0/16, 10.4.0.0/16,10.5.0.0/16", "OVERLAYD_CONFIG": file}
	run("from-flag", 1, "--name", "from-flag", "--advertise", "10.9.0.0/16")
	run("from-env", 3)
	w.env = map[string]string{"OVERLAYD_CONFIG": file, "OVERLAYD_NAME": ""}
	run("from-file", 2)
	if w.member.StateDir != "/file" {
		t.Errorf("state dir %s", w.member.StateDir)
	}
	if !w.member.NoPortmap {
		t.Error("no-portmap of the file is not taken")
	}
	w.env = nil
	run("", 0)
	if w.member.NoPortmap {
		t.Error("a port mapping is not asked for by itself")
	}
	w.env = map[string]string{"OVERLAYD_NO_PORTMAP": "true"}
	if run("", 0); !w.member.NoPortmap {
		t.Error("OVERLAYD_NO_PORTMAP is not taken")
	}
	run("", 0, "--no-portmap=false")
	if w.member.NoPortmap {
		t.Error("the flag is weaker than the environment")
	}

	w.env = map[string]string{"OVERLAYD_CONFIG": file, "OVERLAYD_INVITE_USES": "5", "OVERLAYD_NAME": "not-for-invites"}
	w.do("invite")
	w.env = map[string]string{"OVERLAYD_PORT": "many"}
	if code := w.do("up"); code != 2 {
		t.Errorf("exit code %d for a bad variable", code)
	}
	compare(t, "stderr", w.err.String(), "overlayd: OVERLAYD_PORT: \"many\" is not a port: 1 to 65535\n")
	if d := cmp.Diff([]string{`invite "" [] invalid IP 5 2h0m0s`}, w.calls); d != "" {
		t.Error(d)
	}
}

func TestLinkSources(t *testing.T) {
	link := testLink.Encode()
	file := filepath.Join(t.TempDir(), "link")
	if err := os.WriteFile(file, []byte(link+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args   []string
		env    string
		stdin  string
		joined bool
		want   string
		code   int
	}{
		"none":         {},
		"word":         {args: []string{link}, want: link},
		"variable":     {env: link, want: link},
		"file":         {args: []string{"--link-file", file}, want: link},
		"file gone":    {args: []string{"--link-file", file + "x"}, joined: true},
		"no file":      {args: []string{"--link-file", file + "x"}, code: 1},
		"stdin":        {args: []string{"--link-file", "-"}, stdin: link + "\n", want: link},
		"dash":         {args: []string{"-"}, stdin: link, want: link},
		"empty stdin":  {args: []string{"-"}, code: 2},
		"bad variable": {env: "ovl://x", code: 2},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.env["OVERLAYD_LINK"], w.stdin, w.joined = c.env, c.stdin, c.joined
			if code := w.do(append([]string{"up"}, c.args...)...); code != c.code {
				t.Errorf("exit code %d: %s", code, &w.err)
			}
			if w.member.Link != c.want {
				t.Errorf("the link did not arrive")
			}
		})
	}
}

// TestSettingNames keeps every flag reachable under one name, and the names of
// daemons' flags free of those of other verbs.
func TestSettingNames(t *testing.T) {
	owner := map[string]string{}
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		cmd.InheritedFlags()
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			s := settingName(cmd, f)
			if s == "" {
				return
			}
			if kind, ok := owner[s]; ok && kind != f.Value.Type() {
				t.Errorf("setting %s is both %s and %s", s, kind, f.Value.Type())
			}
			owner[s] = f.Value.Type()
		})
		for _, c := range cmd.Commands() {
			walk(c)
		}
	}
	walk(new(program).rootCommand())
	for _, s := range []string{"state-dir", "advertise", "public", "json", "invite-ttl", "ping-count", "routes-approve-node", "service-install-name"} {
		if owner[s] == "" {
			t.Errorf("no setting %s in %v", s, owner)
		}
	}
	if got := envName("invite-ttl"); got != "OVERLAYD_INVITE_TTL" {
		t.Error(got)
	}
}

func TestRelayOptions(t *testing.T) {
	w := newWorld(t)
	if code := w.do("relay", "--public", "203.0.113.10", "--overlay", "172.18.0.0/24", "--address", "172.18.0.10", "--listen", ":8443"); code != 0 {
		t.Fatal(&w.err)
	}
	h := w.hub
	if h.Public != "203.0.113.10" || h.Listen != ":8443" || h.Overlay.String() != "172.18.0.0/24" ||
		h.Address.String() != "172.18.0.10" || h.Role != coord.RoleRelay || h.Ready == nil || h.Log == nil {
		t.Errorf("%+v", h)
	}
	if w.do("relay"); w.hub.Overlay.IsValid() || w.hub.Address.IsValid() || w.hub.Public != "" {
		t.Errorf("a later start should take what is stored: %+v", w.hub)
	}
	link := testLink.Encode()
	if w.do("relay", "--join", link, "--public", "198.51.100.10"); w.hub.Link != link || w.hub.Public != "198.51.100.10" {
		t.Errorf("a further relay: %+v", w.hub)
	}
	w.env["OVERLAYD_LINK"] = link
	if w.do("relay", "--public", "198.51.100.10"); w.hub.Link != "" {
		t.Error("a link in the environment is for up and gateway")
	}
	delete(w.env, "OVERLAYD_LINK")
	if code := w.do("relay", "--join", link, "--overlay", "172.18.0.0/24"); code != 2 || !strings.Contains(w.err.String(), "hint: leave out --overlay") {
		t.Errorf("exit code %d: %s", code, &w.err)
	}
	if code := w.do("relay", "--join", "", "--public", "198.51.100.10"); code != 2 || !strings.Contains(w.err.String(), "the link is empty") {
		t.Errorf("an empty link, exit code %d: %s", code, &w.err)
	}
	if code := w.do("relay", "--join", "ovl://x"); code != 2 || !strings.Contains(w.err.String(), "mangled") {
		t.Errorf("exit code %d: %s", code, &w.err)
	}
	for public, ok := range map[string]bool{"vpn.example.org": true, "vpn.example.org:8443": true, "[2001:db8::1]:443": true,
		"2001:db8::1": true, "203.0.113.10:0": false, "a b": false, "": true, "[::]:443": false, "http://x": false} {
		var a publicAddress
		if err := a.Set(public); (err == nil) != (ok && public != "") {
			t.Errorf("--public %q: %v", public, err)
		}
	}
}
