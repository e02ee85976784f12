//go:build linux

package lab_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"overlayd/examples/lab"
	"overlayd/examples/lab/labtest"
)

const (
	// lossLeftWithin is how soon a path that loses a fifth is left: it takes a
	// hundred datagrams to see it, and twice a hundred to compare it with the
	// relay. lossBackWithin is how soon it is used again when it is well: it is
	// weighed again after 15 s at most, or 30 s if that was done in vain once.
	lossLeftWithin = 30 * time.Second
	lossBackWithin = 60 * time.Second
)

// lossy makes a machine lose a share of the UDP that it forwards from one
// address to another ("": all), or takes that back.
func lossy(ctx context.Context, t *testing.T, m *lab.Machine, change, from, to string) {
	t.Helper()
	rule := []string{"-w", change, "FORWARD", "-p", "udp"}
	if from != "" {
		rule = append(rule, "-s", from, "-d", to)
	}
	labtest.Run(ctx, t, m, "iptables", append(rule, "-m", "statistic", "--mode", "random", "--probability", "0.2", "-j", "DROP")...)
}

// A direct path that loses a fifth is left for the relay, which loses nothing,
// and used again when it is well; where the relay's way loses as much, as behind
// a bad wireless link, the direct path stays.
func TestLossyPath(t *testing.T) {
	labtest.Waits(t)
	ctx, l, _ := labtest.JoinedFor(t, 2*time.Minute, lab.Options{})
	pings := pinging(t, l.Laptop, lab.HostAddr)
	pings.back(ctx, t, time.Now())
	path(ctx, t, l.Laptop, "lab-gw", "direct")
	path(ctx, t, l.Gateway, "laptop", "direct")

	// All that leaves the home loses a fifth, whichever way it goes.
	lossy(ctx, t, l.HomeNAT, "-I", "", "")
	for end := time.Now().Add(12 * time.Second); time.Now().Before(end); {
		s, err := statusOf(ctx, l.Laptop)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range s.Peers {
			if p.Path.Reason == "lossy" {
				t.Fatalf("the path to %s was left, though the relay's is no better: %+v", p.Name, p.Path)
			}
		}
		labtest.Run(ctx, t, l.Laptop, "sleep", "0.5")
	}
	lossy(ctx, t, l.HomeNAT, "-D", "", "")
	path(ctx, t, l.Laptop, "lab-gw", "direct")
	path(ctx, t, l.Gateway, "laptop", "direct")

	directly := func(change string) {
		lossy(ctx, t, l.Internet, change, lab.HomePublic, lab.LabPublic)
		lossy(ctx, t, l.Internet, change, lab.LabPublic, lab.HomePublic)
	}
	at := time.Now()
	directly("-I")
	for _, c := range []struct {
		m    *lab.Machine
		peer string
	}{{l.Laptop, "lab-gw"}, {l.Gateway, "laptop"}} {
		err := lab.Until(ctx, func(ctx context.Context) error {
			if reason := path(ctx, t, c.m, c.peer, "relay"); reason != "lossy" {
				return fmt.Errorf("the reason on %s is %q", c.m.Name, reason)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	left := time.Since(at)
	t.Logf("a fifth is lost: left after %v", left.Round(time.Millisecond))
	if left > lossLeftWithin {
		t.Errorf("left after %v", left)
	}
	// On the relay, and while the path is weighed again, next to nothing is lost.
	calm := time.Now()
	labtest.Run(ctx, t, l.Laptop, "sleep", "3")
	if lost, sent := pings.Lost(calm, time.Now().Add(-time.Second)); lost > max(1, sent/50) {
		t.Errorf("on the relay %d of %d pings were lost", lost, sent)
	}
	directly("-D")
	at = time.Now()
	path(ctx, t, l.Laptop, "lab-gw", "direct")
	path(ctx, t, l.Gateway, "laptop", "direct")
	back := time.Since(at)
	t.Logf("nothing is lost any more: direct after %v", back.Round(time.Millisecond))
	if back > lossBackWithin {
		t.Errorf("direct after %v", back)
	}
}
