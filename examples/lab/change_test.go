//go:build linux

package lab_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"overlayd/examples/lab"
	"overlayd/examples/lab/labtest"
)

const (
	// changeWithin is how soon after a change of the world traffic has to be
	// back: a second by the promise, the rest for a busy test machine.
	changeWithin = 2500 * time.Millisecond
	// wakeWithin is that after a sleep, where two seconds are promised.
	wakeWithin = 3 * time.Second
)

// change is something that happens to the world under traffic.
type change struct {
	name string
	do   func(ctx context.Context, t *testing.T, l *lab.Lab, round int)
}

// replug gives a machine's link another address and the default route back.
func replug(ctx context.Context, t *testing.T, m *lab.Machine, addr, via string) {
	t.Helper()
	labtest.Run(ctx, t, m, "ip", "-4", "addr", "flush", "dev", "eth0")
	labtest.Run(ctx, t, m, "ip", "addr", "add", addr, "dev", "eth0")
	labtest.Run(ctx, t, m, "ip", "route", "add", "default", "via", via)
}

// remap makes a NAT forget its UDP mappings and choose other ports from now on.
func remap(ctx context.Context, t *testing.T, m *lab.Machine, round int) {
	t.Helper()
	ports := fmt.Sprintf("%d-%d", 20000+1000*(round%40), 20999+1000*(round%40))
	labtest.Run(ctx, t, m, "iptables", "-w", "-t", "nat", "-I", "POSTROUTING", "-o", "eth0", "-p", "udp",
		"-j", "MASQUERADE", "--to-ports", ports)
	labtest.Run(ctx, t, m, "conntrack", "-D", "-p", "udp")
}

var changes = []change{
	{"laptop's address", func(ctx context.Context, t *testing.T, l *lab.Lab, round int) {
		replug(ctx, t, l.Laptop, fmt.Sprintf("10.0.77.%d/24", 3+round%200), "10.0.77.1")
	}},
	{"home's public address", func(ctx context.Context, t *testing.T, l *lab.Lab, round int) {
		replug(ctx, t, l.HomeNAT, fmt.Sprintf("198.51.100.%d/24", 3+round%200), "198.51.100.1")
	}},
	{"lab's public address", func(ctx context.Context, t *testing.T, l *lab.Lab, round int) {
		replug(ctx, t, l.LabNAT, fmt.Sprintf("192.0.2.%d/24", 3+round%200), "192.0.2.1")
	}},
	{"home NAT's mappings", func(ctx context.Context, t *testing.T, l *lab.Lab, round int) {
		remap(ctx, t, l.HomeNAT, round)
	}},
	{"lab NAT's mappings", func(ctx context.Context, t *testing.T, l *lab.Lab, round int) {
		remap(ctx, t, l.LabNAT, round)
	}},
}

// Whatever changes under traffic, by the relay or directly, heals by itself, and
// a TCP stream lives on.
func TestTheWorldChanges(t *testing.T) {
	rounds := 1
	if long {
		rounds = 10
	}
	for _, kind := range []struct {
		path string
		nat  lab.NAT
	}{{"relay", lab.Hard}, {"direct", lab.Cone}} {
		t.Run(kind.path, func(t *testing.T) {
			ctx, l, _ := labtest.JoinedFor(t, 20*time.Minute, lab.Options{Home: kind.nat, Lab: kind.nat})
			tcp, _ := echoServers(t, l.Host)
			pings := pinging(t, l.Laptop, lab.HostAddr)
			data := streaming(ctx, t, l.Laptop, tcp)
			for _, c := range changes {
				var all []time.Duration
				for round := range rounds {
					pings.back(ctx, t, time.Now())
					path(ctx, t, l.Laptop, "lab-gw", kind.path)
					path(ctx, t, l.Gateway, "laptop", kind.path)
					c.do(ctx, t, l, round)
					at := time.Now()
					all = append(all, pings.back(ctx, t, at))
					data.flows(ctx, t, at)
				}
				heals(t, c.name, all, changeWithin)
			}
		})
	}
}

// heals checks and tells how long traffic was away.
func heals(t *testing.T, what string, all []time.Duration, within time.Duration) {
	t.Helper()
	p50, worst := spread(all)
	t.Logf("%s: traffic back after p50 %v, worst %v of %d", what, p50, worst, len(all))
	if worst > within {
		t.Errorf("%s: traffic was back after %v", what, worst)
	}
}

// A daemon that stood still, as on a machine that slept, is back at once, also
// when the network is another one by then.
func TestSleep(t *testing.T) {
	labtest.Waits(t)
	naps, rounds := []time.Duration{8 * time.Second}, 1
	if long {
		naps, rounds = append(naps, 200*time.Second), 3
	}
	for _, kind := range []struct {
		path string
		nat  lab.NAT
	}{{"relay", lab.Hard}, {"direct", lab.Cone}} {
		t.Run(kind.path, func(t *testing.T) {
			labtest.Waits(t)
			ctx, l, j := labtest.JoinedFor(t, time.Hour, lab.Options{Home: kind.nat, Lab: kind.nat})
			pings := pinging(t, l.Laptop, lab.HostAddr)
			f := lab.NewFreezer(j.Laptop)
			defer func() {
				if err := f.Close(); err != nil {
					t.Error(err)
				}
			}()
			for _, nap := range naps {
				for _, moves := range []bool{false, true} {
					if !long && moves != (kind.path == "direct") {
						continue
					}
					var all []time.Duration
					for round := range rounds {
						pings.back(ctx, t, time.Now())
						path(ctx, t, l.Laptop, "lab-gw", kind.path)
						if err := f.Freeze(ctx); err != nil {
							t.Fatal(err)
						}
						select {
						case <-time.After(nap): // the sleep is what is tested
						case <-ctx.Done():
							t.Fatal(ctx.Err())
						}
						if moves {
							replug(ctx, t, l.Laptop, fmt.Sprintf("10.0.77.%d/24", 3+round), "10.0.77.1")
						}
						at := time.Now()
						if err := f.Thaw(); err != nil {
							t.Fatal(err)
						}
						all = append(all, pings.back(ctx, t, at))
					}
					heals(t, fmt.Sprintf("%v of sleep (%s), moved %v", nap, f.Kind, moves), all, wakeWithin)
					woke := time.Now()
					waitFor(ctx, t, l.Laptop, control("connected"))
					t.Logf("the coordinator was back %v later", time.Since(woke).Round(time.Millisecond))
				}
			}
		})
	}
}

// port returns the UDP port of the machine's daemon: the one that it has in both
// families, "" while it changes. Whoever asks routers for a mapping has sockets
// of IPv4 alone.
func port(ctx context.Context, t *testing.T, m *lab.Machine) string {
	t.Helper()
	ports := func(family string) (all []string) {
		for line := range strings.Lines(labtest.Run(ctx, t, m, "ss", "-Hlun"+family)) {
			if fields := strings.Fields(line); len(fields) > 3 {
				if _, p, err := net.SplitHostPort(fields[3]); err == nil {
					all = append(all, p)
				}
			}
		}
		return all
	}
	v6 := ports("6")
	for _, p := range ports("4") {
		if slices.Contains(v6, p) {
			return p
		}
	}
	return ""
}

// A router holds a dead mapping for the laptop's port: everything from there
// vanishes, although the network is fine. TLS bridges the gap, and another port
// ends it, with nobody's help.
func TestStuckMapping(t *testing.T) {
	labtest.Waits(t)
	for _, kind := range []struct {
		path string
		nat  lab.NAT
	}{{"relay", lab.Hard}, {"direct", lab.Cone}} {
		t.Run(kind.path, func(t *testing.T) {
			labtest.Waits(t)
			ctx, l, _ := labtest.Joined(t, lab.Options{Home: kind.nat, Lab: kind.nat})
			pings := pinging(t, l.Laptop, lab.HostAddr)
			pings.back(ctx, t, time.Now())
			path(ctx, t, l.Laptop, "lab-gw", kind.path)
			stuck := port(ctx, t, l.Laptop)
			labtest.Run(ctx, t, l.HomeNAT, "iptables", "-w", "-t", "raw", "-I", "PREROUTING", "-i", "eth1", "-p", "udp", "--sport", stuck, "-j", "DROP")
			at := time.Now()
			back := pings.back(ctx, t, at.Add(50*time.Millisecond))
			err := lab.Until(ctx, func(ctx context.Context) error {
				if now := port(ctx, t, l.Laptop); now == stuck || now == "" {
					return fmt.Errorf("the port was %s and is %q", stuck, now)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			waitTransport(ctx, t, l.Laptop, "udp", "")
			t.Logf("traffic back after %v, UDP after %v", back.Round(time.Millisecond), time.Since(at).Round(time.Millisecond))
			if back > healsWithin {
				t.Errorf("traffic was back after %v", back)
			}
			path(ctx, t, l.Laptop, "lab-gw", kind.path)
			path(ctx, t, l.Gateway, "laptop", kind.path)
			pings.back(ctx, t, time.Now())
		})
	}
}
