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

// mapped waits until the router has so many mappings.
func mapped(ctx context.Context, t *testing.T, router *lab.Machine, want int) {
	t.Helper()
	err := lab.Until(ctx, func(ctx context.Context) error {
		rules, err := router.Mappings(ctx)
		if err == nil && len(rules) != want {
			err = fmt.Errorf("%s maps %q, want %d", router.Name, rules, want)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Between two NATs through which no hole can be punched, a port that the lab's
// router maps makes the path direct. It comes back when the router was
// restarted, and is gone when the daemon is.
func TestPortMapping(t *testing.T) {
	labtest.Waits(t)
	ctx, l := labtest.New(t, lab.Options{Home: lab.Hard, Lab: lab.Hard, Overlayd: labtest.Overlayd(t)})
	router, err := l.MapPorts(ctx, l.LabNAT, lab.PortMapping{PMP: true, UPnP: true})
	if err != nil {
		t.Fatal(err)
	}
	j, err := l.Join(ctx)
	if err != nil {
		t.Fatal(err)
	}
	mapped(ctx, t, l.LabNAT, 1)
	pings := pinging(t, l.Laptop, lab.HostAddr)
	start := time.Now()
	path(ctx, t, l.Laptop, "lab-gw", "direct")
	path(ctx, t, l.Gateway, "laptop", "direct")
	t.Logf("direct after %v", time.Since(start).Round(time.Millisecond))
	waitFor(ctx, t, l.Gateway, func(s status) error {
		if m := s.PortMapping; m.Protocol != "pcp" || m.Reason != "" {
			return fmt.Errorf("the gateway's status says %+v", m)
		}
		return nil
	})
	waitFor(ctx, t, l.Laptop, func(s status) error {
		if m := s.PortMapping; m.Reason != "no_answer" {
			return fmt.Errorf("the laptop's status says %+v", m)
		}
		return nil
	})
	if lost, sent := pings.Lost(start, time.Now().Add(-time.Second)); lost > sent/50 {
		t.Errorf("%d of %d pings were lost", lost, sent)
	}

	if err := router.Stop(); err != nil {
		t.Logf("miniupnpd ended: %v", err)
	}
	if _, err = l.MapPorts(ctx, l.LabNAT, lab.PortMapping{PMP: true, UPnP: true}); err != nil {
		t.Fatal(err)
	}
	restarted := time.Now()
	mapped(ctx, t, l.LabNAT, 1)
	t.Logf("made anew %v after the restart", time.Since(restarted).Round(time.Millisecond))

	stopped := time.Now()
	if err := j.Gateway.Stop(); err != nil {
		t.Fatal(err)
	}
	took := time.Since(stopped)
	t.Logf("the gateway stopped after %v", took.Round(time.Millisecond))
	if rules, err := l.LabNAT.Mappings(ctx); err != nil || len(rules) != 0 {
		t.Errorf("after the end of overlayd, %v: %q", err, rules)
	}
}
