//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"

	"overlayd/examples/lab"
)

// system is one way from the laptop to the LAN host, in a lab of its own.
type system interface {
	name() string
	open(ctx context.Context, noOffload bool) error // makes the lab and what is done once; close undoes it, also after a failure
	serve(ctx context.Context) error                // brings up the VPS's and the gateway's end
	connect(ctx context.Context) error              // starts the laptop's end; the way need not be there yet on return
	daemons() map[string]*lab.Process               // client, relay, gateway; none where the kernel does it all
	stop() error                                    // ends what serve and connect began
	machines() *lab.Lab
	close() error
}

func newSystem(name string, s settings) (system, error) {
	switch name {
	case "overlayd":
		return &overlaid{binary: s.overlayd}, nil
	case "hub":
		return &hub{binary: s.wireguard}, nil
	case "floor":
		return &floor{}, nil
	}
	return nil, fmt.Errorf("no system %q: overlayd, hub or floor", name)
}

// world is what every system has: the lab, and its processes by role.
type world struct {
	lab     *lab.Lab
	running map[string]*lab.Process
}

func (w *world) machines() *lab.Lab               { return w.lab }
func (w *world) daemons() map[string]*lab.Process { return w.running }

// begin makes the lab and the server that every measurement talks to.
func (w *world) begin(ctx context.Context, o lab.Options) error {
	l, err := lab.New(ctx, o)
	if err != nil {
		return err
	}
	w.lab, w.running = l, map[string]*lab.Process{}
	return serveIperf(ctx, l)
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
