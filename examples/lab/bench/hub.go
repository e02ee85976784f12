//go:build linux

package main

import (
	"context"

	"overlayd/examples/lab"
)

// hub is wireguard-go on all three machines, hub and spoke: the VPS decrypts
// what the laptop sent and encrypts it again for the gateway.
type hub struct {
	wireguard
	vps, gateway, laptop spoke
}

func (*hub) name() string { return "hub" }

func (h *hub) open(ctx context.Context, noOffload bool) error {
	err := h.begin(ctx, lab.Options{Home: lab.Hard, Lab: lab.Hard, NoOffload: noOffload}, lab.HostAddr, 'h', &h.vps, &h.gateway, &h.laptop)
	if err != nil {
		return err
	}
	h.vps.m, h.vps.addr, h.vps.via, h.vps.port = h.lab.VPS, lab.VPSOverlay, []string{lab.LAN}, wireguardPort
	h.gateway.m, h.gateway.addr = h.lab.Gateway, lab.GatewayOverlay
	h.laptop.m, h.laptop.addr, h.laptop.via = h.lab.Laptop, lab.LaptopOverlay, []string{lab.LAN}
	toHub := peer(h.vps.key, lab.Overlay+","+lab.LAN, "Endpoint = "+lab.VPSAddr+":"+wireguardPort, "PersistentKeepalive = 25")
	h.laptop.peers = []string{toHub}
	h.gateway.peers = []string{toHub}
	h.vps.peers = []string{
		peer(h.laptop.key, lab.LaptopOverlay+"/32"),
		peer(h.gateway.key, lab.GatewayOverlay+"/32,"+lab.LAN),
	}
	for _, m := range []*lab.Machine{h.lab.VPS, h.lab.Gateway} {
		if _, err := m.Run(ctx, "sysctl", "-qw", "net.ipv4.ip_forward=1"); err != nil {
			return err
		}
	}
	_, err = h.lab.Gateway.Run(ctx, "iptables", "-w", "-t", "nat", "-A", "POSTROUTING",
		"-s", lab.Overlay, "-o", "eth0", "-j", "MASQUERADE")
	return err
}

func (h *hub) serve(ctx context.Context) (err error) {
	if h.running["relay"], err = h.up(ctx, h.vps); err != nil {
		return err
	}
	h.running["gateway"], err = h.up(ctx, h.gateway)
	return err
}

func (h *hub) connect(ctx context.Context) (err error) {
	h.running["client"], err = h.up(ctx, h.laptop)
	return err
}

// far is the VPS: the half of the way from there stands before the laptop's end.
func (h *hub) far() *lab.Machine { return h.lab.VPS }
