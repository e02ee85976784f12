package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"connectrpc.com/connect"

	"overlayd/overlay/forward"
	"overlayd/overlay/local"
)

// The trailers by which a Fault of the daemon reaches the command line whole.
const (
	metaCode = "Overlayd-Exit-Code"
	metaHint = "Overlayd-Hint"
)

// faultOut is a Fault as an error of the local API.
func faultOut(err error) error {
	f, ok := errors.AsType[*Fault](err)
	if !ok {
		return err
	}
	out := connect.NewError(connect.CodeFailedPrecondition, errors.New(f.Message))
	out.Meta().Set(metaCode, strconv.Itoa(f.Code))
	out.Meta().Set(metaHint, f.Hint)
	return out
}

// faultIn is what faultOut was given; nil: it was not.
func faultIn(c *connect.Error) *Fault {
	code, err := strconv.Atoi(c.Meta().Get(metaCode))
	if err != nil {
		return nil
	}
	return &Fault{Code: code, Message: c.Message(), Hint: c.Meta().Get(metaHint)}
}

// answerWays ends a call about the proxy or the forwards.
func (s localService) answerWays(err error) (*connect.Response[local.WaysResponse], error) {
	if err != nil {
		return nil, faultOut(err)
	}
	b, err := json.Marshal(s.n.ways.state())
	if err != nil {
		return nil, fmt.Errorf("encode ways: %w", err)
	}
	return connect.NewResponse(&local.WaysResponse{Json: b}), nil
}

func (s localService) Ways(context.Context, *connect.Request[local.WaysRequest]) (*connect.Response[local.WaysResponse], error) {
	return s.answerWays(nil)
}

func (s localService) SetProxy(_ context.Context, req *connect.Request[local.SetProxyRequest]) (*connect.Response[local.WaysResponse], error) {
	if req.Msg.Listen == "" {
		return s.answerWays(s.n.ways.proxyOff())
	}
	at, err := parseListen(req.Msg.Listen)
	if err != nil {
		return s.answerWays(err)
	}
	return s.answerWays(s.n.ways.setProxy(at, req.Msg.Password))
}

func (s localService) AddForward(ctx context.Context, req *connect.Request[local.ForwardRequest]) (*connect.Response[local.WaysResponse], error) {
	r, err := readForward(ctx, req.Msg)
	if err != nil {
		return s.answerWays(err)
	}
	return s.answerWays(s.n.ways.addForward(r))
}

func (s localService) RemoveForward(_ context.Context, req *connect.Request[local.ForwardRequest]) (*connect.Response[local.WaysResponse], error) {
	at, err := parseListen(req.Msg.Listen)
	if err != nil {
		return s.answerWays(err)
	}
	return s.answerWays(s.n.ways.removeForward(req.Msg.Network, at))
}

func (s localService) Reach(ctx context.Context, _ *connect.Request[local.ReachRequest]) (*connect.Response[local.ReachResponse], error) {
	b, err := json.Marshal(s.n.reach(ctx))
	if err != nil {
		return nil, fmt.Errorf("encode reach: %w", err)
	}
	return connect.NewResponse(&local.ReachResponse{Json: b}), nil
}

// Reach returns what lies in the overlay and behind its gateways.
func (l *Local) Reach(ctx context.Context) (Reach, error) {
	var r Reach
	res, err := l.api.Reach(ctx, connect.NewRequest(&local.ReachRequest{}))
	if err != nil {
		return r, l.fault(err)
	}
	if err := json.Unmarshal(res.Msg.Json, &r); err != nil {
		return r, fmt.Errorf("read reach: %w", err)
	}
	return r, nil
}

// parseListen reads the address of a port of this machine.
func parseListen(s string) (netip.AddrPort, error) {
	at, err := netip.ParseAddrPort(s)
	if err != nil || at.Port() == 0 || at.Addr().Zone() != "" {
		return at, fault(ExitUsage, "write it as 127.0.0.1:8080", "%.100q is not an address with a port", s)
	}
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port()), nil
}

// readForward checks what a forward is asked to do.
func readForward(ctx context.Context, m *local.ForwardRequest) (forward.Rule, error) {
	r := forward.Rule{Network: m.Network, Target: m.Target}
	if m.Network != "tcp" && m.Network != "udp" {
		return r, fault(ExitUsage, "use tcp or udp", "network %.40q cannot be forwarded", m.Network)
	}
	var err error
	if r.Listen, err = parseListen(m.Listen); err != nil {
		return r, err
	}
	if host, port, err := splitTarget(ctx, m.Network, m.Target); err != nil || host == "" || port == 0 {
		return r, fault(ExitUsage, "write it as 192.168.1.10:80, or nas.lab:80", "%.200q is not a host with a port", m.Target)
	}
	if !r.Listen.Addr().IsLoopback() && !m.AllowRemote {
		return r, fault(ExitUsage, "listen on 127.0.0.1, or say --allow-remote: then other machines get in as this one",
			"other machines could reach %s", r.Listen)
	}
	return r, nil
}

// Ways returns how the proxy and the forwards are.
func (l *Local) Ways(ctx context.Context) (Ways, error) {
	return l.ways(l.api.Ways(ctx, connect.NewRequest(&local.WaysRequest{})))
}

// SetProxy turns the proxy on at an address, with the password that clients need
// or none; without an address it turns it off.
func (l *Local) SetProxy(ctx context.Context, listen, password string) (Ways, error) {
	return l.ways(l.api.SetProxy(ctx, connect.NewRequest(&local.SetProxyRequest{Listen: listen, Password: password})))
}

// AddForward opens a port of this machine that comes out at a host.
func (l *Local) AddForward(ctx context.Context, network, listen, target string, remote bool) (Ways, error) {
	m := &local.ForwardRequest{Network: network, Listen: listen, Target: target, AllowRemote: remote}
	if _, err := readForward(ctx, m); err != nil { // what is wrong with it takes no daemon to say
		return Ways{}, err
	}
	return l.ways(l.api.AddForward(ctx, connect.NewRequest(m)))
}

// RemoveForward closes it; without a network those of both.
func (l *Local) RemoveForward(ctx context.Context, network, listen string) (Ways, error) {
	if _, err := parseListen(listen); err != nil {
		return Ways{}, err
	}
	return l.ways(l.api.RemoveForward(ctx, connect.NewRequest(&local.ForwardRequest{Network: network, Listen: listen})))
}

func (l *Local) ways(res *connect.Response[local.WaysResponse], err error) (Ways, error) {
	var w Ways
	if err != nil {
		return w, l.fault(err)
	}
	if err := json.Unmarshal(res.Msg.Json, &w); err != nil {
		return w, fmt.Errorf("read ways: %w", err)
	}
	return w, nil
}
