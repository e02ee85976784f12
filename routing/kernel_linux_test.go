package routing

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"overlayd/internal/netnstest"
)

// machine makes a small host: a LAN, a default route, an own rule and a sysctl
// or two that are not at their default.
func machine(t *testing.T) {
	for _, c := range []string{
		"ip link set lo up",
		"sysctl -qw net.ipv6.conf.default.addr_gen_mode=1", // no addresses that come by themselves
		"ip link add eth0 type veth peer name switch",
		"ip link set switch up",
		"ip addr add 192.168.1.50/24 dev eth0",
		"ip link set eth0 up",
		"ip route add default via 192.168.1.1",
		"ip rule add pref 5335 from 10.0.0.9 lookup 99",
		"ip rule add pref 100 fwmark 0x1 lookup main",
		"ip route add 10.99.0.0/16 dev eth0 table 99",
		"sysctl -qw net.ipv4.conf.all.accept_redirects=0 net.ipv4.conf.eth0.rp_filter=1",
	} {
		netnstest.Run(t, c)
	}
	netnstest.Settle(t, "eth0", "switch")
}

// tun makes a tunnel interface, as the process that runs the tunnel does.
func tun(t *testing.T) { netnstest.Run(t, "ip tuntap add dev ovl0 mode tun") }

// picture is all that must be as it was.
func picture(t *testing.T) string {
	var b strings.Builder
	for _, c := range []string{"ip -d rule", "ip -d -6 rule", "ip route show table all", "ip link", "ip -4 addr", "sysctl -a -r ^net.ipv[46].(conf|ip_forward)"} {
		fmt.Fprintf(&b, "# %s\n%s", c, netnstest.Run(t, c))
	}
	return b.String()
}

func newKernel(t *testing.T, j Journal) *Kernel {
	k, err := NewKernel(Options{Journal: j})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

var gateway = State{
	Link: "ovl0", MTU: 1380, Addrs: prefixes("172.18.0.200/24"), Routes: prefixes("192.168.1.0/24", "10.7.0.0/16"),
	Forward: true, LANs: []string{"eth0"},
}

func TestApplyAndClear(t *testing.T) {
	both := gateway
	both.Addrs = append(both.Addrs, prefixes("fd00::c8/64")...)
	for _, tt := range []struct {
		name  string
		state State
		end   func(t *testing.T, j Journal, k *Kernel) // how the process ends
	}{
		{"orderly", gateway, func(t *testing.T, j Journal, k *Kernel) {
			if err := k.Clear(t.Context(), "ovl0"); err != nil {
				t.Error(err)
			}
			if left := netnstest.Run(t, "ip route show table 7350") + netnstest.Run(t, "ip -4 addr show dev ovl0"); left != "" {
				t.Errorf("left: %s", left)
			}
			netnstest.Run(t, "ip link del ovl0")
		}},
		{"link first", gateway, func(t *testing.T, j Journal, k *Kernel) {
			netnstest.Run(t, "ip link del ovl0")
			if err := k.Clear(t.Context(), "ovl0"); err != nil {
				t.Error(err)
			}
		}},
		{"killed, then cleanup", gateway, func(t *testing.T, j Journal, k *Kernel) {
			netnstest.Run(t, "ip link del ovl0")
			if err := newKernel(t, j).Clear(t.Context(), "ovl0"); err != nil {
				t.Error(err)
			}
		}},
		{"killed, restarted, killed, cleanup twice", gateway, func(t *testing.T, j Journal, k *Kernel) {
			netnstest.Run(t, "ip link del ovl0")
			tun(t)
			if err := newKernel(t, j).Apply(t.Context(), gateway); err != nil {
				t.Error(err)
			}
			netnstest.Run(t, "ip link del ovl0")
			for range 2 {
				if err := newKernel(t, j).Clear(t.Context(), "ovl0"); err != nil {
					t.Error(err)
				}
			}
		}},
		{"both families", both, func(t *testing.T, j Journal, k *Kernel) {
			netnstest.Run(t, "ip link del ovl0")
			if err := newKernel(t, j).Clear(t.Context(), "ovl0"); err != nil {
				t.Error(err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			netnstest.In(t, func(t *testing.T) {
				machine(t)
				before := picture(t)
				tun(t)
				j := &memory{}
				k := newKernel(t, j)
				if err := k.Apply(t.Context(), tt.state); err != nil {
					t.Error(err)
				}
				applied := picture(t)
				for _, want := range []string{
					"5335:\tfrom all to 192.168.1.0/24 lookup main suppress_prefixlength 0 proto kernel",
					"5340:\tnot from all fwmark 0xb000000/0xff000000 lookup 7350 proto kernel",
					"10.7.0.0/16 dev ovl0 table 7350 proto kernel scope link src 172.18.0.200",
					"mtu 1380", "net.ipv4.ip_forward = 1", "net.ipv4.conf.ovl0.rp_filter = 2",
				} {
					if !strings.Contains(applied, want) {
						t.Errorf("no %q in\n%.3000s", want, applied)
					}
				}
				ours := netnstest.Run(t, "ip rule") + netnstest.Run(t, "ip -6 rule") + netnstest.Run(t, "ip route show table 7350")
				if err := k.Apply(t.Context(), tt.state); err != nil {
					t.Error(err)
				}
				if diff := cmp.Diff(ours, netnstest.Run(t, "ip rule")+netnstest.Run(t, "ip -6 rule")+netnstest.Run(t, "ip route show table 7350")); diff != "" {
					t.Errorf("applied again: %s", diff)
				}
				tt.end(t, j, k)
				if diff := cmp.Diff(before, picture(t)); diff != "" {
					t.Errorf("after: %s", diff)
				}
			})
		})
	}
}

// TestWhoWins asks the kernel for the way of packets: ours and others', to
// networks of this machine and behind the tunnel.
func TestWhoWins(t *testing.T) {
	netnstest.In(t, func(t *testing.T) {
		machine(t)
		tun(t)
		if err := newKernel(t, &memory{}).Apply(t.Context(), gateway); err != nil {
			t.Error(err)
		}
		for _, tt := range []struct{ to, dev string }{
			{"172.18.0.11", "ovl0"},
			{"10.7.1.1", "ovl0"},
			{"192.168.1.201", "eth0"}, // this machine's own LAN
			{"203.0.113.1", "eth0"},
			{"10.7.1.1 mark 0x0b000000", "eth0"}, // our own packets
			{"172.18.0.11 mark 0x0b000001", "eth0"},
			{"172.18.0.11 mark 0x1", "eth0"}, // another's rule before ours
			{"172.18.0.11 mark 0x2", "ovl0"},
		} {
			if got := netnstest.Run(t, "ip route get "+tt.to); !strings.Contains(got, "dev "+tt.dev+" ") {
				t.Errorf("to %s: %s", tt.to, got)
			}
		}
	})
}

// TestSeats: from where people begin connections on this machine only this program
// does, and no program of another user's.
func TestSeats(t *testing.T) {
	netnstest.In(t, func(t *testing.T) {
		machine(t)
		tun(t)
		seat := netip.MustParseAddr("172.18.0.77")
		want := gateway
		want.Addrs, want.Seats = append(slices.Clone(want.Addrs), netip.PrefixFrom(seat, 32)), []netip.Addr{seat}
		k := newKernel(t, &memory{})
		for range 2 {
			if err := k.Apply(t.Context(), want); err != nil {
				t.Fatal(err)
			}
		}
		if rules := netnstest.Run(t, "ip rule show"); strings.Count(rules, "from 172.18.0.77") != 1 {
			t.Errorf("the rules are\n%s", rules)
		}
		own := want.Addrs[0].Addr().String()
		for _, tt := range []struct {
			from, user string
			want       bool
		}{{seat.String(), "0", true}, {seat.String(), "1000", false}, {seat.String(), "65534", false}, {own, "1000", true}} {
			out, err := exec.Command("ip", "route", "get", "172.18.0.11", "from", tt.from, "uid", tt.user).CombinedOutput()
			if sends := err == nil && strings.Contains(string(out), "dev ovl0"); sends != tt.want {
				t.Errorf("from %s as %s: %s", tt.from, tt.user, out)
			}
		}
		if err := k.Apply(t.Context(), gateway); err != nil {
			t.Fatal(err)
		}
		if rules := netnstest.Run(t, "ip rule show"); strings.Contains(rules, "172.18.0.77") {
			t.Errorf("afterwards the rules are\n%s", rules)
		}
	})
}

// TestRepair breaks what was applied in the ways other programs do.
func TestRepair(t *testing.T) {
	for _, tt := range []struct{ name, harm string }{
		{"rules flushed", "ip rule del pref 5340"},
		{"routes flushed", "ip route flush table 7350"},
		{"address gone", "ip addr flush dev ovl0"},
		{"down", "ip link set ovl0 down"},
		{"route changed", "ip route replace 10.7.0.0/16 dev ovl0 table 7350 proto kernel scope link src 192.168.1.50"},
		{"route added", "ip route add 10.8.0.0/16 dev eth0 table 7350"},
		{"forwarding off", "sysctl -qw net.ipv4.ip_forward=0"},
		{"address added", "ip addr add 10.3.3.3/24 dev ovl0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			netnstest.In(t, func(t *testing.T) {
				machine(t)
				tun(t)
				k := newKernel(t, &memory{})
				if err := k.Apply(t.Context(), gateway); err != nil {
					t.Error(err)
				}
				want := netnstest.Run(t, "ip rule") + netnstest.Run(t, "ip route show table 7350") + netnstest.Run(t, "ip -4 addr show dev ovl0")
				netnstest.Run(t, tt.harm)
				if err := k.Apply(t.Context(), gateway); err != nil {
					t.Error(err)
				}
				got := netnstest.Run(t, "ip rule") + netnstest.Run(t, "ip route show table 7350") + netnstest.Run(t, "ip -4 addr show dev ovl0")
				if diff := cmp.Diff(want, got); diff != "" {
					t.Error(diff)
				}
				if v := strings.TrimSpace(netnstest.Run(t, "sysctl -n net.ipv4.ip_forward")); v != "1" {
					t.Errorf("ip_forward is %s", v)
				}
			})
		})
	}
}

func TestWithoutIPv6(t *testing.T) {
	netnstest.In(t, func(t *testing.T) {
		netnstest.Run(t, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")
		machine(t)
		before := picture(t)
		tun(t)
		k := newKernel(t, &memory{})
		if err := k.Apply(t.Context(), gateway); err != nil {
			t.Error(err)
		}
		if err := k.Clear(t.Context(), "ovl0"); err != nil {
			t.Error(err)
		}
		netnstest.Run(t, "ip link del ovl0")
		if diff := cmp.Diff(before, picture(t)); diff != "" {
			t.Error(diff)
		}
	})
}

// TestReadOnlySysctls is a container: a gateway cannot work there and says why, a
// laptop can.
func TestReadOnlySysctls(t *testing.T) {
	netnstest.In(t, func(t *testing.T) {
		machine(t)
		tun(t)
		for _, err := range []error{
			unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""),
			unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""),
		} {
			if err != nil {
				t.Error(err)
			}
		}
		j := &memory{}
		k := newKernel(t, j)
		err := k.Apply(t.Context(), gateway)
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), "sysctl net.ipv4.ip_forward=1: read-only file system") || e.Hint() == "" {
			t.Errorf("gateway: %v", err)
		}
		if err := k.Apply(t.Context(), laptop); err != nil {
			t.Errorf("laptop: %v", err)
		}
		if err := k.Clear(t.Context(), "ovl0"); err != nil {
			t.Errorf("clear: %v", err)
		}
		if len(j.notes) > 0 {
			t.Errorf("still noted: %v", j.notes)
		}
	})
}

func TestApplyErrors(t *testing.T) {
	netnstest.In(t, func(t *testing.T) {
		k := newKernel(t, &memory{})
		if err := k.Apply(t.Context(), laptop); err == nil || !strings.Contains(err.Error(), "link ovl0") {
			t.Errorf("no link: %v", err)
		}
		machine(t)
		tun(t)
		gone := gateway
		gone.LANs = []string{"eth7"}
		if err := k.Apply(t.Context(), gone); err == nil || !strings.Contains(err.Error(), "eth7") {
			t.Errorf("no LAN link: %v", err)
		}
		if err := k.Clear(t.Context(), "eth0"); err != nil { // a wrong name harms nothing
			t.Error(err)
		}
		if !strings.Contains(netnstest.Run(t, "ip addr show dev eth0"), "192.168.1.50/24") {
			t.Error("eth0 lost its address")
		}
	})
}

func TestLook(t *testing.T) {
	netnstest.In(t, func(t *testing.T) {
		machine(t)
		netnstest.Run(t, "ip link set eth0 mtu 1400")
		netnstest.Run(t, "ip route add 10.50.0.0/16 via 192.168.1.2")
		h, err := Look()
		if err != nil {
			t.Fatal(err)
		}
		if got := h.UnderlayMTU(); got != 1400 {
			t.Errorf("underlay mtu %d", got)
		}
		l, ok := h.Link("eth0")
		if !ok || !l.Up || !l.Virtual || len(l.Addrs) == 0 || l.Addrs[0] != prefixes("192.168.1.50/24")[0] {
			t.Errorf("eth0: %+v", l)
		}
		if got := h.Connected(prefixes("192.168.0.0/16")[0], "ovl0"); len(got) != 1 || got[0].Link != "eth0" {
			t.Errorf("connected: %v", got)
		}
		if got := h.Connected(prefixes("10.50.3.0/24")[0], "ovl0"); len(got) != 1 {
			t.Errorf("routed: %v", got)
		}
		if len(h.Default) != 1 || h.Default[0].Via.String() != "192.168.1.1" {
			t.Errorf("default: %v", h.Default)
		}
	})
}

// TestNamespacesApart keeps one journal for two namespaces, as if a state
// directory were carried over: each has its own values.
func TestNamespacesApart(t *testing.T) {
	netnstest.In(t, func(t *testing.T) {
		machine(t)
		before := picture(t)
		netnstest.In(t, func(t *testing.T) {
			machine(t)
			tun(t)
			if err := newKernel(t, &memory{}).Apply(t.Context(), gateway); err != nil {
				t.Error(err)
			}
		})
		if diff := cmp.Diff(before, picture(t)); diff != "" {
			t.Error(diff)
		}
	})
}

// TestRelayBehindRoute has the relay inside a network that is reached through
// the tunnel: what it sends still comes in, though answers to others there would
// go elsewhere.
func TestRelayBehindRoute(t *testing.T) {
	netnstest.In(t, func(t *testing.T) {
		machine(t) // checks strictly on eth0
		tun(t)
		mode := func() string { return strings.TrimSpace(netnstest.Run(t, "sysctl -n net.ipv4.conf.eth0.rp_filter")) }
		k := newKernel(t, &memory{})
		s := laptop
		s.Routes = prefixes("203.0.113.0/24")
		s.Outer = []netip.Addr{netip.MustParseAddr("203.0.113.10")}
		for range 3 {
			if err := k.Apply(t.Context(), s); err != nil {
				t.Error(err)
			}
			if got := mode(); got != "2" {
				t.Errorf("eth0 checks with %s", got)
			}
		}
		s.Outer = nil
		if err := k.Apply(t.Context(), s); err != nil {
			t.Error(err)
		}
		if got := mode(); got != "1" {
			t.Errorf("left as %s", got)
		}
	})
}
