package relay

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestGuests: plain WireGuard from who is no node reaches the relay machine's own
// node with its address, and is answered there; all else is what it was.
func TestGuests(t *testing.T) {
	s, _ := startServer(t, netip.MustParseAddrPort("127.0.0.1:0"))
	p := s.Attach(testNetwork, 10)
	c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(s.LocalAddr()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	here := c.LocalAddr().(*net.UDPAddr).AddrPort()
	send := func(b []byte) {
		t.Helper()
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range [][]byte{datagram(7, 500, 1), {kindProbe, 0, 0, 0}, {dataInitiation, 0, 0, 0}} { // a label, a probe, a wrong length
		send(b)
	}
	want := datagram(0, 600, 2)
	send(want)
	bufs := [][]byte{make([]byte, 2000), make([]byte, 2000)}
	sizes, src := make([]int, 2), make([]netip.AddrPort, 2)
	n, err := p.ReceiveGuests(bufs, sizes, src)
	if err != nil || n != 1 || src[0] != here || !bytes.Equal(bufs[0][:sizes[0]], want) {
		t.Fatalf("%d from %v: %v", n, src, err)
	}
	answer := datagram(0, 700, 3)
	p.SendGuest(here, [][]byte{answer, datagram(9, 700, 4), {1, 0, 0, 0}}) // one with a label, and one of no shape
	got := make([]byte, 2000)
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for {
		n, err := c.Read(got)
		if err != nil {
			t.Fatal(err)
		}
		if got[0] == kindControl {
			continue // the label's answer: there is no session
		}
		if !bytes.Equal(got[:n], answer) {
			t.Errorf("%d bytes came back", n)
		}
		break
	}
	if c := s.Counters(); c["guest_datagrams_received"] != 1 || c["guest_datagrams_sent"] != 1 || c["drop_shape"] != 4 || c["unknowns_sent"] != 1 {
		t.Errorf("%v", c)
	}

	done := make(chan error)
	go func() {
		_, err := p.ReceiveGuests(bufs, sizes, src)
		done <- err
	}()
	p.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if s.table.host.Load() != nil {
		t.Error("a closed port still takes guests")
	}
}

// TestGuestsLimited: of one source's initiations so many are let in, whatever
// else is in the train; of another's all the same.
func TestGuestsLimited(t *testing.T) {
	tb := newTable(100, 100)
	start := time.Now()
	d := newDoor(testSecret, start, tb)
	p := &Port{ring: newRing[Label](1<<16, 64), guests: newRing[netip.AddrPort](1<<20, 2048), count: new(counters)}
	train := make([]byte, 0, 400*148)
	for i := range 400 {
		b := make([]byte, 148)
		b[0] = dataInitiation
		if i%2 == 1 {
			b[0] = dataTransport
		}
		train = append(train, b...)
	}
	count := func(src string, now time.Time) (came, limited uint64) {
		var c counters
		p.welcome(&c, d, now, netip.MustParseAddrPort(src), train, 148)
		return c[guestCame].Load(), c[dropLimited].Load()
	}
	came, limited := count("198.51.100.2:1", start)
	if came != 200+greetBurst+1 || came+limited != 400 {
		t.Errorf("%d came, %d were too many", came, limited)
	}
	if came, _ := count("198.51.100.2:2", start); came != 200 {
		t.Errorf("by another port %d came", came)
	}
	if came, _ := count("198.51.100.3:1", start); came != 200+greetBurst+1 {
		t.Errorf("of another source %d came", came)
	}
	if came, _ := count("198.51.100.2:1", start.Add(time.Second)); came != 200+greetPerSource {
		t.Errorf("a second later %d came", came)
	}
}
