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

// status is what the tests want of `overlayd status --json`.
type status struct {
	State   string `json:"state"`
	Network struct {
		Control struct {
			State string `json:"state"`
		} `json:"control"`
	} `json:"network"`
	PortMapping struct {
		Protocol string `json:"protocol"`
		External string `json:"external"`
		Reason   string `json:"reason"`
		Detail   string `json:"detail"`
	} `json:"port_mapping"`
	Peers []struct {
		Name   string `json:"name"`
		Online bool   `json:"online"`
		Path   struct {
			Kind      string `json:"kind"`
			Transport string `json:"transport"`
			Endpoint  string `json:"endpoint"`
			Reason    string `json:"reason"`
			MTU       int    `json:"mtu_bytes"` // null is 0
		} `json:"path"`
	} `json:"peers"`
	Routes []struct {
		Prefix string `json:"prefix"`
		Via    string `json:"via"`
		State  string `json:"state"`
		Reason string `json:"reason"`
	} `json:"routes"`
	Health []struct {
		ID    string `json:"id"`
		Title string `json:"title"`
		Fix   string `json:"fix"`
	} `json:"health"`
}

func statusOf(ctx context.Context, m *lab.Machine) (s status, err error) {
	out, err := m.Overlayd(ctx, "status", "--json")
	if err != nil && lab.ExitCode(err) != exitDegraded {
		return s, err
	}
	return s, json.Unmarshal([]byte(out), &s)
}

// exitDegraded is the exit code of `overlayd status` on a node that runs with
// something wrong.
const exitDegraded = 5

// waitFor waits until the machine's status is as wanted; wrong says why not yet.
func waitFor(ctx context.Context, t *testing.T, m *lab.Machine, wrong func(status) error) {
	t.Helper()
	err := lab.Until(ctx, func(ctx context.Context) error {
		s, err := statusOf(ctx, m)
		if err != nil {
			return err
		}
		return wrong(s)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func control(want string) func(status) error {
	return func(s status) error {
		if got := s.Network.Control.State; got != want {
			return fmt.Errorf("control is %s, want %s", got, want)
		}
		return nil
	}
}

// The coordinator cannot be reached: traffic goes on, and machines that are
// restarted meanwhile come back with what they knew.
func TestTheCoordinatorIsAway(t *testing.T) {
	labtest.Waits(t)
	ctx, l, j := labtest.Joined(t, lab.Options{Home: lab.Hard, Lab: lab.Hard})
	all := daemons(l, j)
	pings := pinging(t, l.Laptop, lab.HostAddr)
	pings.back(ctx, t, time.Now())

	blocked := time.Now()
	labtest.Run(ctx, t, l.VPS, "iptables", "-w", "-I", "INPUT", "-i", "eth0", "-p", "tcp", "--dport", "443", "-j", "DROP")
	waitFor(ctx, t, l.Laptop, control("lost"))
	waitFor(ctx, t, l.Gateway, control("lost"))
	pings.back(ctx, t, time.Now())
	if lost, sent := pings.Lost(blocked, time.Now().Add(-time.Second)); lost > sent/100 {
		t.Errorf("while the coordinator could not be reached, %d of %d pings were lost", lost, sent)
	}
	for _, name := range []string{"laptop", "gateway", "laptop"} {
		all[name].process.Kill()
		at, _ := all[name].start(ctx, t, l)
		back := pings.back(ctx, t, at)
		t.Logf("%s restarted without a coordinator: traffic back after %v", name, back.Round(time.Millisecond))
		if back > healsWithin {
			t.Errorf("%s restarted without a coordinator: traffic back after %v", name, back)
		}
	}

	// Now the relay is gone as well; the others are stopped in order and
	// started again before it is back.
	all["relay"].process.Kill()
	for _, name := range []string{"laptop", "gateway"} {
		if err := all[name].process.Stop(); err != nil {
			t.Fatal(err)
		}
		all[name].start(ctx, t, l)
	}
	at, _ := all["relay"].start(ctx, t, l)
	back := pings.back(ctx, t, at)
	t.Logf("relay restarted: traffic back after %v", back.Round(time.Millisecond))
	if back > healsWithin {
		t.Errorf("relay restarted: traffic back after %v", back)
	}
	labtest.Run(ctx, t, l.VPS, "iptables", "-w", "-D", "INPUT", "-i", "eth0", "-p", "tcp", "--dport", "443", "-j", "DROP")
	waitFor(ctx, t, l.Laptop, control("connected"))
	waitFor(ctx, t, l.Gateway, control("connected"))
}

// The laptop's way to the coordinator is cut, but not that to the relay: so
// nobody tells it that the gateway was restarted, nor the gateway that it is
// there. They find out from each other's packets.
func TestRestartedUnheard(t *testing.T) {
	for _, name := range []string{"gateway", "laptop"} {
		t.Run(name, func(t *testing.T) {
			ctx, l, j := labtest.Joined(t, lab.Options{})
			pings := pinging(t, l.Laptop, lab.HostAddr)
			pings.back(ctx, t, time.Now())
			// The coordinator is told to go away, so that nobody has to wait for
			// its silence; the laptop's own tries end in nothing.
			labtest.Run(ctx, t, l.Laptop, "iptables", "-w", "-A", "INPUT", "-p", "tcp", "--sport", "443",
				"-j", "REJECT", "--reject-with", "tcp-reset")
			waitFor(ctx, t, l.Gateway, func(s status) error {
				for _, p := range s.Peers {
					if p.Name == "laptop" && !p.Online {
						return nil
					}
				}
				return fmt.Errorf("the laptop does not count as offline: %+v", s.Peers)
			})
			pings.back(ctx, t, time.Now())
			d := daemons(l, j)[name]
			// The map is cached some two seconds later at most.
			if err := d.process.Stop(); err != nil {
				t.Fatal(err)
			}
			at, _ := d.start(ctx, t, l)
			back := pings.back(ctx, t, at)
			t.Logf("traffic back after %v", back.Round(time.Millisecond))
			if back > healsWithin {
				t.Errorf("traffic was back %v after the restart", back)
			}
		})
	}
}
