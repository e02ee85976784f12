//go:build linux

package lab_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"overlayd/examples/lab"
	"overlayd/overlay/coord"
)

// Alice is revoked while the gateway is away, then the coordinator dies. The
// second relay remembers the revocation, and the gateway asks it before it serves
// anybody: neither alice's old map nor the gateway's lets her in, while bob comes
// and goes.
func TestRevokedWhileAway(t *testing.T) {
	ctx, c := newCompany(t, lab.Options{SecondVPS: true})
	services(t, c.Host)
	must[*lab.Process](t)(c.JoinRelay(ctx))
	for _, m := range []*lab.Machine{c.Laptop, c.Internet, c.Gateway} {
		waitRelays(ctx, t, m, "vps up, vps2 up", "")
	}
	waitRelays(ctx, t, c.VPS2, "vps up, vps2 own", "")
	for _, m := range []*lab.Machine{c.Laptop, c.Internet} {
		if err := reaches(ctx, m, "tcp4", "192.168.1.201:22"); err != nil {
			t.Fatalf("%s: %v", m.Name, err)
		}
	}
	knows := func(m *lab.Machine, label string, want bool) {
		t.Helper()
		err := lab.Until(ctx, func(ctx context.Context) error {
			if _, err := m.Overlayd(ctx, "status", "--check", "live"); err != nil {
				return err // a plan without a daemon is of what is on disk
			}
			plan, err := m.Overlayd(ctx, "plan")
			if err == nil && strings.Contains(plan, "peer "+label+" ") != want {
				err = fmt.Errorf("%s: %s among its peers: want %v\n%s", m.Name, label, want, plan)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range []*lab.Machine{c.Gateway, c.Laptop} { // what they will begin with
		err := lab.Until(ctx, func(context.Context) error {
			b, err := os.ReadFile(filepath.Join(m.StateDir(), "map.pb"))
			if err == nil && (!strings.Contains(string(b), "vps2") || m == c.Gateway && !strings.Contains(string(b), "alice-1")) {
				err = fmt.Errorf("%s has not saved its map yet", m.Name)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}

	c.gateway.Kill()
	c.alice.Kill() // who knows what she did with her files
	r := must[coord.Revoked](t)(c.admin.Revoke(ctx, "user:alice"))
	if i := slices.IndexFunc(r.Nodes, func(a coord.Ack) bool { return a.Node == "lab-gw" }); i < 0 || r.Nodes[i].Applied || r.Nodes[i].Online {
		t.Errorf("the gateway is away, and the revocation says %+v", r.Nodes)
	}
	c.relay.Kill()

	c.gateway = must[*lab.Process](t)(c.Gateway.Start(c.Options.Overlayd, "gateway"))
	knows(c.Gateway, "bob-1", true)
	log := must[[]byte](t)(os.ReadFile(c.gateway.Log))
	if !strings.Contains(string(log), "taken access away meanwhile") {
		t.Errorf("the gateway serves, and has not heard of the revocation:\n%s", c.gateway.Tail())
	}
	knows(c.Gateway, "alice-1", false)
	c.alice = must[*lab.Process](t)(c.Laptop.Start(c.Options.Overlayd, "up"))
	knows(c.Laptop, "lab-gw", true) // by what she has on disk
	err := lab.Until(ctx, func(ctx context.Context) error { return reaches(ctx, c.Internet, "tcp4", "192.168.1.201:22") })
	if err != nil {
		t.Errorf("bob: %v", err)
	}
	if err := reaches(ctx, c.Laptop, "tcp4", "192.168.1.201:22"); err == nil {
		t.Error("alice is back in")
	}

	// The relay's word outlives the gateway's next restart without it.
	c.gateway.Kill()
	must[string](t)(c.VPS2.Overlayd(ctx, "down"))
	c.gateway = must[*lab.Process](t)(c.Gateway.Start(c.Options.Overlayd, "gateway"))
	knows(c.Gateway, "bob-1", true)
	knows(c.Gateway, "alice-1", false)
}
