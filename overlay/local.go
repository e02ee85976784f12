package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"overlayd/overlay/coord"
	"overlayd/overlay/local"
)

// Local calls the daemon on this machine.
type Local struct {
	socket string
	http   *http.Client
	api    local.LocalClient
}

// localURL is what the HTTP requests name; the socket decides where they go.
const localURL = "http://overlayd.local"

// Dial returns a client for the daemon on a Unix socket. Nothing is opened
// before the first call.
func Dial(socket string) *Local {
	hc := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	return &Local{socket: socket, http: hc, api: local.NewLocalClient(hc, localURL)}
}

// Close drops the idle connections.
func (l *Local) Close() { l.http.CloseIdleConnections() }

// Status returns the daemon's status.
func (l *Local) Status(ctx context.Context) (Status, error) {
	var s Status
	res, err := l.api.Status(ctx, connect.NewRequest(&local.StatusRequest{}))
	if err != nil {
		return s, l.fault(err)
	}
	if err := json.Unmarshal(res.Msg.Json, &s); err != nil {
		return s, fmt.Errorf("read status: %w", err)
	}
	return s, nil
}

// Plan returns the plan that the daemon works by.
func (l *Local) Plan(ctx context.Context) (string, error) {
	res, err := l.api.Plan(ctx, connect.NewRequest(&local.PlanRequest{}))
	if err != nil {
		return "", l.fault(err)
	}
	return res.Msg.Text, nil
}

// Netcheck has the daemon measure what the network lets through.
func (l *Local) Netcheck(ctx context.Context) (Netcheck, error) {
	var c Netcheck
	res, err := l.api.Netcheck(ctx, connect.NewRequest(&local.NetcheckRequest{}))
	if err != nil {
		return c, l.fault(err)
	}
	if err := json.Unmarshal(res.Msg.Json, &c); err != nil {
		return c, fmt.Errorf("read netcheck: %w", err)
	}
	return c, nil
}

// Audit hands the lines of the daemon's record that are asked for to each, as
// JSON, the oldest first; with Follow until ctx ends.
func (l *Local) Audit(ctx context.Context, q AuditQuery, each func(line []byte) error) error {
	req := &local.AuditRequest{Follow: q.Follow, User: q.User, Host: q.Host, Denied: q.Denied}
	if !q.Since.IsZero() {
		req.SinceNs = q.Since.UnixNano()
	}
	stream, err := l.api.Audit(ctx, connect.NewRequest(req))
	if err != nil {
		return l.fault(err)
	}
	defer stream.Close()
	for stream.Receive() {
		if len(stream.Msg().Line) == 0 {
			continue
		}
		if err := each(stream.Msg().Line); err != nil {
			return err
		}
	}
	if err := stream.Err(); err != nil && ctx.Err() == nil {
		return l.fault(err)
	}
	return nil
}

// Whois asks the daemon who is behind an address, or one with a port.
func (l *Local) Whois(ctx context.Context, target string) (Whois, error) {
	var w Whois
	res, err := l.api.Whois(ctx, connect.NewRequest(&local.WhoisRequest{Target: target}))
	if err != nil {
		return w, l.fault(err)
	}
	if err := json.Unmarshal(res.Msg.Json, &w); err != nil {
		return w, fmt.Errorf("read whois: %w", err)
	}
	return w, nil
}

// Down asks the daemon to stop, and returns when it has.
func (l *Local) Down(ctx context.Context) error {
	if _, err := l.api.Down(ctx, connect.NewRequest(&local.DownRequest{})); err != nil {
		return l.fault(err)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := net.Dial("unix", l.socket)
		if err != nil {
			return nil // the socket goes last
		}
		c.Close()
		select {
		case <-ctx.Done():
			return fault(ExitUnreachable, "look at its log; `overlayd cleanup` restores the machine if it was killed",
				"the daemon was asked to stop and still runs")
		case <-tick.C:
		}
	}
}

// Ping sends count echo requests (0: until ctx ends) and hands each answer, or
// its absence, to each.
func (l *Local) Ping(ctx context.Context, target string, count int, interval time.Duration, each func(Pong)) error {
	stream, err := l.api.Ping(ctx, connect.NewRequest(&local.PingRequest{
		Target: target, Count: uint32(count), IntervalMs: uint32(interval.Milliseconds()),
	}))
	if err != nil {
		return l.fault(err)
	}
	defer stream.Close()
	for stream.Receive() {
		m := stream.Msg()
		addr, err := netip.ParseAddr(m.Addr)
		if err != nil {
			return fmt.Errorf("read pong: %w", err)
		}
		p := Pong{Seq: int(m.Seq), Addr: addr, Lost: m.RttNs == nil, Path: PongPath{
			Direct: m.Direct, Kind: m.Kind, Transport: m.Transport, Relay: m.Relay,
			Endpoint: m.Endpoint, Via: m.Via, Reason: m.Reason,
		}, Refused: m.RefusedBy}
		if m.RttNs != nil {
			p.RTT = time.Duration(*m.RttNs)
		}
		each(p)
	}
	if err := stream.Err(); err != nil && ctx.Err() == nil {
		return l.fault(err)
	}
	return nil
}

// Admin returns a client for the coordinator: on the first relay's machine for
// whoever may open the socket, elsewhere in the name of this node.
func (l *Local) Admin() *coord.Admin { return coord.NewAdmin(l.http, localURL) }

// fault says why a call failed in words for a person. It is also right for the
// errors of Admin.
func (l *Local) fault(err error) error { return SocketFault(l.socket, err) }

// brokenOff reports whether a call ended without an answer, as its daemon did.
func brokenOff(err error) bool {
	for _, end := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, end) {
			return true
		}
	}
	return false
}

// SocketFault turns the error of a call on the daemon's socket into a Fault.
func SocketFault(socket string, err error) error {
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" {
		if socket == "" {
			return fault(ExitUsage, "leave --socket away, or name the daemon's: --socket "+DefaultSocket, "the path of the daemon's socket is empty")
		}
		if errors.Is(err, fs.ErrPermission) {
			return fault(ExitPermission, "run it as root, or join the socket's group", "open %s: permission denied", socket)
		}
		return fault(ExitNotRunning, "start it with `overlayd up`, `overlayd gateway` or `overlayd relay`",
			"no overlayd answers on %s", socket)
	}
	if c, ok := errors.AsType[*connect.Error](err); ok && len(c.Details()) == 0 {
		if f := faultIn(c); f != nil {
			return f
		}
		if brokenOff(err) {
			return fault(ExitUnreachable, "see what became of it, and say it again: overlayd status",
				"overlayd ended in the middle of this call, so whether it was done is not known")
		}
		if c.Code() == connect.CodeUnimplemented {
			return fault(ExitFailure, "run this command on the first relay", "this machine is not the network's coordinator")
		}
		return fault(ExitFailure, "", "%s", c.Message())
	}
	if _, ok := coord.AsProblem(err); ok {
		return AsFault(err)
	}
	return err
}
