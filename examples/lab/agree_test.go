//go:build linux

package lab_test

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"overlayd/examples/lab"
	"overlayd/examples/lab/labtest"
)

// track is a peer's path as `overlayd status --json` has it.
type track struct {
	Kind      string `json:"kind"`
	Transport string `json:"transport"`
	Endpoint  string `json:"endpoint"`
}

// String is the row's words.
func (k track) String() string { return strings.TrimSpace(k.Kind + " " + k.Transport) }

// trackTo returns the path from a machine to a peer.
func trackTo(ctx context.Context, m *lab.Machine, peer string) (track, error) {
	out, err := m.Overlayd(ctx, "status", "--json")
	if err != nil && lab.ExitCode(err) != exitDegraded {
		return track{}, err
	}
	var s struct {
		Peers []struct {
			Name string `json:"name"`
			Path track  `json:"path"`
		} `json:"peers"`
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		return track{}, err
	}
	for _, p := range s.Peers {
		if p.Name == peer {
			return p.Path, nil
		}
	}
	return track{}, fmt.Errorf("%s has no peer %s", m.Name, peer)
}

// settles waits until the path from a machine to a peer is as wanted, and
// returns how long that took.
func settles(ctx context.Context, t *testing.T, m *lab.Machine, peer, want string) (track, time.Duration) {
	t.Helper()
	start := time.Now()
	var k track
	err := lab.Until(ctx, func(ctx context.Context) (err error) {
		if k, err = trackTo(ctx, m, peer); err != nil {
			return err
		}
		if k.String() != want {
			return fmt.Errorf("the path from %s to %s is %+v, want %s", m.Name, peer, k, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return k, time.Since(start)
}

var (
	ssUDP   = regexp.MustCompile(`(?m)^UNCONN\s+\d+\s+\d+\s+(?:0\.0\.0\.0|\*):(\d+)\s.*"overlayd"`)
	ssAcked = regexp.MustCompile(`bytes_acked:(\d+)`)
)

// overTCP is how much the machine's overlayd has got through to the relay's
// TCP port so far, by ss.
func overTCP(ctx context.Context, t *testing.T, m *lab.Machine) (sum int) {
	t.Helper()
	out := labtest.Run(ctx, t, m, "ss", "-tnpiH", "state", "established", "dst", lab.VPSAddr, "and", "dport", "=", "443")
	if !strings.Contains(out, `"overlayd"`) {
		t.Fatalf("ss shows no connection of overlayd's to the relay:\n%s", out)
	}
	for _, m := range ssAcked.FindAllStringSubmatch(out, -1) {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}

// passed is how many packets of a stopped capture pass a filter.
func passed(ctx context.Context, t *testing.T, m *lab.Machine, c *lab.Capture, filter string) int {
	t.Helper()
	return strings.Count(labtest.Run(ctx, t, m, "tcpdump", "-n", "-r", c.File, filter), " IP ")
}

// watched pings the LAN host from the laptop, and returns what tcpdump saw on the
// laptop and on the VPS, and how much overlayd got through by TCP.
func watched(ctx context.Context, t *testing.T, l *lab.Lab, echoes, size int) (laptop, vps *lab.Capture, acked int) {
	t.Helper()
	before := overTCP(ctx, t, l.Laptop)
	for _, c := range []struct {
		m    *lab.Machine
		into **lab.Capture
	}{{l.Laptop, &laptop}, {l.VPS, &vps}} {
		capture, err := c.m.Capture(ctx, "eth0", "")
		if err != nil {
			t.Fatal(err)
		}
		*c.into = capture
	}
	labtest.Run(ctx, t, l.Laptop, "ping", "-q", "-i", "0.01", "-c", fmt.Sprint(echoes), "-s", fmt.Sprint(size), lab.HostAddr)
	acked = overTCP(ctx, t, l.Laptop) - before
	for _, capture := range []*lab.Capture{laptop, vps} {
		if err := capture.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	return laptop, vps, acked
}

// What status says of the path is what tcpdump and ss see, on a direct path, on
// one by the relay's UDP and on one by its TLS.
func TestPathsAreAsTheySay(t *testing.T) {
	const (
		echoes = 50
		size   = 1000 // bytes of each
	)
	for _, c := range []struct {
		home, lab lab.NAT
		want      string
	}{
		{lab.Cone, lab.Cone, "direct udp"},
		{lab.Hard, lab.Cone, "relay udp"},
		{lab.NoUDP, lab.Cone, "relay tls"},
	} {
		t.Run(c.want, func(t *testing.T) {
			ctx, l, _ := labtest.Joined(t, lab.Options{Home: c.home, Lab: c.lab})
			pings := pinging(t, l.Laptop, lab.HostAddr)
			pings.back(ctx, t, time.Now())
			ports := ssUDP.FindStringSubmatch(labtest.Run(ctx, t, l.Laptop, "ss", "-uanpH"))
			if ports == nil {
				t.Fatal("ss shows no UDP socket of overlayd's")
			}
			var k track
			var laptop, vps *lab.Capture
			var acked int
			for same := false; !same; { // on a busy machine a direct path may be doubted for a moment
				k, _ = settles(ctx, t, l.Laptop, "lab-gw", c.want)
				laptop, vps, acked = watched(ctx, t, l, echoes, size)
				again, err := trackTo(ctx, l.Laptop, "lab-gw")
				if err != nil {
					t.Fatal(err)
				}
				same = again == k
			}

			big := fmt.Sprintf("greater %d", size)
			fromSocket := "udp and src port " + ports[1] + " and " + big
			n := map[string]int{
				"direct udp": passed(ctx, t, l.Laptop, laptop, fromSocket+" and dst host "+lab.LabPublic),
				"relay udp":  passed(ctx, t, l.Laptop, laptop, fromSocket+" and udp[8] = 4 and dst host "+lab.VPSAddr+" and dst port 443"),
				"relay tls":  passed(ctx, t, l.Laptop, laptop, "tcp and dst host "+lab.VPSAddr+" and dst port 443 and "+big),
			}
			for way, packets := range n {
				// TCP puts several into one segment.
				if way == c.want && packets < echoes/4 || way != c.want && packets > 0 {
					t.Errorf("%s: tcpdump on the laptop saw %d large packets go by %s", c.want, packets, way)
				}
			}
			relayed := passed(ctx, t, l.VPS, vps, "src host "+lab.HomePublic+" and dst port 443 and "+big)
			if (relayed > 0) != strings.HasPrefix(c.want, "relay") {
				t.Errorf("%s: tcpdump on the VPS saw %d large packets from the home", c.want, relayed)
			}
			if tls := acked > echoes*size; tls != (c.want == "relay tls") {
				t.Errorf("%s: by ss, %d bytes went by TCP", c.want, acked)
			}
			wantEndpoint := lab.VPSAddr + ":443"
			if c.want == "direct udp" {
				wantEndpoint = lab.LabPublic + ":"
			}
			if !strings.HasPrefix(k.Endpoint, wantEndpoint) {
				t.Errorf("%s: status names %s", c.want, k.Endpoint)
			}
		})
	}
}
