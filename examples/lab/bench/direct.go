//go:build linux

package main

import (
	"context"

	"overlayd/examples/lab"
)

// pair is wireguard-go on the laptop and the gateway, point to point. Both NATs
// keep ports and both ends know where the other one is, so that the first
// datagrams of both open the way.
type pair struct {
	wireguard
	gateway, laptop spoke
}

func (*pair) name() string { return "wireguard-go" }

func (p *pair) open(ctx context.Context, noOffload bool) error {
	if err := p.begin(ctx, lab.Options{NoOffload: noOffload}, lab.GatewayOverlay, 'p', &p.gateway, &p.laptop); err != nil {
		return err
	}
	p.gateway.m, p.gateway.addr, p.gateway.port = p.lab.Gateway, lab.GatewayOverlay, wireguardPort
	p.laptop.m, p.laptop.addr, p.laptop.port = p.lab.Laptop, lab.LaptopOverlay, wireguardPort
	// A second is the least keepalive: the first end up is not heard before the
	// second is.
	p.gateway.peers = []string{peer(p.laptop.key, lab.LaptopOverlay+"/32", "Endpoint = "+lab.HomePublic+":"+wireguardPort, "PersistentKeepalive = 1")}
	p.laptop.peers = []string{peer(p.gateway.key, lab.GatewayOverlay+"/32", "Endpoint = "+lab.LabPublic+":"+wireguardPort)}
	return nil
}

func (p *pair) serve(ctx context.Context) (err error) {
	p.running["gateway"], err = p.up(ctx, p.gateway)
	return err
}

func (p *pair) connect(ctx context.Context) (err error) {
	p.running["client"], err = p.up(ctx, p.laptop)
	return err
}
