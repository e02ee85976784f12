//go:build linux

package main

import (
	"context"
	"fmt"

	"overlayd/examples/lab"
	"overlayd/overlay"
)

// overlaid is overlayd on all three machines. The NATs decide which way its
// packets go, and its own status has to agree.
type overlaid struct {
	world
	title           string
	options         lab.Options
	aim             string // the goal
	policy          string
	kind, transport string // of the path between laptop and gateway, on the laptop
}

// relayed: both NATs are hard, so there is no direct path.
func relayed(s settings) *overlaid {
	return &overlaid{title: "overlayd", options: lab.Options{Home: lab.Hard, Lab: lab.Hard, Overlayd: s.overlayd},
		aim: lab.HostAddr, policy: everything, kind: "relay", transport: "udp"}
}

// direct: between two cones a hole is punched. The goal is the gateway itself,
// so that nothing but the two daemons is between it and the laptop.
func direct(s settings) *overlaid {
	return &overlaid{title: "overlayd-direct", options: lab.Options{Overlayd: s.overlayd},
		aim: lab.GatewayOverlay, policy: everything, kind: "direct", transport: "udp"}
}

// byTLS: the laptop's network lets no UDP through.
func byTLS(s settings) *overlaid {
	o := relayed(s)
	o.title, o.options.Home, o.transport = "overlayd-tls", lab.NoUDP, "tls"
	return o
}

// byUDP is relayed, under the name that it has beside byTLS.
func byUDP(s settings) *overlaid {
	o := relayed(s)
	o.title = "overlayd-udp"
	return o
}

// byTwo is relayed, with a second relay on another VPS.
func byTwo(s settings) *overlaid {
	o := relayed(s)
	o.title, o.options.SecondVPS = "overlayd-two", true
	return o
}

func (o *overlaid) name() string { return o.title }

// open enrols all three once; the rounds then start enrolled machines.
func (o *overlaid) open(ctx context.Context, noOffload bool) error {
	o.options.NoOffload = noOffload
	if err := o.begin(ctx, o.options, o.aim); err != nil {
		return err
	}
	j, err := o.lab.Join(ctx)
	if err != nil {
		return err
	}
	o.running = map[string]*lab.Process{"client": j.Laptop, "relay": j.Relay, "gateway": j.Gateway}
	c := overlay.Dial(o.lab.VPS.Socket())
	defer c.Close()
	if _, err := c.Admin().ApplyPolicy(ctx, o.policy); err != nil {
		return err
	}
	return o.stop()
}

// everything is a policy of one rule. The default one does not let members reach
// the gateway itself, which direct aims at.
const everything = "rules: [{name: everything, src: \"*\", dst: \"*\"}]\n"

func (o *overlaid) serve(ctx context.Context) (err error) {
	if o.running["relay"], err = o.lab.VPS.Serve(ctx, lab.RelayArgs...); err != nil {
		return err
	}
	o.running["gateway"], err = o.lab.Gateway.Serve(ctx, "gateway")
	return err
}

func (o *overlaid) connect(context.Context) (err error) {
	o.running["client"], err = o.lab.Laptop.Start(o.lab.Options.Overlayd, "up")
	return err
}

// far is the VPS: the half of the way from there stands before the laptop's end.
func (o *overlaid) far() *lab.Machine { return o.lab.VPS }

// settle keeps asking for echoes: only who talks is looked for a path.
func (o *overlaid) settle(ctx context.Context) error {
	for m, peer := range map[*lab.Machine]string{o.lab.Laptop: "lab-gw", o.lab.Gateway: "laptop"} {
		transport := o.transport
		if transport == "tls" && m == o.lab.Gateway {
			transport = "udp" // nothing is blocked there
		}
		err := lab.Until(ctx, func(ctx context.Context) error {
			if _, err := firstEcho(ctx, o.lab.Laptop, o.aim); err != nil {
				return err
			}
			p, err := pathTo(ctx, m, peer)
			if err == nil && (p.Kind != o.kind || p.Transport != transport) {
				err = fmt.Errorf("%s reaches %s by %+v, not by %s over %s", m.Name, peer, p, o.kind, transport)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// pathTo asks the machine's overlayd how it reaches a peer.
func pathTo(ctx context.Context, m *lab.Machine, peer string) (overlay.StatusPath, error) {
	s, err := statusOf(ctx, m)
	if err != nil {
		return overlay.StatusPath{}, err
	}
	for _, p := range s.Peers {
		if p.Name == peer {
			return p.Path, nil
		}
	}
	return overlay.StatusPath{}, fmt.Errorf("%s does not know %s", m.Name, peer)
}

// statusOf asks the machine's overlayd for its status.
func statusOf(ctx context.Context, m *lab.Machine) (overlay.Status, error) {
	c := overlay.Dial(m.Socket())
	defer c.Close()
	return c.Status(ctx)
}
