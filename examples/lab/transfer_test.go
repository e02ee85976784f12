//go:build linux

package lab_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"overlayd/examples/lab"
	"overlayd/examples/lab/labtest"
)

// copySize is how much is copied each way; LAB_LONG makes it the 1 GB of the
// promise.
func copySize() int64 {
	if long {
		return 1 << 30
	}
	return 64 << 20
}

// What is copied to the LAN host and back arrives as it was, from the laptop
// and from the VPS, also where a wire in the middle is short and nobody says so.
func TestCopies(t *testing.T) {
	for _, c := range []struct {
		name string
		o    lab.Options
	}{
		{"hard NATs", lab.Options{Home: lab.Hard, Lab: lab.Hard}},
		{"a wire of 1400 bytes, ICMP filtered", lab.Options{Home: lab.Hard, Lab: lab.Hard, MiddleMTU: 1400, FilterICMP: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, l, _ := labtest.JoinedFor(t, 10*time.Minute, c.o)
			server, err := l.Host.Listen("tcp4", lab.HostAddr+":0")
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			for _, from := range []*lab.Machine{l.Laptop, l.VPS} {
				start := time.Now()
				client, conn := connected(ctx, t, from, server)
				for _, way := range []struct {
					name     string
					from, to net.Conn
				}{{"there", client, conn}, {"back", conn, client}} {
					if err := copied(way.from, way.to, copySize()); err != nil {
						t.Errorf("%s, %s: %v", from.Name, way.name, err)
					}
				}
				t.Logf("%s: %d MB there and back in %v", from.Name, copySize()>>20, time.Since(start).Round(time.Millisecond))
			}
		})
	}
}

// connected connects from a machine to a listener, and returns both ends. They are
// good for as long as the test may take, and its end closes them.
func connected(ctx context.Context, t *testing.T, m *lab.Machine, l net.Listener) (client, server net.Conn) {
	t.Helper()
	until, _ := ctx.Deadline() // which every lab's context has
	client = must[net.Conn](t)(m.DialContext(ctx, "tcp4", l.Addr().String()))
	t.Cleanup(func() { client.Close() })
	if err := l.(*net.TCPListener).SetDeadline(until); err != nil {
		t.Fatal(err)
	}
	server = must[net.Conn](t)(l.Accept())
	t.Cleanup(func() { server.Close() })
	if err := errors.Join(client.SetDeadline(until), server.SetDeadline(until)); err != nil {
		t.Fatal(err)
	}
	return client, server
}

// copied sends random bytes over a connection and compares their SHA-256 at
// both ends.
func copied(from, to net.Conn, size int64) error {
	sent := make(chan error, 1)
	in, out := sha256.New(), sha256.New()
	go func() { // ends with the connection at the latest
		source := io.LimitReader(rand.NewChaCha8([32]byte{7}), size)
		_, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(in, from)}, source, make([]byte, 256<<10))
		sent <- err
	}()
	n, err := io.CopyBuffer(struct{ io.Writer }{out}, io.LimitReader(to, size), make([]byte, 256<<10))
	if err = errors.Join(err, <-sent); err != nil {
		return err
	}
	if a, b := in.Sum(nil), out.Sum(nil); !bytes.Equal(a, b) {
		return fmt.Errorf("%d bytes with SHA-256 %x were sent, %d with %x arrived", size, a, n, b)
	}
	return nil
}

// A laptop on a network with the addresses of the remote one keeps its own, and
// says so, and what to do about it.
func TestTheClashIsNamed(t *testing.T) {
	ctx, l, _ := labtest.Joined(t, lab.Options{Clash: true})
	waitFor(ctx, t, l.Laptop, func(s status) error {
		for _, r := range s.Routes {
			if r.Prefix == lab.LAN && (r.State != "clash" || !strings.Contains(r.Reason, "eth0")) {
				return fmt.Errorf("the route: %+v", r)
			}
		}
		for _, h := range s.Health {
			if h.ID == "route_clash" && strings.Contains(h.Title, lab.LAN) && strings.Contains(h.Fix, lab.GatewayOverlay) {
				return nil
			}
		}
		return fmt.Errorf("no word of the clash: %+v", s.Health)
	})
	if screen := labtest.Run(ctx, t, l.Laptop, l.Options.Overlayd, "status"); !strings.Contains(screen, "this machine's eth0 is itself on "+lab.LAN) {
		t.Errorf("the status does not name the clash:\n%s", screen)
	}
	if route := labtest.Run(ctx, t, l.Laptop, "ip", "route", "get", lab.HostAddr); !strings.Contains(route, "dev eth0") {
		t.Errorf("the own LAN is not reached by its own link: %s", route)
	}
	if route := labtest.Run(ctx, t, l.VPS, "ip", "route", "get", lab.HostAddr); !strings.Contains(route, "dev ovl0") {
		t.Errorf("the VPS does not reach the LAN: %s", route)
	}
}
