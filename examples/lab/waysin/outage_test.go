//go:build linux

package waysin_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"overlayd/examples/lab"
	"overlayd/examples/lab/labtest"
	"overlayd/overlay"
	"overlayd/overlay/coord"
)

// TestOutages kills gateway and relay under the ways in: the ports stay, clients
// hear that there is no way, and new connections work when there is one again.
// Then alice is revoked under live connections of every kind.
func TestOutages(t *testing.T) {
	for _, mode := range modes(t) {
		if mode == "both" && !labtest.Long() {
			continue
		}
		t.Run(mode, func(t *testing.T) {
			ctx, w := newWorld(t, mode)
			w.overlayd(ctx, t, "proxy")
			w.overlayd(ctx, t, "forward", "127.0.0.1:8007", "192.168.1.201:7")
			w.allReach(ctx, t)
			t.Run("gateway", func(t *testing.T) {
				w.gateway.Kill()
				w.allListen(ctx, t)
				w.startGateway(ctx, t)
				w.healed(ctx, t)
			})
			t.Run("relay", func(t *testing.T) {
				w.relay.Kill()
				w.allListen(ctx, t)
				w.relay = must[*lab.Process](t)(w.VPS.Serve(ctx, lab.RelayArgs...))
				w.healed(ctx, t)
			})
			t.Run("revoked", func(t *testing.T) { w.revoke(ctx, t) })
		})
	}
}

// kinds are how the laptop gets a connection to the LAN host's echo.
func (w *world) kinds() map[string]func(context.Context) (net.Conn, error) {
	return map[string]func(context.Context) (net.Conn, error){
		"socks":   func(ctx context.Context) (net.Conn, error) { return w.socks(ctx, lab.HostAddr, 7) },
		"http":    w.httpConnect,
		"forward": func(ctx context.Context) (net.Conn, error) { return w.dial(ctx, "tcp", "127.0.0.1:8007") },
		"nc": func(ctx context.Context) (net.Conn, error) {
			l := overlay.Dial(w.Laptop.Socket())
			defer l.Close()
			return l.Dial(ctx, "tcp", lab.HostAddr+":7")
		},
	}
}

// httpConnect connects by the HTTP proxy's CONNECT.
func (w *world) httpConnect(ctx context.Context) (net.Conn, error) {
	c, err := w.dial(ctx, "tcp", "127.0.0.1:1080")
	if err != nil {
		return nil, err
	}
	const done = "HTTP/1.1 200 Connection established\r\n\r\n"
	answer := make([]byte, len(done))
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err = fmt.Fprintf(c, "CONNECT %s:7 HTTP/1.1\r\nHost: x\r\n\r\n", lab.HostAddr); err == nil {
		_, err = io.ReadFull(c, answer)
	}
	if err == nil && string(answer) != done {
		err = fmt.Errorf("the proxy answers %q", answer)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	c.SetDeadline(time.Time{})
	return c, nil
}

// allReach tries every kind.
func (w *world) allReach(ctx context.Context, t *testing.T) {
	t.Helper()
	for name, dial := range w.kinds() {
		err := lab.Until(ctx, func(ctx context.Context) error {
			c, err := dial(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			return echoed(c, 2*time.Second)
		})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
}

// allListen: the ports of the proxy and the forward are open.
func (w *world) allListen(ctx context.Context, t *testing.T) {
	t.Helper()
	for _, at := range []string{"127.0.0.1:1080", "127.0.0.1:8007"} {
		c, err := w.dial(ctx, "tcp", at)
		if err != nil {
			t.Errorf("%s is closed while there is no way: %v", at, err)
			continue
		}
		c.Close()
	}
}

// healed measures how soon a new connection of each kind works, once the daemon
// that was away says that it is ready.
func (w *world) healed(ctx context.Context, t *testing.T) {
	t.Helper()
	began := time.Now()
	var all sync.WaitGroup
	for name, dial := range w.kinds() {
		all.Go(func() {
			err := lab.Until(ctx, func(ctx context.Context) error {
				ctx, stop := context.WithTimeout(ctx, time.Second)
				defer stop()
				c, err := dial(ctx)
				if err != nil {
					return err
				}
				defer c.Close()
				return echoed(c, time.Second)
			})
			took := time.Since(began)
			t.Logf("%s works again after %v", name, took.Round(time.Millisecond))
			if err != nil || took > time.Second+slack {
				t.Errorf("%s works again after %v (%v), want a second", name, took, err)
			}
		})
	}
	all.Wait()
}

// revoke takes alice's access away under live connections.
func (w *world) revoke(ctx context.Context, t *testing.T) {
	live := map[string]net.Conn{}
	for name, dial := range w.kinds() {
		c := must[net.Conn](t)(dial(ctx))
		defer c.Close()
		if err := echoed(c, 5*time.Second); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		live[name] = c
	}
	session := must[*lab.Process](t)(w.Laptop.Start("sh", "-c", `exec "$0" nc 192.168.1.201 7 </dev/zero >/dev/null`, w.Options.Overlayd))
	if err := lab.Until(ctx, func(context.Context) error {
		out, err := w.Gateway.Overlayd(ctx, "audit", "--json", "--user", "alice")
		if err != nil || strings.Count(out, `192.168.1.201:7"`) < 5 {
			return fmt.Errorf("not all connections are there yet: %v", err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	must[coord.Revoked](t)(w.admin.Revoke(ctx, "user:alice"))
	for name, c := range live {
		c.SetReadDeadline(began.Add(10 * time.Second))
		_, err := c.Read(make([]byte, 1))
		took := time.Since(began)
		t.Logf("%s ended after %v: %v", name, took.Round(time.Millisecond), err)
		var late net.Error
		if err == nil || errors.As(err, &late) && late.Timeout() || took > time.Second+slack {
			t.Errorf("%s goes on for %v after the revocation: %v", name, took, err)
		}
	}
	select {
	case <-session.Done():
		if lab.ExitCode(session.Err()) == 0 {
			t.Error("nc ends as if all was well")
		}
	case <-time.After(5 * time.Second):
		t.Error("nc goes on after the revocation")
	}
	for name, dial := range w.kinds() {
		ctx, stop := context.WithTimeout(ctx, 3*time.Second)
		if c, err := dial(ctx); err == nil {
			if err := echoed(c, 2*time.Second); err == nil {
				t.Errorf("%s still reaches the host", name)
			}
			c.Close()
		}
		stop()
	}
}
