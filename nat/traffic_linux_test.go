package nat

import (
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"overlayd/internal/netnstest"
)

// in runs f with the calling thread in the named namespace. Sockets that f opens
// stay there.
func in(t *testing.T, name string, f func()) {
	t.Helper()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	other, err := os.Open("/run/netns/" + name)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := unix.Setns(int(other.Fd()), unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
			t.Error(err)
		}
	}()
	f()
}

// listen accepts connections and tells where they come from and the segment size
// they agreed on.
func listen(t *testing.T, address string) <-chan string {
	l, err := net.Listen("tcp4", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	seen := make(chan string, 8)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			raw, err := c.(*net.TCPConn).SyscallConn()
			mss := 0
			if err == nil {
				raw.Control(func(fd uintptr) { mss, _ = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG) })
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			seen <- fmt.Sprintf("%s fits %v", host, mss <= 1380)
			c.Close()
		}
	}()
	return seen
}

// TestTraffic sends real packets through a gateway whose policy is to forward
// nothing. The tunnel is one end of a veth.
func TestTraffic(t *testing.T) {
	eachBackend(t, func(t *testing.T, ipt string) {
		for _, c := range []string{
			"mkdir -p /run/netns", "ip netns add member", "ip netns add host", "ip netns add side",
			"ip link set lo up",
			"ip link set switch netns host name eth0",
			"ip link add ovl0 type veth peer name far",
			"ip link set far netns member name ovl0",
			"ip addr add 192.168.1.200/24 dev eth0", "ip addr add 192.168.2.200/24 dev eth0", "ip addr add 172.18.0.200/24 dev ovl0",
			"ip link set eth0 up", "ip link set ovl0 mtu 1420 up",
			"ip -n host addr add 192.168.1.201/24 dev eth0", "ip -n host addr add 192.168.2.201/24 dev eth0",
			"ip -n host link set eth0 up", "ip -n host link set lo up",
			"ip -n host route add 172.18.0.0/24 via 192.168.1.200",
			"ip -n member addr add 172.18.0.11/24 dev ovl0", "ip -n member link set ovl0 up", "ip -n member link set lo up",
			"ip -n member route add 192.168.0.0/16 via 172.18.0.200",
			"ip link add eth1 type veth peer name eth0 netns side",
			"ip addr add 10.66.0.1/24 dev eth1", "ip link set eth1 up",
			"ip -n side addr add 10.66.0.2/24 dev eth0", "ip -n side link set eth0 up", "ip -n side route add default via 10.66.0.1",
			"ip -n member route add 10.66.0.0/24 via 172.18.0.200",
			"sysctl -qw net.ipv4.ip_forward=1",
		} {
			netnstest.Run(t, c)
		}
		if t.Failed() {
			return
		}
		tables := newTables(t, ipt, &memory{})
		apply(t, tables, gateway)

		var atHost, atMember <-chan string
		in(t, "host", func() { atHost = listen(t, ":80") })
		in(t, "member", func() { atMember = listen(t, ":80") })
		atGateway := listen(t, ":80")
		type trial struct {
			name, from, to string
			seen           <-chan string
			want           string // "": does not get there
		}
		try := func(tt trial) {
			var err error
			in(t, tt.from, func() {
				d := net.Dialer{Timeout: 10 * time.Second}
				if tt.want == "" {
					d.Timeout = 150 * time.Millisecond
				}
				var c net.Conn
				if c, err = d.Dial("tcp4", tt.to+":80"); err == nil {
					c.Close()
				}
			})
			if (err == nil) != (tt.want != "") {
				t.Errorf("%s: %v", tt.name, err)
			} else if err == nil {
				if got := <-tt.seen; got != tt.want {
					t.Errorf("%s: came as %s, want %s", tt.name, got, tt.want)
				}
			}
		}
		trials := []trial{
			{"member to LAN", "member", "192.168.1.201", atHost, "192.168.1.200 fits true"},
			{"member to this machine", "member", "172.18.0.200", atGateway, "172.18.0.11 fits true"},
			{"member to what is not advertised", "member", "192.168.2.201", atHost, ""},
			{"LAN to member", "host", "172.18.0.11", atMember, ""},
			{"another network to member", "side", "172.18.0.11", atMember, ""},
			{"LAN to this machine's overlay address", "host", "172.18.0.200", atGateway, ""},
			{"LAN to this machine", "host", "192.168.1.200", atGateway, "192.168.1.201 fits false"},
		}
		for _, policy := range []string{"DROP", "ACCEPT"} { // with ACCEPT, only our own rules keep anything out
			netnstest.Run(t, ipt+" -P FORWARD "+policy)
			for _, tt := range trials {
				tt.name = policy + ": " + tt.name
				try(tt)
			}
		}
		clear(t, tables) // what was kept out, without us, is not
		try(trial{"LAN to member, without us", "host", "172.18.0.11", atMember, "192.168.1.201 fits false"})
		try(trial{"another network to member, without us", "side", "172.18.0.11", atMember, "10.66.0.2 fits false"})
		try(trial{"LAN to the overlay address, without us", "host", "172.18.0.200", atGateway, "192.168.1.201 fits false"})
	})
}
