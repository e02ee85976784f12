//go:build linux

package main

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"overlayd/examples/lab"
)

// hub is wireguard-go on all three machines, hub and spoke: the VPS decrypts
// what the laptop sent and encrypts it again for the gateway.
type hub struct {
	world
	binary string

	vps, gateway, laptop spoke
}

// spoke is one machine's end of the hub's network.
type spoke struct {
	m     *lab.Machine
	link  string // unique on the host: wireguard-go's control sockets all lie in one directory
	addr  string
	key   *ecdh.PrivateKey
	peers []string // sections of wg(8)'s setconf
	via   []string // prefixes that go into the tunnel
}

const hubPort = "51820"

func (*hub) name() string { return "hub" }

func (h *hub) open(ctx context.Context, noOffload bool) (err error) {
	if h.binary, err = filepath.Abs(h.binary); err != nil {
		return fmt.Errorf("find wireguard-go: %w", err)
	}
	if err := h.begin(ctx, lab.Options{Home: lab.Hard, Lab: lab.Hard, NoOffload: noOffload}); err != nil {
		return err
	}
	h.vps = spoke{m: h.lab.VPS, addr: lab.VPSOverlay, via: []string{lab.LAN}}
	h.gateway = spoke{m: h.lab.Gateway, addr: lab.GatewayOverlay}
	h.laptop = spoke{m: h.lab.Laptop, addr: lab.LaptopOverlay, via: []string{lab.LAN}}
	for i, s := range []*spoke{&h.vps, &h.gateway, &h.laptop} {
		s.link = fmt.Sprintf("wg%d%c", os.Getpid(), 'a'+i) // 10 of the 15 bytes a name may have
		if s.key, err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			return fmt.Errorf("make a key: %w", err)
		}
	}
	toHub := peer(h.vps.key, lab.Overlay+","+lab.LAN, "Endpoint = "+lab.VPSAddr+":"+hubPort, "PersistentKeepalive = 25")
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

// up starts wireguard-go and does what wg-quick would.
func (h *hub) up(ctx context.Context, s spoke) (*lab.Process, error) {
	p, err := s.m.Start(h.binary, "-f", s.link)
	if err != nil {
		return nil, err
	}
	conf := fmt.Sprintf("[Interface]\nPrivateKey = %s\n", base64.StdEncoding.EncodeToString(s.key.Bytes()))
	if s.m == h.lab.VPS {
		conf += "ListenPort = " + hubPort + "\n"
	}
	file := filepath.Join(h.lab.Dir, s.link+".conf")
	if err := os.WriteFile(file, []byte(conf+strings.Join(s.peers, "")), 0o600); err != nil {
		return p, fmt.Errorf("write the hub's configuration: %w", err)
	}
	err = lab.Until(ctx, func(context.Context) error {
		_, err := os.Stat("/var/run/wireguard/" + s.link + ".sock")
		return err
	})
	if err != nil {
		return p, fmt.Errorf("wait for wireguard-go: %w: %s", err, p.Tail())
	}
	commands := [][]string{
		{"wg", "setconf", s.link, file},
		{"ip", "addr", "add", s.addr + "/24", "dev", s.link},
		{"ip", "link", "set", s.link, "mtu", "1420", "up"},
	}
	for _, prefix := range s.via {
		commands = append(commands, []string{"ip", "route", "add", prefix, "dev", s.link})
	}
	for _, c := range commands {
		if _, err := s.m.Run(ctx, c[0], c[1:]...); err != nil {
			return p, err
		}
	}
	return p, nil
}

// peer is one section of wg(8)'s setconf.
func peer(k *ecdh.PrivateKey, allowed string, more ...string) string {
	return fmt.Sprintf("[Peer]\nPublicKey = %s\nAllowedIPs = %s\n%s\n",
		base64.StdEncoding.EncodeToString(k.PublicKey().Bytes()), allowed, strings.Join(more, "\n"))
}
