//go:build linux

package lab_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"overlayd/examples/lab"
	"overlayd/examples/lab/labtest"
	"overlayd/overlay"
)

// movesWithin is how soon after a relay's end its peers are on the other one:
// three seconds by the promise, the rest for a busy test machine.
const movesWithin = 6 * time.Second

// relayed is what `overlayd status --json` says of relays and the ways by them.
type relayed struct {
	Relays []struct {
		Name  string `json:"name"`
		State string `json:"state"`
	} `json:"relays"`
	Peers []struct {
		Name string `json:"name"`
		Path struct {
			Kind  string `json:"kind"`
			Relay string `json:"relay"`
		} `json:"path"`
	} `json:"peers"`
	Health []struct {
		ID string `json:"id"`
	} `json:"health"`
}

// waitRelays waits until the machine's relays are as wanted, "vps up, vps2 up",
// and its way to the gateway, if one is named, leads by that one.
func waitRelays(ctx context.Context, t *testing.T, m *lab.Machine, want, via string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, labtest.Patience/2)
	defer cancel()
	err := lab.Until(ctx, func(ctx context.Context) error {
		out, err := m.Overlayd(ctx, "status", "--json")
		if err != nil && lab.ExitCode(err) != exitDegraded {
			return err
		}
		var s relayed
		if err := json.Unmarshal([]byte(out), &s); err != nil {
			return err
		}
		var have []string
		for _, r := range s.Relays {
			have = append(have, r.Name+" "+r.State)
		}
		slices.Sort(have) // a machine's own comes first
		if got := strings.Join(have, ", "); got != want {
			return fmt.Errorf("%s has the relays %s, want %s", m.Name, got, want)
		}
		for _, p := range s.Peers {
			if via != "" && p.Name == "lab-gw" && p.Path.Relay != via {
				return fmt.Errorf("%s reaches the gateway by %+v, want %s", m.Name, p.Path, via)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A second VPS joins, and the network lives on when either of them dies: with the
// first one the coordinator.
func TestTwoRelays(t *testing.T) {
	labtest.Waits(t)
	ctx, l, j := labtest.JoinedFor(t, 10*time.Minute, lab.Options{Home: lab.Hard, Lab: lab.Hard, SecondVPS: true})
	second, err := l.JoinRelay(ctx)
	if err != nil {
		t.Fatal(err)
	}
	first := daemons(l, j)["relay"]
	other := &daemon{l.VPS2, second, []string{"relay"}}
	for _, m := range []*lab.Machine{l.Laptop, l.Gateway} {
		waitRelays(ctx, t, m, "vps up, vps2 up", "")
	}
	waitRelays(ctx, t, l.VPS, "vps own, vps2 up", "")
	waitRelays(ctx, t, l.VPS2, "vps up, vps2 own", "")
	joinedRelay(ctx, t, l)
	t.Run("they die", func(t *testing.T) { relaysDie(ctx, t, l, first, other) }) // its connections end before the laptop is removed
	removed(ctx, t, l, other)
}

// relaysDie kills each of two relays under traffic, and restarts them.
func relaysDie(ctx context.Context, t *testing.T, l *lab.Lab, first, other *daemon) {
	t.Helper()
	tcp, _ := echoServers(t, l.Host)
	pings, data := pinging(t, l.Laptop, lab.HostAddr), streaming(ctx, t, l.Laptop, tcp)
	pings.back(ctx, t, time.Now())
	moved := func(what string, at time.Time) {
		t.Helper()
		back, flows := pings.back(ctx, t, at), data.flows(ctx, t, at)
		t.Logf("%s: ping back after %v, TCP after %v", what, back.Round(time.Millisecond), flows.Round(time.Millisecond))
		if back > movesWithin {
			t.Errorf("%s: traffic was back after %v", what, back)
		}
	}

	at := time.Now()
	first.process.Kill()
	moved("relay and coordinator killed", at)
	waitRelays(ctx, t, l.Laptop, "vps lost, vps2 up", "vps2")

	at = time.Now()
	other.process.Kill()
	other.start(ctx, t, l)
	moved("the other one restarted without a coordinator", at)

	first.start(ctx, t, l)
	for _, m := range []*lab.Machine{l.Laptop, l.Gateway} {
		waitRelays(ctx, t, m, "vps up, vps2 up", "")
	}
	waitFor(ctx, t, l.VPS2, control("connected"))
	at = time.Now()
	other.process.Kill()
	moved("the second relay killed", at)
	waitRelays(ctx, t, l.Laptop, "vps up, vps2 lost", "vps")
	other.start(ctx, t, l)
	waitRelays(ctx, t, l.Laptop, "vps up, vps2 up", "")
	waitRelays(ctx, t, l.Gateway, "vps up, vps2 up", "")

	if long {
		cutOff(ctx, t, l, moved)
		oneWay(ctx, t, l, pings)
	}
}

// cutOff: the first VPS falls silent, which nobody is told.
func cutOff(ctx context.Context, t *testing.T, l *lab.Lab, moved func(string, time.Time)) {
	t.Helper()
	cut := []string{"-w", "-I", "INPUT", "-i", "eth0", "-j", "DROP"}
	at := time.Now()
	labtest.Run(ctx, t, l.VPS, "iptables", cut...)
	moved("the first VPS cut off", at)
	cut[1] = "-D"
	labtest.Run(ctx, t, l.VPS, "iptables", cut...)
	for _, m := range []*lab.Machine{l.Laptop, l.Gateway, l.VPS2} {
		waitFor(ctx, t, m, control("connected"))
	}
}

// joinedRelay looks at a relay that has just joined, as a member and as a file.
func joinedRelay(ctx context.Context, t *testing.T, l *lab.Lab) {
	t.Helper()
	if nodes := labtest.Run(ctx, t, l.VPS, l.Options.Overlayd, "nodes"); !strings.Contains(nodes, "vps2") {
		t.Errorf("the relay is not listed:\n%s", nodes)
	}
	pinging(t, l.Laptop, lab.VPS2Overlay).back(ctx, t, time.Now())
	pinging(t, l.VPS2, lab.HostAddr).back(ctx, t, time.Now())
	for _, file := range []string{filepath.Join(l.VPS2.StateDir(), "hub.json"), filepath.Join(l.VPS.StateDir(), "coord.db")} {
		if i, err := os.Stat(file); err != nil || i.Mode().Perm() != 0o600 {
			t.Errorf("%s, which holds the relay's secret: %v, %v", file, i.Mode(), err)
		}
	}
	_, err := l.VPS2.Overlayd(ctx, "invite")
	if lab.ExitCode(err) != overlay.ExitDenied || !strings.Contains(err.Error(), "role of admin") {
		t.Errorf("an invite of a relay that is nobody's: %v", err)
	}
}

// oneWay: a relay is out of reach for one of two peers only, which tells the other.
func oneWay(ctx context.Context, t *testing.T, l *lab.Lab, pings pinger) {
	t.Helper()
	block := func(m *lab.Machine, do, addr string) {
		labtest.Run(ctx, t, m, "iptables", "-w", do, "FORWARD", "-d", addr, "-j", "DROP")
	}
	at := time.Now()
	block(l.HomeNAT, "-I", lab.VPSAddr)
	back := pings.back(ctx, t, at)
	t.Logf("the laptop alone cut off from the first relay: ping back after %v", back.Round(time.Millisecond))
	if back > movesWithin {
		t.Errorf("traffic was back after %v", back)
	}
	waitRelays(ctx, t, l.Gateway, "vps up, vps2 up", "vps2")
	block(l.HomeNAT, "-D", lab.VPSAddr)
	waitRelays(ctx, t, l.Laptop, "vps up, vps2 up", "")
	at = time.Now()
	block(l.LabNAT, "-I", lab.VPS2Addr)
	back = pings.back(ctx, t, at)
	t.Logf("the gateway alone cut off from the second relay: ping back after %v", back.Round(time.Millisecond))
	if back > movesWithin {
		t.Errorf("traffic was back after %v", back)
	}
	waitRelays(ctx, t, l.Laptop, "vps up, vps2 up", "vps")
	block(l.LabNAT, "-D", lab.VPS2Addr)
	waitFor(ctx, t, l.Laptop, control("connected"))
}

// removed: a node that is removed while it cannot hear of it is refused by both
// relays, and a relay that is removed is gone from the others' maps.
func removed(ctx context.Context, t *testing.T, l *lab.Lab, other *daemon) {
	t.Helper()
	labtest.Run(ctx, t, l.HomeNAT, "iptables", "-w", "-I", "FORWARD", "-p", "tcp", "--sport", "443", "-j", "DROP")
	labtest.Run(ctx, t, l.VPS, l.Options.Overlayd, "nodes", "remove", "laptop")
	waitRelays(ctx, t, l.Laptop, "vps lost, vps2 lost", "")
	labtest.Run(ctx, t, l.VPS, l.Options.Overlayd, "nodes", "remove", "vps2")
	waitRelays(ctx, t, l.Gateway, "vps up", "")
	if err := lab.Until(ctx, func(context.Context) error {
		if other.process.Running() {
			return fmt.Errorf("the removed relay still runs")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if code := lab.ExitCode(other.process.Err()); code != 6 {
		t.Errorf("the removed relay ended with %d: %s", code, other.process.Tail())
	}
	if _, err := l.VPS.Overlayd(ctx, "nodes", "remove", "vps"); lab.ExitCode(err) != 8 {
		t.Errorf("removing the coordinator: %v", err)
	}
}

// What a second relay does not start with.
func TestRelayRefusals(t *testing.T) {
	ctx, l, _ := labtest.Joined(t, lab.Options{SecondVPS: true})
	member := labtest.Run(ctx, t, l.VPS, l.Options.Overlayd, "invite")
	relay := labtest.Run(ctx, t, l.VPS, l.Options.Overlayd, "invite", "--relay", "--uses", "2")
	member, relay = strings.TrimSpace(member), strings.TrimSpace(relay)
	for i, c := range []struct {
		name string
		m    *lab.Machine
		args []string
		code int
		says string
	}{
		{"a member's link", l.VPS2, []string{"relay", "--join", member, "--public", lab.VPS2Addr}, 6, "overlayd invite --relay"},
		{"no address", l.VPS2, []string{"relay", "--join", relay}, 2, "--public"},
		{"the first one's address", l.VPS2, []string{"relay", "--join", relay, "--public", lab.VPSAddr}, 8, "first relay"},
		{"an overlay of its own", l.VPS2, []string{"relay", "--join", relay, "--overlay", lab.Overlay}, 2, "leave out --overlay"},
		{"a laptop with a relay's link", l.VPS2, []string{"up", relay}, 2, "relay --join"},
		{"the coordinator itself", l.VPS, []string{"relay", "--join", relay, "--public", lab.VPSAddr}, 8, "port 443 is in use"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(ctx, labtest.Patience/4) // what is not refused runs
			defer cancel()
			_, err := c.m.Overlayd(ctx, append(c.args, "--state-dir", filepath.Join(l.Dir, fmt.Sprint("refused-", i)))...)
			if lab.ExitCode(err) != c.code || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "hint: ") {
				t.Errorf("want %d and %q: %v", c.code, c.says, err)
			}
		})
	}
}
