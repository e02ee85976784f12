//go:build linux

package lab_test

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"overlayd/examples/lab"
	"overlayd/examples/lab/labtest"
)

// transport is what `overlayd status --json` says of how packets travel.
type transport struct {
	State  string `json:"state"`
	Relays []struct {
		State     string `json:"state"`
		Transport string `json:"transport"`
		Reason    string `json:"reason"`
	} `json:"relays"`
	Peers []struct {
		Name string `json:"name"`
		Path struct {
			Transport string `json:"transport"`
			Reason    string `json:"reason"`
		} `json:"path"`
	} `json:"peers"`
	Health []struct {
		ID  string `json:"id"`
		Fix string `json:"fix"`
	} `json:"health"`
}

// udpBlocked is the reason for TLS.
const udpBlocked = "udp_blocked"

// waitTransport waits until the machine reaches its relay, and by it all peers,
// in the way that is wanted.
func waitTransport(ctx context.Context, t *testing.T, m *lab.Machine, want, reason string) time.Duration {
	t.Helper()
	start := time.Now()
	err := lab.Until(ctx, func(ctx context.Context) error {
		out, err := m.Overlayd(ctx, "status", "--json")
		if err != nil {
			return err
		}
		var s transport
		if err := json.Unmarshal([]byte(out), &s); err != nil {
			return err
		}
		if len(s.Relays) != 1 || s.Relays[0].State != "up" || s.Relays[0].Transport != want || s.Relays[0].Reason != reason {
			return fmt.Errorf("%s: relays %+v, want %s %q", m.Name, s.Relays, want, reason)
		}
		for _, p := range s.Peers {
			// by UDP, a relayed path has reasons of its own: the other side's UDP may be blocked
			if p.Path.Transport != want || reason == udpBlocked && p.Path.Reason != udpBlocked {
				return fmt.Errorf("%s: peer %s by %+v, want %s %q", m.Name, p.Name, p.Path, want, reason)
			}
		}
		if s.State != "ready" || (len(s.Health) > 0) != (reason != "") {
			return fmt.Errorf("%s: %s, health %+v", m.Name, s.State, s.Health)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return time.Since(start)
}

// linkChanged gives the machine another address, that nobody uses: its daemon
// sees that the network has changed.
func linkChanged(ctx context.Context, t *testing.T, m *lab.Machine) {
	t.Helper()
	labtest.Run(ctx, t, m, "ip", "addr", "add", "10.254.254.254/32", "dev", "eth0")
}

// Where UDP is blocked, on one side or on both, everything goes by TLS, and
// status says so; when UDP passes again it is used.
func TestUDPBlocked(t *testing.T) {
	for _, c := range []struct {
		name      string
		home, lab lab.NAT
	}{
		{"at home", lab.NoUDP, lab.Hard},
		{"on both sides", lab.NoUDP, lab.NoUDP},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, l, _ := labtest.Joined(t, lab.Options{Home: c.home, Lab: c.lab})
			tcp, _ := echoServers(t, l.Host)
			talk(ctx, t, l.Laptop, tcp, make([]byte, 4<<20))
			waitTransport(ctx, t, l.Laptop, "tls", udpBlocked)
			if c.lab == lab.NoUDP {
				waitTransport(ctx, t, l.Gateway, "tls", udpBlocked)
			} else {
				waitTransport(ctx, t, l.Gateway, "udp", "")
			}
			for _, side := range []struct {
				kind   lab.NAT
				router *lab.Machine
				node   *lab.Machine
			}{{c.home, l.HomeNAT, l.Laptop}, {c.lab, l.LabNAT, l.Gateway}} {
				if side.kind != lab.NoUDP {
					continue
				}
				if err := side.router.PassUDP(ctx); err != nil {
					t.Fatal(err)
				}
				linkChanged(ctx, t, side.node)
				took := waitTransport(ctx, t, side.node, "udp", "")
				t.Logf("%s: back on UDP after %v", side.node.Name, took.Round(time.Millisecond))
			}
			talk(ctx, t, l.Laptop, tcp, make([]byte, 1<<20))
		})
	}
}

// UDP dies under traffic and comes back: TLS takes over within seconds, and UDP
// is found again without anybody saying that something has changed.
func TestUDPDiesAndComesBack(t *testing.T) {
	ctx, l, _ := labtest.Joined(t, lab.Options{Home: lab.Hard, Lab: lab.Hard})
	pings := pinging(t, l.Laptop, lab.HostAddr)
	pings.back(ctx, t, time.Now())
	blocked := time.Now()
	if err := l.HomeNAT.BlockUDP(ctx); err != nil {
		t.Fatal(err)
	}
	took := pings.back(ctx, t, blocked.Add(100*time.Millisecond))
	t.Logf("UDP blocked: traffic back after %v", took.Round(time.Millisecond))
	if took > healsWithin {
		t.Errorf("UDP blocked: traffic back after %v", took)
	}
	waitTransport(ctx, t, l.Laptop, "tls", udpBlocked)
	if err := l.HomeNAT.PassUDP(ctx); err != nil {
		t.Fatal(err)
	}
	passed := time.Now()
	took = waitTransport(ctx, t, l.Laptop, "udp", "")
	t.Logf("UDP passes again: used after %v", took.Round(time.Millisecond))
	pings.back(ctx, t, time.Now())
	if lost, sent := pings.Lost(passed, time.Now().Add(-time.Second)); lost > 3+sent/100 {
		t.Errorf("on the way back to UDP, %d of %d pings were lost", lost, sent)
	}
}
