//go:build linux

package lab_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"overlayd/examples/lab"
	"overlayd/examples/lab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }

func TestTheWorldIsAsDrawn(t *testing.T) {
	for _, kind := range []lab.NAT{lab.Cone, lab.Hard} {
		t.Run("NAT "+string(kind), func(t *testing.T) {
			ctx, l := labtest.New(t, lab.Options{Home: kind, Lab: kind})
			ping := func(m *lab.Machine, addr string) error {
				_, err := m.Run(ctx, "ping", "-c", "1", "-W", "1", addr)
				return err
			}
			for _, c := range []struct {
				from    *lab.Machine
				to      string
				reaches bool
			}{
				{l.Laptop, lab.VPSAddr, true},
				{l.Gateway, lab.VPSAddr, true},
				{l.Host, lab.VPSAddr, true},
				{l.Gateway, lab.HostAddr, true},
				{l.VPS, lab.HomePublic, false},
				{l.VPS, lab.LabPublic, false},
				{l.Laptop, lab.HostAddr, false},
				{l.VPS, lab.HostAddr, false},
			} {
				if err := ping(c.from, c.to); (err == nil) != c.reaches {
					t.Errorf("%s reaches %s: %v, want %v (%v)", c.from.Name, c.to, err == nil, c.reaches, err)
				}
			}
		})
	}
}

// A hard NAT shows two destinations two ports; a cone NAT shows them one, and
// it is the inner one.
func TestMappings(t *testing.T) {
	for _, kind := range []lab.NAT{lab.Cone, lab.Hard} {
		t.Run("NAT "+string(kind), func(t *testing.T) {
			ctx, l := labtest.New(t, lab.Options{Home: kind})
			labtest.Run(ctx, t, l.VPS, "ip", "addr", "add", "203.0.113.11/24", "dev", "eth0")
			inner, err := l.Laptop.ListenPacket("udp4", "0.0.0.0:40000")
			if err != nil {
				t.Fatal(err)
			}
			defer inner.Close()
			seen := map[string]bool{}
			for _, addr := range []string{lab.VPSAddr, "203.0.113.11"} {
				server, err := l.VPS.ListenPacket("udp4", addr+":7000")
				if err != nil {
					t.Fatal(err)
				}
				defer server.Close()
				if _, err := inner.WriteTo([]byte("x"), server.LocalAddr()); err != nil {
					t.Fatal(err)
				}
				_ = server.SetReadDeadline(time.Now().Add(5 * time.Second))
				_, from, err := server.ReadFrom(make([]byte, 8))
				if err != nil {
					t.Fatal(err)
				}
				seen[from.String()] = true
			}
			if kind == lab.Cone && !seen[lab.HomePublic+":40000"] || kind == lab.Cone && len(seen) != 1 {
				t.Errorf("a cone NAT shows %v", seen)
			}
			if kind == lab.Hard && len(seen) != 2 {
				t.Errorf("a hard NAT shows %v", seen)
			}
		})
	}
}

func TestOptions(t *testing.T) {
	ctx, l := labtest.New(t, lab.Options{NoOffload: true, MiddleMTU: 1400, FilterICMP: true, Clash: true, Docker: true})
	features := labtest.Run(ctx, t, l.Gateway, "ethtool", "-k", "eth0")
	for _, f := range []string{"tcp-segmentation-offload", "generic-segmentation-offload", "generic-receive-offload", "tx-udp-segmentation"} {
		if !strings.Contains(features, f+": off") {
			t.Errorf("%s is not off:\n%s", f, features)
		}
	}
	// The VPS cannot know of the small link, and is not told.
	if _, err := l.Laptop.Run(ctx, "ping", "-c", "1", "-W", "1", "-M", "do", "-s", "1372", lab.VPSAddr); err != nil {
		t.Errorf("1400 bytes do not pass: %v", err)
	}
	if out, err := l.Laptop.Run(ctx, "ping", "-c", "1", "-W", "1", "-M", "do", "-s", "1373", lab.VPSAddr); err == nil || strings.Contains(out, "Frag needed") {
		t.Errorf("1401 bytes: %v\n%s", err, out)
	}
	labtest.Run(ctx, t, l.Laptop, "ping", "-c", "1", "-W", "1", lab.HostAddr) // the home NAT's second address
	if rules := labtest.Run(ctx, t, l.Gateway, "iptables", "-S"); !strings.Contains(rules, "-P FORWARD DROP") || !strings.Contains(rules, "-N DOCKER-USER") {
		t.Errorf("the gateway's rules:\n%s", rules)
	}
}

func TestCaptureSeesAMarker(t *testing.T) {
	ctx, l := labtest.New(t, lab.Options{})
	c, err := l.VPS.Capture(ctx, "eth0", "udp")
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.VPS.ListenPacket("udp4", lab.VPSAddr+":7000")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	client, err := l.Laptop.DialContext(ctx, "udp4", lab.VPSAddr+":7000")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := io.WriteString(client, "a marker in the clear"); err != nil {
		t.Fatal(err)
	}
	_ = server.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, _, err := server.ReadFrom(make([]byte, 64)); err != nil {
		t.Fatal(err)
	}
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Count([]byte("a marker in the clear")); n != 1 || err != nil {
		t.Errorf("the marker is there %d times, %v", n, err)
	}
}

func TestNothingIsLeft(t *testing.T) {
	ctx, l := labtest.New(t, lab.Options{})
	p, err := l.VPS.Start("sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	// One that the lab does not know of, and that will not listen. It says when
	// it is in the machine: before that, Close could not find it there.
	stray := l.VPS.Command(ctx, "sh", "-c", "trap '' TERM; echo; sleep 1000 & wait; wait")
	said, err := stray.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := stray.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := said.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	usage, err := p.Usage()
	if err != nil || usage.RSS == 0 {
		t.Errorf("usage %+v, %v", usage, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if p.Running() {
		t.Error("a process outlived its lab")
	}
	_ = stray.Wait() // it was killed: returns at once
	if err := ctx.Err(); err != nil {
		t.Errorf("the stray process went on: %v", err)
	}
	if _, err := os.Stat(l.Dir); !os.IsNotExist(err) {
		t.Errorf("the directory is still there: %v", err)
	}
	out, err := exec.Command("ip", "netns", "list").Output()
	if err != nil || strings.Contains(string(out), l.VPS.Namespace) {
		t.Errorf("namespaces left: %v\n%s", err, out)
	}
}

func TestLeftoversOfTheDead(t *testing.T) {
	labtest.NeedRoot(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	// It is in its namespace before that has a name: whoever clears up at the
	// same time, another run's lab too, finds it there.
	stray := exec.CommandContext(ctx, "sleep", "1000")
	stray.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := stray.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stray.Process.Kill() }()
	ns := fmt.Sprintf("%s%d-laptop", "ovl-", dead.Process.Pid)
	if out, err := exec.CommandContext(ctx, "ip", "netns", "attach", ns, strconv.Itoa(stray.Process.Pid)).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := lab.RemoveLeftovers(ctx); err != nil {
		t.Fatal(err)
	}
	if err := stray.Wait(); err == nil || ctx.Err() != nil {
		t.Errorf("the leftover's process was not killed: %v, %v", err, ctx.Err())
	}
	if _, err := os.Stat("/run/netns/" + ns); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", ns, err)
	}
}

func TestSnapshotSeesWhatRulesDo(t *testing.T) {
	ctx, l := labtest.New(t, lab.Options{Docker: true})
	snapshot := func() string {
		t.Helper()
		s, err := l.Gateway.Snapshot(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	before := snapshot()
	for _, c := range []struct{ name, do, undo string }{
		{"a rule in a table of its own", "iptables -w -t mangle -A FORWARD -j ACCEPT", "iptables -w -t mangle -D FORWARD -j ACCEPT"},
		{"a policy", "iptables -w -P FORWARD ACCEPT", "iptables -w -P FORWARD DROP"},
		{"a route", "ip route add 10.9.9.0/24 via 192.168.1.1 table 52", "ip route del 10.9.9.0/24 table 52"},
		{"a routing rule", "ip rule add fwmark 7 lookup 52", "ip rule del fwmark 7"},
		{"a sysctl", "sysctl -qw net.ipv4.ip_forward=1", "sysctl -qw net.ipv4.ip_forward=0"},
		{"a link", "ip link add x type bridge", "ip link del x"},
	} {
		labtest.Run(ctx, t, l.Gateway, "sh", "-c", c.do)
		if lab.Differences(before, snapshot()) == "" {
			t.Errorf("%s does not show", c.name)
		}
		labtest.Run(ctx, t, l.Gateway, "sh", "-c", c.undo)
		if d := lab.Differences(before, snapshot()); d != "" {
			t.Errorf("%s: undone, the machine is not as before:\n%s", c.name, d)
		}
	}
}
