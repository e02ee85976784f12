package netsim

import (
	"net/netip"
	"testing"
	"time"
)

// TestKinds sends from behind each NAT to a server, which answers from three of
// its sockets, and looks at what comes back and from where the server saw it.
func TestKinds(t *testing.T) {
	for kind, want := range map[Kind]struct {
		ports    int // that two destinations see
		same     int // answers from the very address that was sent to
		port     int // from another port of it
		stranger int // from another address
	}{
		None:            {1, 2, 2, 1},
		FullCone:        {1, 2, 2, 1},
		Restricted:      {1, 2, 2, 0},
		PortRestricted:  {1, 2, 0, 0},
		Symmetric:       {2, 2, 0, 0},
		SymmetricRandom: {2, 2, 0, 0},
		Blocked:         {0, 0, 0, 0},
	} {
		t.Run(string(kind), func(t *testing.T) {
			w := New(1)
			server, other := w.Host(netip.MustParseAddr("192.0.2.1")), w.Host(netip.MustParseAddr("192.0.2.2"))
			seen := map[netip.AddrPort]bool{}
			first := server.Listen(1, nil)
			quiet, stranger := server.Listen(3, nil), other.Listen(4, nil)
			second := server.Listen(2, nil)
			for _, c := range []*Conn{first, second} {
				c.receive = func(src netip.AddrPort, b []byte) {
					seen[src] = true
					c.Send(src, []byte("same"))
					quiet.Send(src, []byte("port"))
					if c == first {
						stranger.Send(src, []byte("stranger"))
					}
				}
			}
			got := map[string]int{}
			n := w.NAT(kind, netip.MustParseAddr("198.51.100.1"))
			client := n.Host(netip.MustParseAddr("10.0.0.2")).Listen(9, func(_ netip.AddrPort, b []byte) { got[string(b)]++ })
			client.Send(first.LocalAddr(), nil)
			client.Send(second.LocalAddr(), nil)
			w.Run(time.Second)
			if len(seen) != want.ports || got["same"] != want.same || got["port"] != want.port || got["stranger"] != want.stranger {
				t.Errorf("%d ports, answers %v, want %+v", len(seen), got, want)
			}
			got["same"] = 0
			w.Run(mappingLife + time.Second)
			for src := range seen {
				first.Send(src, []byte("same"))
			}
			w.Run(time.Second)
			if kind != None && got["same"] != 0 {
				t.Error("a mapping outlived its time")
			}
		})
	}
}

func TestLoss(t *testing.T) {
	w := New(1)
	got := 0
	a := w.Host(netip.MustParseAddr("192.0.2.1")).Listen(1, nil)
	b := w.Host(netip.MustParseAddr("192.0.2.2")).Listen(1, func(netip.AddrPort, []byte) { got++ })
	w.Loss = func(from, to netip.Addr) float64 { return 0.2 }
	for range 1000 {
		a.Send(b.LocalAddr(), nil)
	}
	w.Run(w.Latency - 1)
	if got != 0 {
		t.Error("something was too early")
	}
	w.Run(1)
	if got < 750 || got > 850 {
		t.Errorf("%d of 1000 arrived at 20 %% loss", got)
	}
}
