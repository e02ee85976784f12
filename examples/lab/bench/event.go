//go:build linux

package main

import (
	"context"
	"time"

	"overlayd/examples/lab"
)

// event is something that happens while packets flow.
type event struct {
	name   string
	what   string // in words, for the table
	on     func(settings) *overlaid
	target time.Duration // at most; negative: none is set

	before func(context.Context, *scene, recovery) error // what precedes the event and is not timed; nil: nothing
	do     func(context.Context, *scene) error           // the clock runs from its beginning
	// until ends the clock; nil: the first of ten echoes in a row, all asked
	// for after do.
	until func(context.Context, *scene) error
	// harmless: nothing is to be lost. Watched for a while, and what counts is
	// the longest time in which no request was answered.
	harmless bool
	undo     func(context.Context, *scene) error // makes the world as it was; nil: it is
}

// noTarget: no figure was promised.
const noTarget = time.Duration(-1)

// events lists all of them. Those at home happen to the laptop's side.
var events = []event{
	{name: "cold-start", what: "the laptop starts, relayed", on: relayed, target: 200 * time.Millisecond,
		before: stopped("client"), do: started("client")},
	{name: "start-to-direct", what: "the laptop starts: direct", on: direct, target: time.Second,
		before: stopped("client"), do: started("client"), until: isBy("direct", "udp")},

	{name: "roam-address", what: "the laptop's address changes, direct", on: direct, target: time.Second, do: roam},
	{name: "roam-address-relayed", what: "the laptop's address changes, relayed", on: relayed, target: time.Second, do: roam},
	{name: "roam-public", what: "the NAT's public address changes, direct", on: direct, target: time.Second, do: renumber},
	{name: "roam-public-relayed", what: "the NAT's public address changes, relayed", on: relayed, target: time.Second, do: renumber},
	{name: "mapping", what: "the NAT maps to another port, direct", on: direct, target: time.Second, do: remap},
	{name: "mapping-relayed", what: "the NAT maps to another port, relayed", on: relayed, target: time.Second, do: remap},

	{name: "udp-blocked", what: "UDP is blocked, direct before", on: direct, target: 3 * time.Second, do: blocked, undo: unblocked},
	{name: "udp-blocked-relayed", what: "UDP is blocked, relayed before", on: relayed, target: 3 * time.Second, do: blocked, undo: unblocked},
	{name: "udp-back", what: "UDP passes again: used", on: relayed, target: noTarget,
		before: byTLSOnly, do: passes, until: isBy("relay", "udp"), undo: again("client")},

	{name: "relay-restart", what: "the relay is killed and started", on: relayed, target: time.Second, do: killed("relay")},
	{name: "relay-of-two", what: "the one in use of two relays is killed", on: byTwo, target: 3 * time.Second,
		before: inUse, do: losesRelay, undo: regainsRelay},
	{name: "relay-of-two-cut", what: "the one in use of two relays is cut off", on: byTwo, target: 3 * time.Second,
		before: inUse, do: cutsRelay("-I"), undo: cutsRelay("-D")},
	{name: "coordinator-killed", what: "the coordinator's machine is killed, direct", on: direct, target: 0, harmless: true,
		do: gone("relay"), undo: started("relay")},
	{name: "coordinator-cut", what: "the coordinator does not answer, relayed", on: relayed, target: 0, harmless: true,
		do: unheard, undo: heard},
	{name: "gateway-restart", what: "the gateway is killed and started, direct", on: direct, target: time.Second, do: killed("gateway")},
	{name: "gateway-restart-relayed", what: "the gateway is killed and started, relayed", on: relayed, target: time.Second, do: killed("gateway")},

	{name: "suspend", what: "the laptop wakes from a sleep, direct", on: direct, target: 2 * time.Second, before: asleep, do: awake},
	{name: "suspend-relayed", what: "the laptop wakes from a sleep, relayed", on: relayed, target: 2 * time.Second, before: asleep, do: awake},
}

func stopped(role string) func(context.Context, *scene, recovery) error {
	return func(_ context.Context, s *scene, _ recovery) error { return s.end(role) }
}

func started(role string) func(context.Context, *scene) error {
	return func(_ context.Context, s *scene) error { return s.start(role) }
}

func gone(role string) func(context.Context, *scene) error {
	return func(_ context.Context, s *scene) error { s.kill(role); return nil }
}

func killed(role string) func(context.Context, *scene) error {
	return func(_ context.Context, s *scene) error { s.kill(role); return s.start(role) }
}

// again restarts a daemon in order, so that it remembers nothing of the round.
func again(role string) func(context.Context, *scene) error {
	return func(_ context.Context, s *scene) error {
		if err := s.end(role); err != nil {
			return err
		}
		return s.start(role)
	}
}

func isBy(kind, transport string) func(context.Context, *scene) error {
	return func(ctx context.Context, s *scene) error { return s.laptopBy(ctx, kind, transport) }
}

// roam gives the laptop another address, as another Wi-Fi behind the same router does.
func roam(ctx context.Context, s *scene) error {
	return say(ctx, s.lab.Laptop, "ip addr flush dev eth0; ip addr add 10.0.77.%d/24 dev eth0; ip route add default via 10.0.77.1", 2+s.round%2)
}

// renumber gives the home NAT another public address. The kernel forgets the
// mappings of the old one, as a router that was given a new lease does.
func renumber(ctx context.Context, s *scene) error {
	return say(ctx, s.lab.HomeNAT, "ip addr flush dev eth0; ip addr add 198.51.100.%d/24 dev eth0; ip route add default via 198.51.100.1", 2+s.round%2)
}

// remap makes the home NAT forget all UDP, and map it to other ports from now
// on: a cone to one, whoever is asked.
func remap(ctx context.Context, s *scene) error {
	if s.options.Home == lab.Hard { // any port is another one
		return say(ctx, s.lab.HomeNAT, "conntrack -D -p udp")
	}
	const rule = "POSTROUTING -t nat -o eth0 -p udp -j MASQUERADE --to-ports"
	script := "iptables -w -I %[1]s %[3]d; conntrack -D -p udp"
	if s.round > 1 {
		script = "iptables -w -D %[1]s %[2]d; " + script
	}
	return say(ctx, s.lab.HomeNAT, script, rule, 20000+s.round-1, 20000+s.round)
}

func blocked(ctx context.Context, s *scene) error { return s.lab.HomeNAT.BlockUDP(ctx) }
func passes(ctx context.Context, s *scene) error  { return s.lab.HomeNAT.PassUDP(ctx) }

// unblocked lets UDP pass, and changes an address that nobody uses: the laptop
// need not find out by itself.
func unblocked(ctx context.Context, s *scene) error {
	if err := passes(ctx, s); err != nil {
		return err
	}
	return say(ctx, s.lab.Laptop, "ip addr add 10.254.254.254/32 dev eth0; ip addr del 10.254.254.254/32 dev eth0")
}

func byTLSOnly(ctx context.Context, s *scene, _ recovery) error {
	if err := blocked(ctx, s); err != nil {
		return err
	}
	return s.laptopBy(ctx, "relay", "tls")
}

// unheard makes the coordinator's port silent, and leaves the relay's.
func unheard(ctx context.Context, s *scene) error {
	return say(ctx, s.lab.VPS, "iptables -w -I INPUT -i eth0 -p tcp --dport 443 -j DROP")
}

func heard(ctx context.Context, s *scene) error {
	return say(ctx, s.lab.VPS, "iptables -w -D INPUT -i eth0 -p tcp --dport 443 -j DROP")
}

// inUse finds out by which relay the packets go.
func inUse(ctx context.Context, s *scene, _ recovery) error {
	p, err := pathTo(ctx, s.lab.Laptop, "lab-gw")
	s.used = "relay"
	if p.Relay == "vps2" {
		s.used = "second"
	}
	return err
}

func losesRelay(ctx context.Context, s *scene) error   { return gone(s.used)(ctx, s) }
func regainsRelay(ctx context.Context, s *scene) error { return started(s.used)(ctx, s) }

// cutsRelay makes the relay's machine hear nothing: nobody says that it is gone.
func cutsRelay(change string) func(context.Context, *scene) error {
	return func(ctx context.Context, s *scene) error {
		m, _ := s.who(s.used)
		return say(ctx, m, "iptables -w %s INPUT -i eth0 -j DROP", change)
	}
}

func asleep(ctx context.Context, s *scene, r recovery) error {
	s.frozen = lab.NewFreezer(s.running["client"])
	if err := s.frozen.Freeze(ctx); err != nil {
		return err
	}
	return pause(ctx, r.sleep)
}

func awake(_ context.Context, s *scene) error {
	f := s.frozen
	s.frozen = nil
	return f.Close()
}
