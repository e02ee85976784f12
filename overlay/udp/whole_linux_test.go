package udp

import (
	"errors"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"overlayd/internal/netnstest"
)

// TestSendBesideWhole sends what must be cut while somebody else's SendWhole is
// under way.
func TestSendBesideWhole(t *testing.T) {
	netnstest.In(t, func(t *testing.T) {
		netnstest.Run(t, "ip link set lo up mtu 1400")
		for _, addr := range []netip.AddrPort{loop4, loop6} {
			a, b := listen(t, addr), listen(t, addr)
			r := b.NewReader(4)
			for _, c := range []struct {
				name string
				size int // of each
				n    int
			}{{"one", 1500, 1}, {"a train", 1500, 5}} {
				a.whole.Lock()
				if err := a.pass(true); err != nil {
					t.Fatal(err)
				}
				dropped := make(chan int)
				go func() {
					w := a.NewWriter()
					w.Add(b.LocalAddr(), c.size, make([]byte, c.size*c.n))
					dropped <- w.Flush()
				}()
				select {
				case n := <-dropped:
					t.Fatalf("%v, %s: %d dropped", addr, c.name, n)
				case <-time.After(20 * time.Millisecond): // it was refused, and waits
				}
				if err := a.pass(false); err != nil {
					t.Fatal(err)
				}
				a.whole.Unlock()
				if n := <-dropped; n != 0 {
					t.Errorf("%v, %s: %d dropped", addr, c.name, n)
				}
				if got, _ := collect(t, r, c.n); len(got[c.n-1]) != c.size {
					t.Errorf("%v, %s: %d bytes of %d arrived", addr, c.name, len(got[c.n-1]), c.size)
				}
			}
		}
	})
}

// TestSendWhole sends what a link of 1400 bytes takes, and what it does not.
func TestSendWhole(t *testing.T) {
	netnstest.In(t, func(t *testing.T) {
		netnstest.Run(t, "ip link set lo up mtu 1400")
		for _, addr := range []netip.AddrPort{loop4, loop6} {
			a, err := Listen(addr, Options{})
			if err != nil {
				t.Errorf("%v (CI needs both families)", err)
				continue
			}
			defer a.Close()
			b, err := Listen(addr, Options{})
			if err != nil {
				t.Error(err)
				continue
			}
			defer b.Close()
			r := b.NewReader(4)
			for _, c := range []struct {
				size  int
				whole bool
				want  error
			}{
				{1500, false, nil}, // in fragments
				{1500, true, syscall.EMSGSIZE},
				{1300, true, nil},
				{1500, false, nil}, // again, after that
			} {
				send := a.Send
				if c.whole {
					send = a.SendWhole
				}
				if err := send(b.LocalAddr(), make([]byte, c.size)); !errors.Is(err, c.want) {
					t.Errorf("%v: %d bytes, whole %v: %v", addr, c.size, c.whole, err)
				}
				if c.want == nil {
					if got, _ := collect(t, r, 1); len(got[0]) != c.size {
						t.Errorf("%v: %d bytes of %d arrived", addr, len(got[0]), c.size)
					}
				}
			}
		}
	})
}
