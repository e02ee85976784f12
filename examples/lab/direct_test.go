//go:build linux

package lab_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"overlayd/examples/lab"
	"overlayd/examples/lab/labtest"
)

// directWithin is how soon after the first packet both sides have left the
// relay: a second by the promise, the rest for a busy test machine.
const directWithin = 4 * time.Second

// path waits until a machine's path to a peer is of a kind, and returns its
// reason.
func path(ctx context.Context, t *testing.T, m *lab.Machine, peer, kind string) (reason string) {
	t.Helper()
	waitFor(ctx, t, m, func(s status) error {
		for _, p := range s.Peers {
			if p.Name == peer {
				if reason = p.Path.Reason; p.Path.Kind == kind {
					return nil
				}
				return fmt.Errorf("the path from %s to %s is %+v, want %s", m.Name, peer, p.Path, kind)
			}
		}
		return fmt.Errorf("%s has no peer %s", m.Name, peer)
	})
	return reason
}

// datagrams counts WireGuard's data between laptop and gateway that passes a
// link for a while: relayed, it carries the label of one of them, directly none.
func datagrams(ctx context.Context, t *testing.T, m *lab.Machine, d time.Duration) (relayed, direct int) {
	t.Helper()
	c, err := m.Capture(ctx, "eth0", "udp and udp[8] = 4")
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-time.After(d): // what passes in that time is what is counted
	case <-ctx.Done():
		t.Fatal(ctx.Err())
	}
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	count := func(label byte) int {
		n, err := c.Count([]byte{4, label, 0, 0})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return count(11) + count(200), count(0)
}

// Between two cones the path is direct, and nothing is left for the VPS to
// carry; when it is cut, the relay takes over, and a TCP stream notices little.
func TestDirectPath(t *testing.T) {
	ctx, l, _ := labtest.JoinedFor(t, time.Minute, lab.Options{})
	tcp, _ := echoServers(t, l.Host)
	start := time.Now()
	pings := pinging(t, l.Laptop, lab.HostAddr)
	pings.back(ctx, t, start)
	path(ctx, t, l.Laptop, "lab-gw", "direct")
	path(ctx, t, l.Gateway, "laptop", "direct")
	took := time.Since(start)
	t.Logf("direct after %v", took.Round(time.Millisecond))
	if took > directWithin {
		t.Errorf("direct after %v", took)
	}
	want := "direct udp " + lab.LabPublic
	for _, args := range [][]string{{"ping", lab.HostAddr, "-c", "1"}, {"peers"}} {
		if out, err := l.Laptop.Overlayd(ctx, args...); err != nil || !strings.Contains(out, want) {
			t.Errorf("overlayd %s does not say %q: %v\n%s", args[0], want, err, out)
		}
	}
	data := streaming(ctx, t, l.Laptop, tcp)
	data.flows(ctx, t, time.Now())
	if relayed, _ := datagrams(ctx, t, l.VPS, time.Second); relayed != 0 {
		t.Errorf("%d datagrams still pass the VPS", relayed)
	}
	if _, direct := datagrams(ctx, t, l.Laptop, time.Second); direct == 0 {
		t.Error("no plain WireGuard leaves the laptop: the search proves nothing")
	}

	cut := func(change string) {
		for _, pair := range [][2]string{{lab.HomePublic, lab.LabPublic}, {lab.LabPublic, lab.HomePublic}} {
			labtest.Run(ctx, t, l.Internet, "iptables", "-w", change, "FORWARD", "-s", pair[0], "-d", pair[1], "-j", "DROP")
		}
	}
	at := time.Now()
	cut("-I")
	back := pings.back(ctx, t, at)
	stream := data.flows(ctx, t, at.Add(back))
	t.Logf("cut: ping back after %v, TCP after %v", back.Round(time.Millisecond), (back + stream).Round(time.Millisecond))
	if back > 6500*time.Millisecond {
		t.Errorf("cut: traffic was back after %v", back)
	}
	path(ctx, t, l.Laptop, "lab-gw", "relay")
	at = time.Now()
	cut("-D")
	path(ctx, t, l.Laptop, "lab-gw", "direct")
	path(ctx, t, l.Gateway, "laptop", "direct")
	t.Logf("no longer cut: direct after %v", time.Since(at).Round(time.Millisecond))
	data.flows(ctx, t, time.Now())
	if lost, sent := pings.Lost(at, time.Now().Add(-time.Second)); lost > sent/100 {
		t.Errorf("on the way back to the direct path, %d of %d pings were lost", lost, sent)
	}
}

// A cone and a symmetric NAT whose ports are random do not meet, nor do two of
// the latter: the path stays relayed, and says why.
func TestNoDirectPath(t *testing.T) {
	for _, o := range []lab.Options{{Home: lab.Hard}, {Home: lab.Hard, Lab: lab.Hard}} {
		t.Run(string(o.Home)+", "+string(o.Lab), func(t *testing.T) {
			ctx, l, _ := labtest.Joined(t, o)
			pings := pinging(t, l.Laptop, lab.HostAddr)
			pings.back(ctx, t, time.Now())
			err := lab.Until(ctx, func(ctx context.Context) error {
				if reason := path(ctx, t, l.Laptop, "lab-gw", "relay"); reason != "symmetric_nat_both" {
					return fmt.Errorf("the reason is %q", reason)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if lost, sent := pings.Lost(time.Now().Add(-3*time.Second), time.Now().Add(-time.Second)); lost > sent/50 {
				t.Errorf("%d of %d pings were lost", lost, sent)
			}
		})
	}
}
