//go:build linux

package lab_test

import (
	"context"
	"encoding/json"
	"net"
	"testing"
	"time"

	"overlayd/examples/lab"
	"overlayd/examples/lab/labtest"
)

// rotationStall bounds how long a new key may hold a stream up: two sides that
// begin a handshake at once begin again after a second, the rest is for a busy
// test machine.
const rotationStall = 3 * time.Second

// Gateway, laptop and relay get new keys while data flows, by the relay and
// directly: what is copied arrives as it was, and a stream stands still for
// moments only. A direct path outlives the keys.
func TestRotation(t *testing.T) {
	for _, tt := range []struct {
		name, kind string
		o          lab.Options
	}{
		{"by the relay", "relay", lab.Options{Home: lab.Hard, Lab: lab.Hard}},
		{"directly", "direct", lab.Options{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, l, _ := labtest.Joined(t, tt.o)
			tcp, _ := echoServers(t, l.Host)
			data := streaming(ctx, t, l.Laptop, tcp)
			data.flows(ctx, t, time.Now())
			path(ctx, t, l.Laptop, "lab-gw", tt.kind)
			copies := copyingOn(ctx, t, l)
			data.stalled()
			for _, m := range []*lab.Machine{l.Gateway, l.Laptop, l.VPS} {
				began := time.Now()
				before := publicKey(ctx, t, m)
				after := must[string](t)(m.Overlayd(ctx, "rotate"))
				took := time.Since(began)
				data.flows(ctx, t, time.Now())
				stall := data.stalled()
				t.Logf("%s: a new key in %v, the stream stood still for %v", m.Name, took.Round(time.Millisecond), stall.Round(time.Millisecond))
				if now := publicKey(ctx, t, m); now == before || now != after {
					t.Errorf("%s had the key %s, was told %s, and has %s", m.Name, before, after, now)
				}
				if stall > rotationStall {
					t.Errorf("%s: the stream stood still for %v", m.Name, stall)
				}
			}
			if n, err := copies(); err != nil || n == 0 {
				t.Errorf("%d copies, then %v", n, err)
			}
			path(ctx, t, l.Laptop, "lab-gw", tt.kind)
			// Over a restart the new key is what the machine has.
			key := publicKey(ctx, t, l.Gateway)
			must[string](t)(l.Gateway.Overlayd(ctx, "down"))
			serve(ctx, t, l.Gateway, "gateway")
			if now := publicKey(ctx, t, l.Gateway); now != key {
				t.Errorf("the gateway had the key %s, and has %s after a restart", key, now)
			}
			labtest.Run(ctx, t, l.Laptop, "ping", "-n", "-c", "3", "-i", "0.2", "-W", "5", lab.HostAddr)
		})
	}
}

// copyingOn copies megabytes to the LAN host, again and again. The function stops
// it, and returns how often it was done.
func copyingOn(ctx context.Context, t *testing.T, l *lab.Lab) (stop func() (int, error)) {
	t.Helper()
	server := must[net.Listener](t)(l.Host.Listen("tcp4", lab.HostAddr+":0"))
	t.Cleanup(func() { server.Close() })
	client, conn := connected(ctx, t, l.Laptop, server)
	type result struct {
		n   int
		err error
	}
	ended, done := make(chan struct{}), make(chan result, 1)
	go func() { // ends with the connection at the latest
		for n := 0; ; n++ {
			select {
			case <-ended:
				done <- result{n, nil}
				return
			default:
			}
			if err := copied(client, conn, 4<<20); err != nil {
				done <- result{n, err}
				return
			}
		}
	}()
	return func() (int, error) {
		close(ended)
		r := <-done
		return r.n, r.err
	}
}

// publicKey asks a machine for its WireGuard key.
func publicKey(ctx context.Context, t *testing.T, m *lab.Machine) string {
	t.Helper()
	var s struct {
		Node struct {
			PublicKey string `json:"public_key"`
		} `json:"node"`
	}
	if err := json.Unmarshal([]byte(must[string](t)(m.Overlayd(ctx, "status", "--json"))), &s); err != nil {
		t.Fatal(err)
	}
	return s.Node.PublicKey
}
