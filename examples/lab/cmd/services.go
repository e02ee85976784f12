//go:build linux

package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"overlayd/examples/lab"
)

// services are what the LAN host offers: a web page and an ssh server. It runs
// nothing of overlayd.
type services struct {
	hostKey string // the ssh server's public key, made for this lab

	web    *http.Server
	served chan error // holds what the web server returned
}

// page is what the LAN host shows; it names the address it was asked from.
const page = `<html><body><h1>A page that only 192.168.1.0/24 can see</h1>
<p>You asked from %s.</p>
<p>%s</p></body></html>
`

// serve starts the services on the LAN host. The page carries the text.
func serve(ctx context.Context, l *lab.Lab, text string) (*services, error) {
	listener, err := l.Host.Listen("tcp4", lab.HostAddr+":80")
	if err != nil {
		return nil, err
	}
	s := &services{served: make(chan error, 1)}
	s.web = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, _, _ := net.SplitHostPort(r.RemoteAddr)
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, page, from, text)
	})}
	go func() { s.served <- s.web.Serve(listener) }() // close waits for it
	if err := s.ssh(ctx, l); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// ssh starts Debian's own server, with a key and a configuration of its own.
func (s *services) ssh(ctx context.Context, l *lab.Lab) error {
	sshd, err := exec.LookPath("sshd")
	if err != nil {
		return fmt.Errorf("find sshd: %w\nhint: apt-get install openssh-server", err)
	}
	key := filepath.Join(l.Dir, "ssh_host_ed25519_key")
	if _, err := l.Host.Run(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lanhost", "-f", key); err != nil {
		return err
	}
	public, err := os.ReadFile(key + ".pub")
	if err != nil {
		return fmt.Errorf("read the ssh host key: %w", err)
	}
	s.hostKey = strings.Fields(string(public))[1]
	config := filepath.Join(l.Dir, "sshd_config")
	text := "HostKey " + key + "\nListenAddress " + lab.HostAddr + "\nPidFile none\nUsePAM no\nAuthorizedKeysFile none\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return fmt.Errorf("write the ssh server's configuration: %w", err)
	}
	// sshd wants /run/sshd. Programs in a namespace see mounts of their own, so
	// the real /run stays as it is.
	p, err := l.Host.Start("sh", "-c", `mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd && exec "$0" -D -e -f "$1"`, sshd, config)
	if err != nil {
		return err
	}
	return lab.Until(ctx, func(context.Context) error {
		if tail := p.Tail(); !strings.Contains(tail, "Server listening") {
			return fmt.Errorf("sshd does not listen: %s", tail)
		}
		return nil
	})
}

func (s *services) close() {
	_ = s.web.Close() // the listener goes with the lab
	<-s.served
}
