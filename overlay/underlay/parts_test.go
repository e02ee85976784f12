package underlay

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"overlayd/overlay/key"
	"overlayd/overlay/relay"
)

func TestRun(t *testing.T) {
	for _, c := range []struct {
		sizes []int
		want  []int
	}{
		{[]int{5}, []int{1}},
		{[]int{5, 5, 5}, []int{3}},
		{[]int{5, 5, 3}, []int{3}},
		{[]int{5, 3, 5}, []int{2, 1}},
		{[]int{3, 5, 5}, []int{1, 2}},
		{[]int{5, 4, 3, 2}, []int{2, 2}},
	} {
		var bufs [][]byte
		for _, n := range c.sizes {
			bufs = append(bufs, make([]byte, n))
		}
		var got []int
		for len(bufs) > 0 {
			n := run(bufs)
			got = append(got, n)
			bufs = bufs[n:]
		}
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%v makes runs of %v, want %v", c.sizes, got, c.want)
		}
	}
}

func TestStamp(t *testing.T) {
	p := []byte{4, 0, 0, 0, 9}
	stamp(p, 0x030201)
	if !bytes.Equal(p, []byte{4, 1, 2, 3, 9}) || labelOf(p) != 0x030201 {
		t.Errorf("% x", p)
	}
}

func TestHeld(t *testing.T) {
	start := time.Unix(1000, 0)
	var h held
	init := data(148, 7)
	init[0] = typeInitiation
	dropped := 0
	for i := range 20 { // every 100 ms a handshake and a packet
		now := start.Add(time.Duration(i) * 100 * time.Millisecond)
		init[5] = byte(i)
		dropped += h.add(now, init)
		dropped += h.add(now, data(50, byte(i)))
	}
	if len(h) != heldMost || dropped != 40-heldMost {
		t.Fatalf("%d held, %d dropped", len(h), dropped)
	}
	handshakes := 0
	for _, d := range h {
		if d.b[0] == typeInitiation {
			handshakes++
			if d.b[5] != 19 {
				t.Errorf("handshake %d is held, not the newest", d.b[5])
			}
		}
	}
	if handshakes != 1 {
		t.Errorf("%d handshakes", handshakes)
	}
	if n := h.expire(start.Add(6500 * time.Millisecond)); n == 0 || n == heldMost {
		t.Errorf("%d expired after 6.5 s", n)
	}
	left := len(h)
	if bufs := h.take(); len(bufs) != left || bufs[len(bufs)-1][5] != 19 || len(h) != 0 {
		t.Errorf("took %d, %d left", len(bufs), len(h))
	}
}

// TestEndpointsDiffer looks at what WireGuard limits handshakes by.
func TestEndpointsDiffer(t *testing.T) {
	b := New(Options{})
	seen := map[netip.Addr]bool{}
	for range 100 {
		k := key.NewPrivate().Public()
		ep, err := b.ParseEndpoint(Endpoint(k))
		if err != nil {
			t.Fatal(err)
		}
		if again := newPeer(k); again.DstIP() != ep.DstIP() || !bytes.Equal(again.DstToBytes(), ep.DstToBytes()) {
			t.Error("the address changes")
		}
		if seen[ep.DstIP()] {
			t.Error("two peers share an address")
		}
		seen[ep.DstIP()] = true
		if ep.DstToString() != Endpoint(k) {
			t.Error("the name is not the one it was parsed from")
		}
	}
	if err := b.Send(nil, nil); err != conn.ErrWrongEndpointType {
		t.Errorf("foreign endpoint: %v", err)
	}
	if b.SetMark(0) != nil || b.SetMark(1) == nil {
		t.Error("marks")
	}
}

// TestTickets gives a relay its ticket late, another address, and takes the
// ticket away.
func TestTickets(t *testing.T) {
	s, _ := startRelay(t, "127.0.0.1:0")
	h := newHost(t, 11, Options{})
	r := at(11, s.LocalAddr())
	h.SetRelays([]Relay{{ID: r.ID, Addrs: r.Addrs}})
	h.waitFor(stateNoTicket)
	h.SetRelays([]Relay{r})
	h.waitFor("up")
	leg := h.snapshot()[0]
	session := leg.session
	renewed := relay.Ticket{Network: testNetwork, Label: 11, NotAfter: time.Now().Add(2 * time.Hour), Serial: 2}.Append(nil)
	r.Ticket, r.Key = renewed, relay.SessionKey(testSecret, renewed)
	h.SetRelays([]Relay{r})
	if h.snapshot()[0] != leg || leg.session != session || h.Relays()[0].State != "up" {
		t.Error("a new ticket cost the session")
	}
	other, _ := startRelay(t, "127.0.0.1:0")
	r.Addrs = []netip.AddrPort{other.LocalAddr()}
	h.SetRelays([]Relay{r})
	h.waitFor("up")
	if got := h.Relays()[0].Endpoint; got != other.LocalAddr().String() {
		t.Errorf("endpoint %s", got)
	}
	r.Ticket = nil
	h.SetRelays([]Relay{r})
	h.waitFor(stateNoTicket)
}
