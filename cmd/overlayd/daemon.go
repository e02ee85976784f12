package main

import (
	"context"
	"net/netip"
	"time"

	"overlayd/overlay"
	"overlayd/overlay/coord"
)

// daemon is the overlayd that runs on this machine.
type daemon interface {
	Status(context.Context) (overlay.Status, error)
	Plan(context.Context) (string, error)
	Down(context.Context) error
	Netcheck(context.Context) (overlay.Netcheck, error)
	Audit(ctx context.Context, q overlay.AuditQuery, each func(line []byte) error) error
	Whois(ctx context.Context, target string) (overlay.Whois, error)
	Ping(ctx context.Context, target string, count int, interval time.Duration, each func(overlay.Pong)) error
}

// coordinator decides who may do what. It runs in the relay's daemon.
type coordinator interface {
	Invite(context.Context, coord.Invite) (coord.Link, error)
	Invites(context.Context) ([]coord.InviteInfo, error)
	RevokeInvite(ctx context.Context, id string) error
	Nodes(context.Context) ([]coord.NodeInfo, error)
	RenameNode(ctx context.Context, node, name string) (coord.NodeInfo, error)
	RemoveNode(ctx context.Context, node string) (coord.NodeInfo, error)
	Routes(context.Context) ([]coord.RouteInfo, error)
	ApproveRoute(ctx context.Context, node string, p netip.Prefix) (coord.RouteInfo, error)
	WithdrawRoute(ctx context.Context, node string, p netip.Prefix) (coord.RouteInfo, error)
}

// callTimeout bounds a call that the daemon answers from memory or its disk.
const callTimeout = 10 * time.Second

// status asks the daemon how it is.
func (p *program) status(ctx context.Context) (overlay.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return p.engine.dial(p.common.socket).Status(ctx)
}

// admin makes one call to the coordinator and explains its error.
func admin[T any](ctx context.Context, p *program, call func(context.Context, coordinator) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	v, err := call(ctx, p.engine.coordinator(p.common.socket))
	if err != nil {
		err = overlay.SocketFault(p.common.socket, err)
	}
	return v, err
}
