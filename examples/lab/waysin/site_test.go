//go:build linux

package waysin_test

import (
	"context"
	"testing"
	"time"

	"overlayd/examples/lab"
	"overlayd/examples/lab/labtest"
	"overlayd/overlay"
	"overlayd/overlay/coord"
)

// endsWithin is how soon what was taken away ends: a second is promised.
const endsWithin = time.Second

// sitePolicy lets alice have one port of one host, and bob everything.
const sitePolicy = `
hosts: {nas: 192.168.1.201}
rules:
  - {name: alice-ssh, src: user:alice, dst: nas, ports: tcp/22}
  - {name: admins, src: user:bob, dst: "*"}
  - {name: relay-web, src: "node:vps", dst: nas, ports: [tcp/80, tcp/81, udp/53]}
`

// site is a relay and a gateway, with alice and bob, of whom neither has a
// machine.
type site struct {
	*lab.Lab
	admin          *coord.Admin
	relay, gateway *lab.Process
}

func newSite(t *testing.T, o lab.Options, relayArgs ...string) (context.Context, *site) {
	t.Helper()
	labtest.NeedRoot(t)
	o.Overlayd = labtest.Overlayd(t)
	ctx, l := labtest.New(t, o)
	s := &site{Lab: l}
	s.relay = s.serve(ctx, t, l.VPS, append(append([]string{}, lab.RelayArgs...), relayArgs...)...)
	socket := overlay.Dial(l.VPS.Socket())
	t.Cleanup(socket.Close)
	s.admin = socket.Admin()
	for _, name := range []string{"alice", "bob"} {
		must[coord.User](t)(s.admin.AddUser(ctx, name, nil, nil))
	}
	must[coord.PolicyChange](t)(s.admin.ApplyPolicy(ctx, sitePolicy))
	link := must[string](t)(l.VPS.Overlayd(ctx, lab.GatewayInvite...))
	s.gateway = s.serve(ctx, t, l.Gateway, "gateway", link)
	return ctx, s
}

func (s *site) serve(ctx context.Context, t *testing.T, m *lab.Machine, args ...string) *lab.Process {
	t.Helper()
	return must[*lab.Process](t)(m.Serve(ctx, args...))
}
