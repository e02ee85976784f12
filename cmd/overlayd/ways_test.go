package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"overlayd/overlay"
)

// fakeStream is a connection whose other end has said all it will.
type fakeStream struct {
	io.Reader
	sent  bytes.Buffer
	ended chan struct{}
	fate  error
}

func newFakeStream(says string) *fakeStream {
	return &fakeStream{Reader: strings.NewReader(says), ended: make(chan struct{})}
}

func (s *fakeStream) Write(b []byte) (int, error)               { return s.sent.Write(b) }
func (s *fakeStream) CloseWrite() error                         { close(s.ended); return nil }
func (s *fakeStream) Close() error                              { return nil }
func (s *fakeStream) SetReadDeadline(time.Time) error           { return nil }
func (s *fakeStream) Fate(context.Context) (over bool, _ error) { <-s.ended; return true, s.fate }

// hungStream says nothing until it is closed.
type hungStream struct {
	*fakeStream
	closed chan struct{}
	end    func()
}

func (s hungStream) Read([]byte) (int, error) { <-s.closed; return 0, net.ErrClosed }
func (s hungStream) Close() error             { s.end(); return nil }

// TestNC: both directions are carried, and how it ends is the exit code.
func TestNC(t *testing.T) {
	w := newWorld(t)
	c := newFakeStream("an answer")
	w.stdin, w.streams = "a question", map[string]stream{"tcp nas.lab:80": c}
	if code := w.do("nc", "nas.lab", "80"); code != 0 || w.out.String() != "an answer" || c.sent.String() != "a question" {
		t.Errorf("exit code %d, %q for %q\n%s", code, w.out.String(), c.sent.String(), &w.err)
	}
	c = newFakeStream("half an ans")
	c.fate = &overlay.Fault{Code: overlay.ExitUnreachable, Message: "the connection was reset"}
	w.streams["tcp nas.lab:80"] = c
	if code := w.do("nc", "nas.lab", "80"); code != overlay.ExitUnreachable || !strings.Contains(w.err.String(), "reset") {
		t.Errorf("exit code %d: %s", code, &w.err)
	}
	if code := w.do("nc", "other", "80"); code != overlay.ExitDenied {
		t.Errorf("exit code %d for what the policy refuses", code)
	}
	// ssh ends it with a signal at the end of every session, which is no news.
	closed := make(chan struct{})
	hung := hungStream{newFakeStream(""), closed, sync.OnceFunc(func() { close(closed) })}
	w.streams["tcp nas.lab:80"] = hung
	ctx, hangUp := context.WithCancel(t.Context())
	go func() { <-hung.ended; hangUp() }()
	w.err.Reset()
	if code := w.program().main(ctx, []string{"nc", "nas.lab", "80"}); code == 0 || w.err.Len() > 0 {
		t.Errorf("exit code %d after a signal, and %q", code, &w.err)
	}
	for wait, want := range map[string]int{"3": overlay.ExitDenied, "3s": overlay.ExitDenied, "0": overlay.ExitUsage, "x": overlay.ExitUsage} {
		if code := w.do("nc", "-w", wait, "other", "80"); code != want {
			t.Errorf("exit code %d for -w %s, want %d", code, wait, want)
		}
	}
	if code := w.do("nc", "other"); code != overlay.ExitUsage {
		t.Errorf("exit code %d without a port", code)
	}
}

// TestProxyVerbs: what the daemon is asked, and what is printed.
func TestProxyVerbs(t *testing.T) {
	w := newWorld(t)
	if code := w.do("proxy", "env"); code != overlay.ExitFailure {
		t.Errorf("exit code %d for the lines of a proxy that is off", code)
	}
	if code := w.do("proxy"); code != 0 {
		t.Fatal(w.err.String())
	}
	compare(t, "stdout", w.out.String(), `socks5   socks5h://127.0.0.1:1080
http     http://127.0.0.1:1080
pac      http://127.0.0.1:1080/proxy.pac
reaches  the network; everything else as this machine does
for      your own programs
`)
	if w.do("proxy", "env"); !strings.Contains(w.out.String(), "export ALL_PROXY=socks5h://127.0.0.1:1080\n") || strings.Contains(w.out.String(), "HTTP_PROXY") {
		t.Errorf("got\n%s", &w.out)
	}
	if w.do("proxy", "env", "--unset"); !strings.HasPrefix(w.out.String(), "unset http_proxy ") {
		t.Errorf("got\n%s", &w.out)
	}
	w.env["no_proxy"] = "10.0.0.0/8, localhost"
	if w.do("proxy", "env"); !strings.Contains(w.out.String(), "export no_proxy='10.0.0.0/8,localhost,127.0.0.1,::1'\nexport NO_PROXY='localhost,127.0.0.1,::1'\n") {
		t.Errorf("got\n%s", &w.out)
	}
	if w.do("proxy", "env", "--unset"); !strings.HasSuffix(w.out.String(), "export no_proxy='10.0.0.0/8'\nunset NO_PROXY\n") {
		t.Errorf("got\n%s", &w.out)
	}
	if w.do("proxy", "--listen", ":1080"); !strings.Contains(w.out.String(), "password  ") || !strings.Contains(w.out.String(), "and nothing else") || strings.Contains(w.out.String(), "your own") {
		t.Errorf("no password is printed, or it seems to reach more:\n%s", &w.out)
	}
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("correct horse battery\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if w.do("proxy", "--listen", "192.168.7.2:1080", "--password-file", file); strings.Contains(w.out.String(), "correct") {
		t.Errorf("a password that is known is printed:\n%s", &w.out)
	}
	if code := w.do("proxy", "env"); code != overlay.ExitFailure || !strings.Contains(w.err.String(), "password") {
		t.Errorf("exit code %d\n%s", code, &w.err)
	}
	w.do("proxy", "off")
	want := []string{"proxy 127.0.0.1:1080 0", "proxy 0.0.0.0:1080 26", "proxy 192.168.7.2:1080 21", "proxy  0"}
	if d := cmp.Diff(want, w.calls); d != "" {
		t.Error(d)
	}
}

// TestForwardVerbs: likewise.
func TestForwardVerbs(t *testing.T) {
	w := newWorld(t)
	problem := "no answer"
	w.ways.Forwards = []overlay.ForwardLine{{Network: "tcp", Listen: "127.0.0.1:8080", Target: "nas.lab:80", Open: 1, Accepted: 7, Error: &problem}}
	w.do("forward", "127.0.0.1:8080", "nas.lab:80")
	compare(t, "stdout", w.out.String(), "tcp 127.0.0.1:8080 comes out at nas.lab:80, for every program of this machine\n")
	w.do("forward", "127.0.0.1:5353", "192.168.1.1:53", "--udp", "--allow-remote")
	w.do("forward", "remove", "127.0.0.1:8080")
	compare(t, "stdout", w.out.String(), "removed: tcp 127.0.0.1:8080 does not lead to nas.lab:80 any more\n")
	w.do("forward", "remove", "127.0.0.1:5353", "-u")
	want := []string{
		"forward tcp 127.0.0.1:8080 nas.lab:80 false", "forward udp 127.0.0.1:5353 192.168.1.1:53 true",
		`unforward "" 127.0.0.1:8080`, `unforward "udp" 127.0.0.1:5353`,
	}
	if d := cmp.Diff(want, w.calls); d != "" {
		t.Error(d)
	}
	w.do("forward", "list")
	compare(t, "stdout", w.out.String(), "PROTO  LISTEN          TARGET      OPEN  SO FAR  PROBLEM\ntcp    127.0.0.1:8080  nas.lab:80  1     7       no answer\n")
}

// TestSSH: ssh is run with the connection made here, and its arguments as given.
func TestSSH(t *testing.T) {
	w := newWorld(t)
	w.do("ssh", "ubuntu@192.168.1.201", "-L", "1:b:2", "ls", "--all")
	w.do("--socket", "/run/my own/s", "ssh", "nas.lab")
	want := []string{
		"exec ssh -o ProxyCommand=/usr/local/bin/overlayd nc '%h' %p ubuntu@192.168.1.201 -L 1:b:2 ls --all",
		"exec ssh -o ProxyCommand=/usr/local/bin/overlayd --socket '/run/my own/s' nc '%h' %p nas.lab",
	}
	if d := cmp.Diff(want, w.calls); d != "" {
		t.Error(d)
	}
}

const wantSSHConfig = `# Written by overlayd ssh config; run it again with --install to renew it.
Host *.lab 172.18.0.* 192.168.1.* lab-gw laptop
    ProxyCommand /usr/local/bin/overlayd nc '%h' %p
`

// TestSSHConfig: it is printed, installed twice and taken away, and what was
// there stays.
func TestSSHConfig(t *testing.T) {
	for name, have := range map[string]string{
		"none": "-", "empty": "", "some": "Host x\n    User y\n",
		"one that reads it within a host": "Host x\n    Include config.d/*.conf\n",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			home := t.TempDir()
			w.env["HOME"] = home
			main, ours := filepath.Join(home, ".ssh/config"), filepath.Join(home, ".ssh/config.d/overlayd.conf")
			if have != "-" {
				if err := os.MkdirAll(filepath.Dir(main), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(main, []byte(have), 0o640); err != nil {
					t.Fatal(err)
				}
			}
			w.do("ssh", "config")
			compare(t, "stdout", w.out.String(), wantSSHConfig)
			for range 2 {
				if code := w.do("ssh", "config", "--install"); code != 0 {
					t.Fatal(w.err.String())
				}
			}
			compare(t, "our file", readText(t, ours), wantSSHConfig)
			if got := readText(t, main); strings.Count(got, "Include config.d/overlayd.conf\n") != 1 || !strings.HasPrefix(got, "Include") ||
				!strings.HasSuffix(got, strings.TrimPrefix(have, "-")) {
				t.Errorf("the main file is %q", got)
			}
			if i, err := os.Stat(ours); err != nil || i.Mode().Perm() != 0o600 {
				t.Errorf("our file: %v, %v", i.Mode(), err)
			}
			if i, err := os.Stat(main); have != "-" && (err != nil || i.Mode().Perm() != 0o640) {
				t.Errorf("the main file has another mode: %v, %v", i.Mode(), err)
			}
			if code := w.do("ssh", "config", "--remove"); code != 0 {
				t.Fatal(w.err.String())
			}
			if _, err := os.Stat(ours); !os.IsNotExist(err) {
				t.Errorf("our file is still there: %v", err)
			}
			if b, err := os.ReadFile(main); have != "" && have != "-" && string(b) != have || have == "-" && !os.IsNotExist(err) {
				t.Errorf("the main file is %q (%v), was %q", b, err, have)
			}
		})
	}
}

func readText(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestPatterns: a prefix in ssh's words is that prefix, and no more.
func TestPatterns(t *testing.T) {
	for prefix, want := range map[string][]string{
		"192.168.1.0/24": {"192.168.1.*"}, "10.0.0.0/8": {"10.*"}, "192.168.4.0/23": {"192.168.4.*", "192.168.5.*"},
		"192.168.1.8/30": {"192.168.1.8", "192.168.1.9", "192.168.1.10", "192.168.1.11"}, "192.168.1.7/32": {"192.168.1.7"},
		"fd00::/8": nil,
	} {
		if got := patterns(netip.MustParsePrefix(prefix)); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", prefix, got, want)
		}
	}
}

// TestIncludes: a line that ssh would read for every host.
func TestIncludes(t *testing.T) {
	for text, want := range map[string]bool{
		"Include config.d/overlayd.conf\n": true, "include ~/.ssh/config.d/*\n": true, "# x\n\nInclude a config.d/*.conf": true,
		"": false, "#Include config.d/*\n": false, "Host *\nInclude config.d/*\n": false, "Include other/*": false,
	} {
		if got := includes(text); got != want {
			t.Errorf("%q: %t", text, got)
		}
	}
}
