//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"

	"overlayd/examples/lab"
)

// system is one way from the laptop to a goal, in a lab of its own.
type system interface {
	name() string
	goal() string                                   // the address that everything is sent to
	open(ctx context.Context, noOffload bool) error // makes the lab and what is done once; close undoes it, also after a failure
	serve(ctx context.Context) error                // brings up what the laptop's end talks to
	far() *lab.Machine                              // from which the goal is reached without the laptop's end; nil: none
	connect(ctx context.Context) error              // starts the laptop's end; the way need not be there yet on return
	settle(ctx context.Context) error               // waits until the way is the one that is to be measured
	daemons() map[string]*lab.Process               // client, relay, gateway; none where the kernel does it all
	stop() error                                    // ends what serve and connect began
	machines() *lab.Lab
	close() error
}

// section is a set of systems that are measured side by side.
type section struct {
	name    string
	systems []func(settings) system
	without []string // probes that are not for it
}

var sections = []section{
	{"relayed", []func(settings) system{
		func(s settings) system { return relayed(s) },
		func(s settings) system { return &hub{wireguard: wireguard{binary: s.wireguard}} },
		func(settings) system { return &floor{} },
	}, []string{inForce}},
	{"direct", []func(settings) system{
		func(s settings) system { return direct(s) },
		func(s settings) system { return &pair{wireguard: wireguard{binary: s.wireguard}} },
	}, []string{inForce}},
	{"tls", []func(settings) system{
		func(s settings) system { return byTLS(s) },
		func(s settings) system { return byUDP(s) },
	}, []string{inForce}},
	{"filter", []func(settings) system{
		func(s settings) system { return bare(s, noFilter) },
		func(s settings) system { return held(s, oneRule, 1) },
		func(s settings) system { return crowded(bare(s, noFilterCrowd)) },
		func(s settings) system { return crowded(held(s, manyRules, 10000)) },
	}, []string{"idle", "load"}},
}

// world is what every system has: the lab, and its processes by role.
type world struct {
	lab     *lab.Lab
	to      string
	running map[string]*lab.Process
}

func (w *world) machines() *lab.Lab               { return w.lab }
func (w *world) goal() string                     { return w.to }
func (w *world) daemons() map[string]*lab.Process { return w.running }
func (w *world) far() *lab.Machine                { return nil }
func (w *world) settle(context.Context) error     { return nil }

// begin makes the lab and the server that every measurement talks to.
func (w *world) begin(ctx context.Context, o lab.Options, goal string) error {
	l, err := lab.New(ctx, o)
	if err != nil {
		return err
	}
	w.lab, w.to, w.running = l, goal, map[string]*lab.Process{}
	if goal == lab.GatewayOverlay {
		return serveIperf(ctx, l.Gateway)
	}
	return serveIperf(ctx, l.Host)
}

// stop ends the daemons, the laptop's first, so that nobody talks to a void.
func (w *world) stop() error {
	var errs []error
	for _, role := range roles {
		if p, ok := w.running[role]; ok {
			if err := p.Stop(); err != nil {
				errs = append(errs, fmt.Errorf("stop the %s: %w: %s", role, err, p.Tail()))
			}
		}
	}
	clear(w.running)
	return errors.Join(errs...)
}

func (w *world) close() error {
	if w.lab == nil {
		return nil
	}
	return w.lab.Close()
}

// roles are the daemons of a system, in the order of the report.
var roles = []string{"client", "relay", "gateway"}
