package nat

import (
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"overlayd/internal/netnstest"
)

// TestTracker: a connection that the kernel masquerades is found by what it was,
// and what it is not there is nothing.
func TestTracker(t *testing.T) {
	netnstest.In(t, func(t *testing.T) {
		for _, c := range []string{
			"ip link set lo up", "ip addr add 10.9.0.1/32 dev lo", "ip addr add 10.9.0.2/32 dev lo", "ip addr add 10.9.0.3/32 dev lo",
			"iptables -t nat -A POSTROUTING -p tcp -s 10.9.0.1 -d 10.9.0.2 -j SNAT --to-source 10.9.0.3:5000-5000",
		} {
			netnstest.Run(t, c)
		}
		l, err := net.Listen("tcp4", "10.9.0.2:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(10, 9, 0, 1)}}
		c, err := d.Dial("tcp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		k, err := NewTracker()
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		src, dst := netip.MustParseAddrPort(c.LocalAddr().String()), netip.MustParseAddrPort(l.Addr().String())
		got, err := k.Outside(unix.IPPROTO_TCP, src, dst)
		if want := netip.MustParseAddrPort("10.9.0.3:5000"); err != nil || got != want {
			t.Errorf("%v, %v, want %v", got, err, want)
		}
		for range 2 { // the second answer is not the first one's
			got, err = k.Outside(unix.IPPROTO_UDP, src, dst)
			if err != nil || got.IsValid() {
				t.Errorf("of no connection: %v, %v", got, err)
			}
		}
	})
}

func FuzzRepliesTo(f *testing.F) {
	f.Add([]byte{})
	f.Add(attrBytes(ctTupleReply|unix.NLA_F_NESTED, attrBytes(ctTupleIP|unix.NLA_F_NESTED, attrBytes(ctIP4Dst, []byte{1, 2, 3, 4}))))
	f.Fuzz(func(_ *testing.T, b []byte) { repliesTo(b) })
}
