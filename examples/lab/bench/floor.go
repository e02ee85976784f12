//go:build linux

package main

import (
	"context"

	"overlayd/examples/lab"
)

// floor is plain routing over the same hops, laptop, VPS, gateway, LAN host,
// in the clear, with the gateway's MASQUERADE: what the kernel and the wires
// cost before anybody encrypts.
type floor struct{ world }

func (*floor) name() string { return "floor" }

func (f *floor) open(ctx context.Context, noOffload bool) error {
	if err := f.begin(ctx, lab.Options{Home: lab.Routed, Lab: lab.Routed, NoOffload: noOffload}, lab.HostAddr); err != nil {
		return err
	}
	const home = "10.0.77.0/24"
	l := f.lab
	for _, c := range []struct {
		m    *lab.Machine
		args []string
	}{
		// What comes from either side goes to the VPS first, and on from there.
		{l.Internet, []string{"ip", "rule", "add", "iif", "home", "to", lab.LAN, "lookup", "100"}},
		{l.Internet, []string{"ip", "rule", "add", "iif", "lab", "to", home, "lookup", "100"}},
		{l.Internet, []string{"ip", "route", "add", "default", "via", lab.VPSAddr, "table", "100"}},
		{l.Internet, []string{"ip", "route", "add", lab.LAN, "via", lab.LabPublic}},
		{l.Internet, []string{"ip", "route", "add", home, "via", lab.HomePublic}},
		{l.VPS, []string{"sysctl", "-qw", "net.ipv4.ip_forward=1"}},
		// And through the gateway rather than straight to the LAN host.
		{l.LabNAT, []string{"ip", "rule", "add", "iif", "eth0", "to", lab.LAN, "lookup", "100"}},
		{l.LabNAT, []string{"ip", "route", "add", "default", "via", lab.GatewayAddr, "table", "100"}},
		{l.Gateway, []string{"sysctl", "-qw", "net.ipv4.ip_forward=1"}},
		{l.Gateway, []string{"iptables", "-w", "-t", "nat", "-A", "POSTROUTING", "-s", home, "-d", lab.LAN, "-j", "MASQUERADE"}},
	} {
		if _, err := c.m.Run(ctx, c.args[0], c.args[1:]...); err != nil {
			return err
		}
	}
	return nil
}

func (*floor) serve(context.Context) error   { return nil }
func (*floor) connect(context.Context) error { return nil }
