package journal_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"overlayd/journal"
	"overlayd/nat"
	"overlayd/routing"

	"overlayd/internal/netnstest"
)

// childEnv tells a process of this test's program to be the daemon of a state
// directory.
const childEnv = "OVERLAYD_TEST_STATE_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		if err := gateway(dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("ready")
		select {} // until it is killed
	}
	os.Exit(m.Run())
}

// open returns the parts that change this machine, with the journal of dir.
func open(dir string) (*routing.Kernel, *nat.Tables, error) {
	j, err := journal.Open(dir)
	if err != nil {
		return nil, nil, err
	}
	k, kerr := routing.NewKernel(routing.Options{Journal: j})
	t, terr := nat.New(nat.Options{Journal: j})
	return k, t, errors.Join(kerr, terr)
}

// gateway makes this machine a gateway, as long as the process lives.
func gateway(dir string) error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR, 0)
	if err != nil {
		return err
	}
	ifr, err := unix.NewIfreq("ovl0")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return err
	}
	k, t, err := open(dir)
	if err != nil {
		return err
	}
	lan := netip.MustParsePrefix("192.168.1.0/24")
	overlay := netip.MustParsePrefix("172.18.0.200/24")
	err = t.Apply(context.Background(), nat.Ruleset{
		Link: "ovl0", Overlay: overlay.Masked(), LANs: []nat.LAN{{Prefix: lan, Link: "eth0"}}, MTU: 1420,
	})
	return errors.Join(err, k.Apply(context.Background(), routing.State{
		Link: "ovl0", MTU: 1420, Addrs: []netip.Prefix{overlay}, Forward: true, LANs: []string{"eth0"},
	}))
}

var comments = regexp.MustCompile(`(?m)^#.*\n`)

// picture is all that must be as it was.
func picture(t *testing.T) string {
	var b strings.Builder
	for _, c := range []string{"ip rule", "ip route show table all", "ip link", "iptables-save", "sysctl -a -r ^net.ipv4"} {
		b.WriteString(netnstest.Run(t, c))
	}
	return comments.ReplaceAllString(b.String(), "")
}

// TestKilled kills a gateway, twice, and cleans up after it.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	netnstest.In(t, func(t *testing.T) {
		for _, c := range []string{
			"sysctl -qw net.ipv6.conf.default.addr_gen_mode=1",
			"ip link set lo up", "ip link add eth0 type veth peer name switch",
			"ip addr add 192.168.1.200/24 dev eth0", "ip link set eth0 up", "ip link set switch up",
			"iptables -P FORWARD DROP", "sysctl -qw net.ipv4.conf.all.accept_redirects=0",
		} {
			netnstest.Run(t, c)
		}
		netnstest.Settle(t, "eth0", "switch")
		before := picture(t)
		for range 2 {
			daemon := exec.Command("/proc/self/exe", "-test.run=^$")
			daemon.Env = append(os.Environ(), childEnv+"="+dir)
			out, err := daemon.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := daemon.Start(); err != nil {
				t.Fatal(err)
			}
			line, _ := bufio.NewReader(out).ReadString('\n')
			if line != "ready\n" {
				t.Errorf("daemon says %q", line)
			}
			if got := picture(t); !strings.Contains(got, "OVL-FWD") || !strings.Contains(got, "net.ipv4.ip_forward = 1") {
				t.Error("daemon changed nothing")
			}
			daemon.Process.Kill()
			daemon.Wait()
		}
		k, tables, err := open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(tables.Clear(t.Context()), k.Clear(t.Context(), "ovl0")); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(before, picture(t)); diff != "" {
			t.Error(diff)
		}
	})
}
