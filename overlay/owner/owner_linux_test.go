package owner

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func at(a net.Addr) netip.AddrPort { return netip.MustParseAddrPort(a.String()) }

// TestOf: a connection and a socket for datagrams of this very process, by each way
// to know, and those that nobody has.
func TestOf(t *testing.T) {
	for _, loopback := range []string{"127.0.0.1:0", "[::1]:0"} {
		ln, err := net.Listen("tcp", loopback)
		if err != nil {
			t.Logf("%s: %v", loopback, err) // a machine without IPv6
			continue
		}
		defer ln.Close()
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		server, err := net.ListenPacket("udp", loopback)
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		free, err := net.ListenPacket("udp", strings.Replace(loopback, "127.0.0.1", "", 1)) // bound to a port alone
		if err != nil {
			t.Fatal(err)
		}
		defer free.Close()
		from := netip.AddrPortFrom(at(server.LocalAddr()).Addr(), at(free.LocalAddr()).Port())
		for how, of := range map[string]func(string, netip.AddrPort, netip.AddrPort) (int, error){"Of": Of, "netlink": ask, "proc": read} {
			if uid, err := of("tcp", at(c.LocalAddr()), at(c.RemoteAddr())); err != nil || uid != os.Getuid() {
				t.Errorf("%s: tcp %s: %d, %v", how, loopback, uid, err)
			}
			if uid, err := of("udp", from, at(server.LocalAddr())); err != nil || uid != os.Getuid() {
				t.Errorf("%s: udp %s: %d, %v", how, loopback, uid, err)
			}
			for _, network := range []string{"tcp", "udp"} {
				gone := netip.AddrPortFrom(at(c.LocalAddr()).Addr(), 1)
				if uid, err := of(network, gone, at(c.RemoteAddr())); !errors.Is(err, errNobody) && !errors.Is(err, syscall.ENOENT) {
					t.Errorf("%s: %s of nobody: %d, %v", how, network, uid, err)
				}
			}
		}
	}
}

// TestClosed: what its program has closed is nobody's, though the kernel still has
// it and calls it root's.
func TestClosed(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	client, server := at(c.LocalAddr()), at(c.RemoteAddr())
	c.Close() // the other end has not, so this one waits in FIN_WAIT2

	// netlink has none at all, or nobody's
	for how, of := range map[string]func(string, netip.AddrPort, netip.AddrPort) (int, error){"Of": Of, "proc": read} {
		if uid, err := of("tcp", client, server); !errors.Is(err, errNobody) {
			t.Errorf("%s: %d, %v", how, uid, err)
		}
	}
}

const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0438 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 100 1 0
   1: 0100007F:C001 0100007F:0438 01 00000000:00000000 00:00000000 00000000  1001        0 200 1 0
   2: 0000000000000000FFFF00000100007F:C002 0000000000000000FFFF00000100007F:0438 01 00000000:00000000 00:00000000 00000000  1002        0 300 1 0
   3: 0100007F:C003 0100007F:0438 04 00000000:00000000 00:00000000 00000000     0        0 0 1 0
   4: 00000000:C004 00000000:0000 07 00000000:00000000 00:00000000 00000000  1004        0 400 1 0
`

func TestTable(t *testing.T) {
	server := netip.MustParseAddrPort("127.0.0.1:1080")
	for port, want := range map[uint16]int{0xc001: 1001, 0xc002: 1002, 0xc003: -1, 0xc004: -1, 0xc005: -1} {
		uid, err := find(strings.NewReader(table), false, netip.AddrPortFrom(server.Addr(), port), server)
		if err != nil {
			uid = -1
		}
		if uid != want {
			t.Errorf("port %x is %d's, want %d", port, uid, want)
		}
	}
	if uid, err := find(strings.NewReader(table), true, netip.AddrPortFrom(server.Addr(), 0xc004), server); err != nil || uid != 1004 {
		t.Errorf("the datagrams' socket is %d's, %v", uid, err)
	}
}

func FuzzTable(f *testing.F) {
	f.Add(table)
	f.Add("0: 0100007F:0438 0100007F:0438 x x x x 1 x 1")
	server := netip.MustParseAddrPort("127.0.0.1:1080")
	f.Fuzz(func(t *testing.T, text string) {
		if uid, err := find(strings.NewReader(text), true, server, server); err == nil && !strings.Contains(text, strconv.Itoa(uid)) {
			t.Errorf("%d is not in the table", uid)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	f.Add(make([]byte, 16+answerSize))
	f.Add(appendRequest(nil, 6, netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("127.0.0.1:2")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := parseAnswer(b); err == nil && len(b) < 16+answerSize {
			t.Errorf("%d bytes are an answer", len(b))
		}
	})
}
