package proxy

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"overlayd/overlay/splice"
)

// udpEcho answers datagrams with themselves.
func udpEcho(t *testing.T) string {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, splice.LongestDatagram)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			c.WriteTo(buf[:n], from)
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
	return c.LocalAddr().String()
}

// associate asks for an association and returns its port.
func associateWith(t *testing.T, proxy string) (control *net.TCPConn, relay netip.AddrPort) {
	t.Helper()
	control = connect(t, proxy)
	io.WriteString(control, "\x05\x01\x00\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00")
	var answer [2 + 10]byte
	if _, err := io.ReadFull(control, answer[:]); err != nil || answer[3] != replyDone {
		t.Fatalf("answered % x: %v", answer, err)
	}
	e, err := readEndpoint(bytes.NewReader(answer[5:]))
	if err != nil || e.addr != netip.MustParseAddr("127.0.0.1") {
		t.Fatalf("the relay is at %v: %v", e, err)
	}
	return control, netip.AddrPortFrom(e.addr, e.port)
}

func udpClient(t *testing.T, relay netip.AddrPort) net.Conn {
	t.Helper()
	c, err := net.Dial("udp", relay.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

// TestAssociate: datagrams go to names and addresses, and nothing else passes.
func TestAssociate(t *testing.T) {
	at := udpEcho(t)
	s, proxy := startProxy(t, world{"udp dns.lab:53": at, "udp 192.168.1.10:53": at}, nil)
	control, relay := associateWith(t, proxy)
	c := udpClient(t, relay)
	const name, address = "\x00\x00\x00\x03\x07dns.lab\x00\x35", "\x00\x00\x00\x01\xc0\xa8\x01\x0a\x00\x35"
	for _, head := range []string{name, address} {
		for _, data := range []string{"question", "", strings.Repeat("x", 9000)} {
			io.WriteString(c, head+data)
			buf := make([]byte, splice.LongestDatagram)
			n, err := c.Read(buf)
			if err != nil {
				t.Fatalf("%q: %v", head, err)
			}
			from, got, ok := udpHead(buf[:n])
			if !ok || string(got) != data || from.String() != at {
				t.Errorf("%d bytes from %v, want %d from %s", len(got), from, len(data), at)
			}
		}
	}
	for _, bad := range []string{"", "\x00", "\x00\x00\x01\x01\xc0\xa8\x01\x0a\x00\x35fragment", "\x00\x00\x00\x01\xc0\xa8\x01\x0a\x00\x00port 0",
		"\x01\x00\x00\x01\xc0\xa8\x01\x0a\x00\x35", "\x00\x00\x00\x09abc", "\x00\x00\x00\x03\xffshort", "\x00\x00\x00\x03\x00\x00\x35"} {
		io.WriteString(c, bad)
	}
	counted(t, s, "udp_drop_malformed", 8)
	// Another program of this machine has no part in it.
	io.WriteString(udpClient(t, relay), name+"x")
	counted(t, s, "udp_drop_foreign", 1)
	// What policy refuses is dropped and counted, and stops nothing else.
	io.WriteString(c, "\x00\x00\x00\x03\x0dforbidden.lab\x00\x35x")
	io.WriteString(c, "\x00\x00\x00\x01\x08\x08\x08\x08\x00\x35x")
	counted(t, s, "dial_forbidden", 2)
	counted(t, s, "udp_drop_refused", 2)
	io.WriteString(c, name+"again")
	buf := make([]byte, 100)
	if n, err := c.Read(buf); err != nil || !bytes.HasSuffix(buf[:n], []byte("again")) {
		t.Errorf("%q: %v", buf[:n], err)
	}
	// It ends with its TCP connection.
	control.Close()
	counted(t, s, "clients", 0)
	for end := time.Now().Add(10 * time.Second); ; {
		if _, err := io.WriteString(c, name+"x"); err != nil { // nobody is there: ECONNREFUSED
			break
		}
		if time.Now().After(end) {
			t.Fatal("the association outlives its connection")
		}
		<-time.After(time.Millisecond)
	}
}

// TestAssociateMany: the destinations of one association are bounded; the oldest
// gives way.
func TestAssociateMany(t *testing.T) {
	at := udpEcho(t)
	w := world{}
	for i := range 3 * mostDestinations {
		w["udp "+netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 168, 1, byte(i)}), 53).String()] = at
	}
	s, proxy := startProxy(t, w, nil)
	_, relay := associateWith(t, proxy)
	c := udpClient(t, relay)
	for i := range 3 * mostDestinations {
		io.WriteString(c, "\x00\x00\x00\x01\xc0\xa8\x01"+string([]byte{byte(i)})+"\x00\x35x")
		buf := make([]byte, 100)
		if _, err := c.Read(buf); err != nil {
			t.Fatal(i, err)
		}
	}
	for end := time.Now().Add(10 * time.Second); len(s.destinations) > mostDestinations; <-time.After(time.Millisecond) { // some may still be on their way out
		if time.Now().After(end) {
			t.Fatalf("%d destinations", len(s.destinations))
		}
	}
}

// TestAssociationsFull: there are only so many.
func TestAssociationsFull(t *testing.T) {
	s, proxy := startProxy(t, world{}, nil)
	for range mostAssociations {
		s.assocs <- struct{}{}
	}
	defer func() {
		for range mostAssociations {
			<-s.assocs
		}
	}()
	c := connect(t, proxy)
	io.WriteString(c, "\x05\x01\x00\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00")
	got, err := io.ReadAll(c)
	if err != nil || len(got) < 4 || got[3] != replyFailed {
		t.Errorf("answered % x: %v", got, err)
	}
}

// FuzzUDPHead: a datagram's head is read as it was written, and its data is what
// follows.
func FuzzUDPHead(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x03\x07dns.lab\x00\x35data"))
	f.Add([]byte("\x00\x00\x00\x01\xc0\xa8\x01\x0a\x00\x35"))
	f.Add([]byte("\x00\x00\x00\x04\xfd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x35x"))
	f.Add([]byte("\x00\x00\x01\x01\xc0\xa8\x01\x0a\x00\x35"))
	f.Fuzz(func(t *testing.T, b []byte) {
		to, data, ok := udpHead(b)
		if !ok {
			return
		}
		if !bytes.HasSuffix(b, data) || to.port == 0 || to.addr.IsValid() == (to.name != "") {
			t.Fatalf("%x: %+v and %x", b, to, data)
		}
		if _, _, err := net.SplitHostPort(to.String()); err != nil {
			t.Fatalf("%+v cannot be dialed: %v", to, err)
		}
		if !to.addr.IsValid() {
			return
		}
		again, rest, ok := udpHead(append(appendUDPHead(nil, to), data...))
		if !ok || again != to || !bytes.Equal(rest, data) {
			t.Fatalf("%+v is read again as %+v", to, again)
		}
	})
}

// FuzzEndpoint: a destination that is read can be dialed, and is printed without
// surprises.
func FuzzEndpoint(f *testing.F) {
	f.Add([]byte("\x03\x07nas.lab\x00\x50"))
	f.Add([]byte("\x01\xc0\xa8\x01\x0a\x00\x50"))
	f.Add([]byte("\x04\xfd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x35"))
	f.Add([]byte("\x03\x03a:b\x00\x50"))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := readEndpoint(bytes.NewReader(b))
		if err != nil {
			return
		}
		host, _, err := net.SplitHostPort(e.String())
		if err != nil || host == "" || strings.ContainsAny(host, " \x00/\r\n") {
			t.Fatalf("%q is no host: %v", host, err)
		}
	})
}

// FuzzLogin: name and password are what was sent.
func FuzzLogin(f *testing.F) {
	f.Add([]byte("\x01\x04anna\x04pass"))
	f.Add([]byte("\x01\x00\x00"))
	f.Add([]byte("\x05\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		name, password, err := readLogin(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			return
		}
		again := append([]byte{loginVersion, byte(len(name))}, name...)
		again = append(append(again, byte(len(password))), password...)
		if !bytes.HasPrefix(b, again) {
			t.Fatalf("%q and %q are read from %x", name, password, b)
		}
	})
}

// TestStrangers: who may not use the proxy is not served, and cannot take over the
// association of somebody who may, not even by sending first.
func TestStrangers(t *testing.T) {
	at := udpEcho(t)
	var mu sync.Mutex
	welcome := map[string]bool{}
	s, proxy := startProxyFor(t, world{"udp dns.lab:53": at}, nil, func(network string, client, _ netip.AddrPort) bool {
		mu.Lock()
		defer mu.Unlock()
		return network == "tcp" && len(welcome) > 0 || welcome[network+" "+client.String()]
	})
	c := connect(t, proxy)
	io.WriteString(c, "\x05\x01\x00")
	if n, err := c.Read(make([]byte, 2)); err == nil {
		t.Errorf("a stranger is answered with %d bytes", n)
	}
	mu.Lock()
	welcome["udp"] = true
	mu.Unlock()
	_, relay := associateWith(t, proxy)
	stranger, friend := udpClient(t, relay), udpClient(t, relay)
	mu.Lock()
	welcome["udp "+friend.LocalAddr().String()] = true
	mu.Unlock()
	const name = "\x00\x00\x00\x03\x07dns.lab\x00\x35"
	io.WriteString(stranger, name+"mine")
	counted(t, s, "udp_drop_foreign", 1)
	io.WriteString(friend, name+"mine")
	buf := make([]byte, splice.LongestDatagram)
	n, err := friend.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	if _, got, ok := udpHead(buf[:n]); !ok || string(got) != "mine" {
		t.Errorf("the friend gets %q", buf[:n])
	}
	counted(t, s, "drop_stranger", 2)
}
