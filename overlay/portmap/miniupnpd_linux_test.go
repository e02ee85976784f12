package portmap

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// home is a router with Debian's miniupnpd and a machine behind it, in network
// namespaces.
type home struct {
	t               *testing.T
	router, machine string // namespaces
	daemon          *exec.Cmd
}

func (h *home) run(namespace, command string) string {
	h.t.Helper()
	out, err := exec.Command("ip", append([]string{"netns", "exec", namespace}, strings.Fields(command)...)...).CombinedOutput()
	if err != nil {
		h.t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

func newHome(t *testing.T, name string) *home {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root, and CI must not skip it")
		}
		t.Skip("SKIPPED: needs root for network namespaces")
	}
	prefix := fmt.Sprintf("ovl-%d-%s-", os.Getpid(), name)
	h := &home{t: t, router: prefix + "r", machine: prefix + "m"}
	for _, ns := range []string{h.router, h.machine} {
		if out, err := exec.Command("ip", "netns", "add", ns).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		t.Cleanup(func() { exec.Command("ip", "netns", "del", ns).Run() })
		h.run(ns, "ip link set lo up")
	}
	for _, command := range []string{
		"ip link add wan type veth peer name isp", "ip link add lan type veth peer name eth0 netns " + h.machine,
		"ip addr add 198.51.100.2/24 dev wan", "ip addr add 192.168.77.1/24 dev lan",
		"ip link set wan up", "ip link set isp up", "ip link set lan up",
		"nft add table inet miniupnpd", "nft add chain inet miniupnpd passed",
		"nft add chain inet miniupnpd mapped", "nft add chain inet miniupnpd masked",
	} {
		h.run(h.router, command)
	}
	for _, command := range []string{
		"ip addr add 192.168.77.2/24 dev eth0", "ip link set eth0 up", "ip route add default via 192.168.77.1",
		// Whatever leaves without the mark is counted.
		"nft add table inet watch", "nft add chain inet watch out { type filter hook output priority 0 ; }",
		fmt.Sprintf("nft add rule inet watch out oifname eth0 meta l4proto udp meta mark != %#x counter", testMark),
		fmt.Sprintf("nft add rule inet watch out oifname eth0 tcp flags syn meta mark != %#x counter", testMark),
	} {
		h.run(h.machine, command)
	}
	return h
}

// start switches the router on: it knows nothing of before.
func (h *home) start(p Protocol) {
	h.t.Helper()
	for _, chain := range []string{"passed", "mapped", "masked"} {
		h.run(h.router, "nft flush chain inet miniupnpd "+chain)
	}
	word := map[bool]string{true: "yes", false: "no"}
	conf := filepath.Join(h.t.TempDir(), "conf")
	text := strings.Join([]string{
		"ext_ifname=wan", "ext_ip=11.0.0.2", "listening_ip=lan", "http_port=0", "secure_mode=yes", "system_uptime=no",
		"enable_upnp=" + word[p == UPnP], "enable_natpmp=" + word[p != UPnP], "uuid=00000000-0000-4000-8000-000000000002",
		"upnp_table_name=miniupnpd", "upnp_nat_table_name=miniupnpd", "upnp_forward_chain=passed",
		"upnp_nat_chain=mapped", "upnp_nat_postrouting_chain=masked",
		"allow 1024-65535 0.0.0.0/0 1024-65535", "deny 0-65535 0.0.0.0/0 0-65535", "",
	}, "\n")
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
	h.daemon = exec.Command("ip", "netns", "exec", h.router, "miniupnpd", "-d", "-f", conf, "-P", conf+".pid")
	out, err := h.daemon.StderrPipe()
	if err == nil {
		err = h.daemon.Start()
	}
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(h.kill)
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.Contains(lines.Text(), "listening on port") && !strings.Contains(lines.Text(), "traffic on port") {
	}
	go io.Copy(io.Discard, out) // ends with the daemon
}

func (h *home) kill() {
	h.daemon.Process.Kill()
	h.daemon.Wait()
}

func (h *home) mappings() int {
	return strings.Count(h.run(h.router, "nft list chain inet miniupnpd mapped"), "dport 41642")
}

// TestMiniupnpd speaks each protocol with a real router: the mapping is there, is
// made anew after a restart, and is gone at the end; all that was sent had the
// mark.
func TestMiniupnpd(t *testing.T) {
	for _, p := range []Protocol{PCP, NATPMP, UPnP} {
		t.Run(string(p), func(t *testing.T) {
			t.Parallel() // each waits ten seconds, see kickGap
			h := newHome(t, string(p))
			h.start(p)
			cmd := exec.CommandContext(t.Context(), "ip", "netns", "exec", h.machine, os.Args[0])
			cmd.Env = append(os.Environ(), insideEnv+"="+string(p))
			cmd.Stderr = os.Stderr
			in, err1 := cmd.StdinPipe()
			out, err2 := cmd.StdoutPipe()
			if err1 != nil || err2 != nil {
				t.Fatal(err1, err2)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := make(chan string, 10)
			go func() { // ends with cmd
				defer close(lines)
				for s := bufio.NewScanner(out); s.Scan(); {
					lines <- s.Text()
				}
			}()
			next := func() string {
				select {
				case l := <-lines:
					return l
				case <-time.After(30 * time.Second):
					t.Fatal("nothing happens")
				}
				return ""
			}
			at := time.Now()
			if got := next(); got != testExternal {
				t.Errorf("%q is offered", got)
			}
			t.Logf("mapped after %v", time.Since(at).Round(time.Millisecond))
			if n := h.mappings(); n != 1 {
				t.Errorf("the router maps %d ports", n)
			}

			h.kill()
			h.start(p)
			fmt.Fprintln(in, "kick")
			for end := time.Now().Add(30 * time.Second); h.mappings() != 1; {
				if time.Now().After(end) {
					t.Fatal("the mapping is not made anew")
				}
			}

			in.Close()
			var d time.Duration
			for err := error(io.EOF); err != nil; {
				d, err = time.ParseDuration(next()) // at first come the mapping that was gone, and the new one
			}
			if t.Logf("stopped after %v", d.Round(time.Millisecond)); d > leaveTime {
				t.Error("that is long")
			}
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
			if n := h.mappings(); n != 0 {
				t.Errorf("at the end the router maps %d ports", n)
			}
			h.kill()
			if out := h.run(h.machine, "nft list chain inet watch out"); strings.Count(out, "counter packets 0 ") != 2 {
				t.Errorf("something left without the mark:\n%s", out)
			}
		})
	}
}
