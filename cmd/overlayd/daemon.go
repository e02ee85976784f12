package main

import (
	"context"
	"net/netip"
	"time"

	"overlayd/overlay"
	"overlayd/overlay/coord"
	"overlayd/overlay/key"
)

// daemon is the overlayd that runs on this machine.
type daemon interface {
	Status(context.Context) (overlay.Status, error)
	Plan(context.Context) (string, error)
	Down(context.Context) error
	Renew(ctx context.Context, link string) error
	Rotate(context.Context) (key.Public, error)
	Netcheck(context.Context) (overlay.Netcheck, error)
	Audit(ctx context.Context, q overlay.AuditQuery, each func(line []byte) error) error
	Whois(ctx context.Context, target string) (overlay.Whois, error)
	Ways(context.Context) (overlay.Ways, error)
	Reach(context.Context) (overlay.Reach, error)
	SetProxy(ctx context.Context, listen, password string) (overlay.Ways, error)
	AddForward(ctx context.Context, network, listen, target string, remote bool) (overlay.Ways, error)
	RemoveForward(ctx context.Context, network, listen string) (overlay.Ways, error)
	Ping(ctx context.Context, target string, count int, interval time.Duration, each func(overlay.Pong)) error
}

// coordinator decides who may do what. It runs in the first relay's daemon;
// elsewhere the daemon passes calls on to it.
type coordinator interface {
	members
	people
	access
	guests
}

// members are the machines of the network.
type members interface {
	Invite(context.Context, coord.Invite) (coord.Link, error)
	Invites(context.Context) ([]coord.InviteInfo, error)
	RevokeInvite(ctx context.Context, id string) error
	Nodes(context.Context) ([]coord.NodeInfo, error)
	RenameNode(ctx context.Context, node, name string) (coord.NodeInfo, error)
	RemoveNode(ctx context.Context, node string) (coord.NodeInfo, error)
	AddDevice(ctx context.Context, user, name string, k key.Public) (coord.Device, error)
	Routes(context.Context) ([]coord.RouteInfo, error)
	ApproveRoute(ctx context.Context, node string, p netip.Prefix) (coord.RouteInfo, error)
	WithdrawRoute(ctx context.Context, node string, p netip.Prefix) (coord.RouteInfo, error)
}

// people are whose machines they are.
type people interface {
	UpdateNode(ctx context.Context, node string, up coord.NodeUpdate) (coord.NodeInfo, error)
	RenewNode(ctx context.Context, node string, ttl time.Duration) (coord.NodeInfo, error)
	Users(context.Context) ([]coord.User, error)
	AddUser(ctx context.Context, name string, groups, tags []string) (coord.User, error)
	UpdateUser(ctx context.Context, user string, up coord.UserUpdate) (coord.User, error)
	RemoveUser(ctx context.Context, user string) (coord.User, error)
	Groups(context.Context) ([]coord.Group, error)
	AddGroup(ctx context.Context, name string, members []string) (coord.Group, error)
	UpdateGroup(ctx context.Context, group string, up coord.GroupUpdate) (coord.Group, error)
	RemoveGroup(ctx context.Context, group string) (coord.Group, error)
}

// access is what they may reach, and the record of it.
type access interface {
	Policy(ctx context.Context, version uint64) (coord.StoredPolicy, error)
	TryPolicy(ctx context.Context, text string) (coord.PolicyChange, error)
	ApplyPolicy(ctx context.Context, text string) (coord.PolicyChange, error)
	Grant(ctx context.Context, user, target string, span time.Duration) (coord.Grant, error)
	Grants(context.Context) ([]coord.Grant, error)
	Request(ctx context.Context, target string, span time.Duration) (coord.Request, error)
	Requests(context.Context) ([]coord.Request, error)
	ApproveRequest(ctx context.Context, id string, span time.Duration) (coord.Grant, error)
	DenyRequest(ctx context.Context, id string) error
	Revoke(ctx context.Context, what string) (coord.Revoked, error)
	Access(ctx context.Context, target string, at time.Time) (coord.Access, error)
	Explain(ctx context.Context, who, target string) ([]coord.Step, bool, error)
	VerifyRecord(context.Context) (coord.Verified, error)
}

// guests are those who come without overlayd.
type guests interface {
	AddSSHKey(ctx context.Context, user, text string) (coord.SSHKey, error)
	SSHKeys(ctx context.Context, user string) ([]coord.SSHKey, error)
	RemoveSSHKey(ctx context.Context, user, key string) (coord.SSHKey, error)
	SetPassword(ctx context.Context, user, password string) (made string, u coord.User, err error)
	RemovePassword(ctx context.Context, user string) (coord.User, error)
	MakeSeed(ctx context.Context, user string) (uri, seed string, err error)
	Expose(context.Context, coord.NewExposure) (coord.Exposure, error)
	Exposures(context.Context) ([]coord.Exposure, error)
	RemoveExposure(ctx context.Context, id string) (coord.Exposure, int, error)
}

// callTimeout bounds a call that the daemon answers from memory or its disk.
const callTimeout = 10 * time.Second

// status asks the daemon how it is.
func (p *program) status(ctx context.Context) (overlay.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	s, err := p.engine.dial(p.common.socket).Status(ctx)
	if err != nil {
		err = overlay.Ended(p.common.stateDir, p.common.socket, err)
	}
	return s, err
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
