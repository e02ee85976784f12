//go:build linux

package lab_test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"overlayd/examples/lab"
	"overlayd/examples/lab/labtest"
)

// Both NATs are hard, so everything goes by the relay; from the laptop and
// from the VPS, every kind of traffic reaches the LAN host, which sees the
// gateway as the source.
func TestRelayedPath(t *testing.T) {
	ctx, l, _ := labtest.Joined(t, lab.Options{Home: lab.Hard, Lab: lab.Hard})
	tcp, udp := echoServers(t, l.Host)
	for _, from := range []*lab.Machine{l.Laptop, l.VPS} {
		t.Run("from "+from.Name, func(t *testing.T) {
			labtest.Run(ctx, t, from, "ping", "-n", "-c", "3", "-i", "0.1", "-W", "1", lab.HostAddr)
			trace := labtest.Run(ctx, t, from, "traceroute", "-I", "-n", "-q", "1", "-w", "2", "-m", "5", lab.HostAddr)
			hops := strings.Split(strings.TrimSpace(trace), "\n")
			if last := hops[len(hops)-1]; !strings.Contains(last, lab.HostAddr) {
				t.Errorf("traceroute does not arrive:\n%s", trace)
			}
			for network, addr := range map[string]string{"tcp4": tcp, "udp4": udp} {
				if source := ask(ctx, t, from, network, addr); source != lab.GatewayAddr {
					t.Errorf("%s: the LAN host sees %s, want the gateway, %s", network, source, lab.GatewayAddr)
				}
			}
		})
	}
	if route := labtest.Run(ctx, t, l.Host, "ip", "route"); strings.Contains(route, "172.18") {
		t.Errorf("the LAN host has a route to the overlay:\n%s", route)
	}
}

// What the laptop and the LAN host say to each other is in no packet of the
// VPS; that it is in the LAN's shows that the search finds it.
func TestTheRelaySeesCiphertext(t *testing.T) {
	ctx, l, _ := labtest.Joined(t, lab.Options{Home: lab.Hard, Lab: lab.Hard})
	tcp, _ := echoServers(t, l.Host)
	atVPS, err := l.VPS.Capture(ctx, "any", "")
	if err != nil {
		t.Fatal(err)
	}
	atLAN, err := l.Host.Capture(ctx, "eth0", "tcp")
	if err != nil {
		t.Fatal(err)
	}
	marker := []byte("sixteen bytes 16")
	talk(ctx, t, l.Laptop, tcp, bytes.Repeat(marker, 1<<16)) // 1 MiB there, 1 MiB back
	for _, c := range []*lab.Capture{atVPS, atLAN} {
		if err := c.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := atLAN.Count(marker); err != nil || n < 1<<16 {
		t.Errorf("the LAN's packets hold the marker %d times (%v): the search proves nothing", n, err)
	}
	if n, err := atVPS.Count(marker); err != nil || n != 0 {
		t.Errorf("the VPS's packets hold the marker %d times, %v", n, err)
	}
}

// echoServers starts a TCP and a UDP server on the machine. A connection, or
// a datagram, is first answered with the address it came from, and a newline;
// the TCP server then echoes until the client ends.
func echoServers(t *testing.T, m *lab.Machine) (tcp, udp string) {
	t.Helper()
	stream := labtest.Serve(t, m, lab.HostAddr+":0", func(c net.Conn) {
		_, _ = io.WriteString(c, host(c.RemoteAddr())+"\n")
		labtest.Echo(c)
	})
	packets := labtest.ServePackets(t, m, lab.HostAddr+":0", func(_ []byte, from net.Addr) []byte { return []byte(host(from) + "\n") })
	return stream.String(), packets.String()
}

func host(a net.Addr) string {
	h, _, _ := net.SplitHostPort(a.String())
	return h
}

// ask returns the address that the server says the machine came from.
func ask(ctx context.Context, t *testing.T, m *lab.Machine, network, addr string) string {
	t.Helper()
	conn, err := m.DialContext(ctx, network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if network == "udp4" {
		if _, err := io.WriteString(conn, "who am I"); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 100)
	n, err := conn.Read(buf)
	if err != nil {
		t.Fatalf("%s from %s: %v", network, m.Name, err)
	}
	return strings.TrimSpace(string(buf[:n]))
}

// talk sends the data to the TCP server, and must get all of it back.
func talk(ctx context.Context, t *testing.T, m *lab.Machine, addr string, data []byte) {
	t.Helper()
	conn, err := m.DialContext(ctx, "tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write(data)
		sent <- err
	}()
	got := make([]byte, len(lab.GatewayAddr)+1+len(data)) // its greeting first
	if _, err := io.ReadFull(conn, got); err != nil {
		t.Fatal(err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if !bytes.HasSuffix(got, data) {
		t.Error("the echo differs from what was sent")
	}
}

// Large TCP gets through what the world puts in its way.
func TestLargeTransfers(t *testing.T) {
	for _, c := range []struct {
		name string
		o    lab.Options
	}{
		{"as it is", lab.Options{}},
		{"a wire of 1400 in the middle, ICMP filtered", lab.Options{MiddleMTU: 1400, FilterICMP: true}},
		{"network cards that give no help", lab.Options{NoOffload: true}},
		{"FORWARD drops, Docker's chains on the gateway", lab.Options{Docker: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.o.Home, c.o.Lab = lab.Hard, lab.Hard
			ctx, l, _ := labtest.Joined(t, c.o)
			tcp, _ := echoServers(t, l.Host)
			data := make([]byte, 16<<20)
			source := rand.NewChaCha8([32]byte{1}) // a fixed stream: a failure can be repeated
			if _, err := source.Read(data); err != nil {
				t.Fatal(err)
			}
			talk(ctx, t, l.Laptop, tcp, data)
		})
	}
}

// A laptop that itself sits on 192.168.1.0/24 keeps its own LAN: what answers
// at .201 is its home, not the lab.
func TestTheOwnLANWins(t *testing.T) {
	ctx, l, _ := labtest.Joined(t, lab.Options{Clash: true})
	home, err := l.HomeNAT.Listen("tcp4", lab.HostAddr+":7")
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	conn, err := l.Laptop.DialContext(ctx, "tcp4", home.Addr().String())
	if err != nil {
		t.Fatalf("the laptop's own 192.168.1.201 does not answer: %v", err)
	}
	conn.Close()
	labtest.Run(ctx, t, l.Laptop, "ping", "-c", "1", "-W", "2", lab.GatewayOverlay)
}
