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

// shownReason waits until both status and peers, as a person reads it, give the
// reason why a path is not direct.
func shownReason(ctx context.Context, t *testing.T, m *lab.Machine, peer, reason, words string) {
	t.Helper()
	err := lab.Until(ctx, func(ctx context.Context) error {
		if got := path(ctx, t, m, peer, "relay"); got != reason {
			return fmt.Errorf("the reason on %s is %q, want %q", m.Name, got, reason)
		}
		out, err := m.Overlayd(ctx, "peers")
		if err == nil && !strings.Contains(out, words) {
			err = fmt.Errorf("peers on %s does not say %q:\n%s", m.Name, words, out)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A direct path that loses all that is long is left for the relay, and the
// reason is mtu; a machine that is stopped is peer_offline.
func TestReasons(t *testing.T) {
	labtest.Waits(t)
	ctx, l, _ := labtest.JoinedFor(t, 2*time.Minute, lab.Options{})
	tcp, _ := echoServers(t, l.Host)
	data := streaming(ctx, t, l.Laptop, tcp)
	data.flows(ctx, t, time.Now())
	path(ctx, t, l.Laptop, "lab-gw", "direct")
	path(ctx, t, l.Gateway, "laptop", "direct")

	for _, way := range [][2]string{{lab.HomePublic, lab.LabPublic}, {lab.LabPublic, lab.HomePublic}} {
		labtest.Run(ctx, t, l.Internet, "iptables", "-w", "-I", "FORWARD", "-p", "udp", "-s", way[0], "-d", way[1],
			"-m", "length", "--length", "300:65535", "-j", "DROP")
	}
	at := time.Now()
	shownReason(ctx, t, l.Laptop, "lab-gw", "mtu", "loses large packets")
	shownReason(ctx, t, l.Gateway, "laptop", "mtu", "loses large packets")
	t.Logf("nothing long passes directly: said after %v", time.Since(at).Round(time.Millisecond))
	data.flows(ctx, t, time.Now())

	if _, err := l.Gateway.Overlayd(ctx, "down"); err != nil {
		t.Fatal(err)
	}
	shownReason(ctx, t, l.Laptop, "lab-gw", "peer_offline", "offline")
}
