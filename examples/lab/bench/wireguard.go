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

// wireguard is wireguard-go, with what wg-quick would do around it.
type wireguard struct {
	world
	binary string
}

// spoke is one machine's end of a network of wireguard-go.
type spoke struct {
	m     *lab.Machine
	link  string // unique on the host: wireguard-go's control sockets all lie in one directory
	addr  string
	key   *ecdh.PrivateKey
	port  string   // "": any
	peers []string // sections of wg(8)'s setconf
	via   []string // prefixes that go into the tunnel
}

const wireguardPort = "51820"

// begin makes the lab, and keys and names for the spokes.
func (w *wireguard) begin(ctx context.Context, o lab.Options, goal string, mark byte, spokes ...*spoke) (err error) {
	if w.binary, err = filepath.Abs(w.binary); err != nil {
		return fmt.Errorf("find wireguard-go: %w", err)
	}
	if err := w.world.begin(ctx, o, goal); err != nil {
		return err
	}
	for i, s := range spokes {
		s.link = fmt.Sprintf("wg%d%c%d", os.Getpid(), mark, i) // 11 of the 15 bytes a name may have
		if s.key, err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			return fmt.Errorf("make a key: %w", err)
		}
	}
	return nil
}

// up starts wireguard-go and does what wg-quick would.
func (w *wireguard) up(ctx context.Context, s spoke) (*lab.Process, error) {
	p, err := s.m.Start(w.binary, "-f", s.link)
	if err != nil {
		return nil, err
	}
	conf := fmt.Sprintf("[Interface]\nPrivateKey = %s\n", base64.StdEncoding.EncodeToString(s.key.Bytes()))
	if s.port != "" {
		conf += "ListenPort = " + s.port + "\n"
	}
	file := filepath.Join(w.lab.Dir, s.link+".conf")
	if err := os.WriteFile(file, []byte(conf+strings.Join(s.peers, "")), 0o600); err != nil {
		return p, fmt.Errorf("write wireguard-go's configuration: %w", err)
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
