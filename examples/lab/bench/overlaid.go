//go:build linux

package main

import (
	"context"

	"overlayd/examples/lab"
)

// overlaid is overlayd, relayed: both NATs are hard, so there is no direct path.
type overlaid struct {
	world
	binary string
}

func (*overlaid) name() string { return "overlayd" }

// open enrols all three once; the rounds then start enrolled machines.
func (o *overlaid) open(ctx context.Context, noOffload bool) error {
	err := o.begin(ctx, lab.Options{Home: lab.Hard, Lab: lab.Hard, NoOffload: noOffload, Overlayd: o.binary})
	if err != nil {
		return err
	}
	j, err := o.lab.Join(ctx)
	if err != nil {
		return err
	}
	o.running = map[string]*lab.Process{"client": j.Laptop, "relay": j.Relay, "gateway": j.Gateway}
	return o.stop()
}

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
