package coord

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"connectrpc.com/connect"

	"overlayd/overlay/coord/api"
	"overlayd/overlay/key"
)

// Admin calls a coordinator's Admin service.
type Admin struct{ c api.AdminClient }

// NewAdmin returns an Admin that speaks over hc to the service at baseURL.
func NewAdmin(hc *http.Client, baseURL string) *Admin {
	return &Admin{api.NewAdminClient(hc, baseURL)}
}

// Invite says what an invite is for. The zero value is for one member, for a
// day.
type Invite struct {
	Name    string         // the node's name; empty: the node says
	Role    Role           // empty: RoleGateway with Routes, else RoleMember
	Address netip.Addr     // the node's address; zero: any free one
	Routes  []netip.Prefix // approved from the start
	Uses    int            // 0: one
	TTL     time.Duration  // 0: DefaultInviteTTL

	User          string // whose nodes it admits; empty: each becomes the node of a user of its own
	NeedsApproval bool   // a node that joins with it waits for an admin

	KeyTTL time.Duration // how long a person's machine goes on without renewal; 0: as the network says; or ForEver
}

// DefaultInviteTTL is for how long an invite holds when nobody says.
const DefaultInviteTTL = 24 * time.Hour

// InviteState says whether an invite can be used.
type InviteState string

// The states of an invite.
const (
	InviteOpen    InviteState = "open"
	InviteUsed    InviteState = "used"
	InviteExpired InviteState = "expired"
	InviteRevoked InviteState = "revoked"
)

// InviteInfo is an invite as it is listed.
type InviteInfo struct {
	Invite
	ID      string
	Used    int
	Created time.Time
	Expires time.Time
	State   InviteState
}

// NodeInfo is a node as the operator sees it.
type NodeInfo struct {
	Node
	Machine  key.MachinePublic
	Joined   time.Time
	LastSeen time.Time // zero: not since the coordinator started
}

// RouteInfo is a route of a node.
type RouteInfo struct {
	Route
	NodeID     string
	Node       string // its name
	Advertised bool   // false: approved, but the node does not offer it now
	Online     bool
}

// Invite makes an invite and returns its link.
func (a *Admin) Invite(ctx context.Context, i Invite) (Link, error) {
	resp, err := a.c.CreateInvite(ctx, connect.NewRequest(&api.CreateInviteRequest{
		Name: i.Name, Role: string(i.Role), Address: addrToWire(i.Address), Routes: prefixesToWire(i.Routes),
		Uses: uint32(max(i.Uses, 0)), TtlMs: i.TTL.Milliseconds(), User: i.User, NeedsApproval: i.NeedsApproval, KeyTtlMs: lifeToWire(i.KeyTTL),
	}))
	if err != nil {
		return Link{}, called("make invite", err)
	}
	return ParseLink(resp.Msg.Link)
}

// Invites lists all invites, the oldest first.
func (a *Admin) Invites(ctx context.Context) ([]InviteInfo, error) {
	resp, err := a.c.ListInvites(ctx, connect.NewRequest(&api.ListInvitesRequest{}))
	if err != nil {
		return nil, called("list invites", err)
	}
	return each(resp.Msg.Invites, inviteFromWire)
}

// RevokeInvite ends an invite. The nodes that it admitted stay.
func (a *Admin) RevokeInvite(ctx context.Context, id string) error {
	_, err := a.c.RevokeInvite(ctx, connect.NewRequest(&api.RevokeInviteRequest{Id: id}))
	return called("revoke invite", err)
}

// Nodes lists all nodes, by label.
func (a *Admin) Nodes(ctx context.Context) ([]NodeInfo, error) {
	resp, err := a.c.ListNodes(ctx, connect.NewRequest(&api.ListNodesRequest{}))
	if err != nil {
		return nil, called("list nodes", err)
	}
	return each(resp.Msg.Nodes, nodeInfoFromWire)
}

// RenameNode gives a node, named by id, name or address, another name.
func (a *Admin) RenameNode(ctx context.Context, node, name string) (NodeInfo, error) {
	resp, err := a.c.RenameNode(ctx, connect.NewRequest(&api.RenameNodeRequest{Node: node, Name: name}))
	if err != nil {
		return NodeInfo{}, called("rename node", err)
	}
	return nodeInfoFromWire(resp.Msg.Node)
}

// RemoveNode takes a node, named by id, name or address, out of the network.
func (a *Admin) RemoveNode(ctx context.Context, node string) (NodeInfo, error) {
	resp, err := a.c.RemoveNode(ctx, connect.NewRequest(&api.RemoveNodeRequest{Node: node}))
	if err != nil {
		return NodeInfo{}, called("remove node", err)
	}
	return nodeInfoFromWire(resp.Msg.Node)
}

// Routes lists what is advertised or approved, by node.
func (a *Admin) Routes(ctx context.Context) ([]RouteInfo, error) {
	resp, err := a.c.ListRoutes(ctx, connect.NewRequest(&api.ListRoutesRequest{}))
	if err != nil {
		return nil, called("list routes", err)
	}
	return each(resp.Msg.Routes, routeInfoFromWire)
}

// ApproveRoute lets a node's route be used. No node means the only one that
// advertises it.
func (a *Admin) ApproveRoute(ctx context.Context, node string, p netip.Prefix) (RouteInfo, error) {
	resp, err := a.c.ApproveRoute(ctx, connect.NewRequest(&api.ApproveRouteRequest{Node: node, Prefix: p.String()}))
	if err != nil {
		return RouteInfo{}, called("approve route", err)
	}
	return routeInfoFromWire(resp.Msg.Route)
}

// WithdrawRoute takes an approval back. No node means the only one that has it.
func (a *Admin) WithdrawRoute(ctx context.Context, node string, p netip.Prefix) (RouteInfo, error) {
	resp, err := a.c.WithdrawRoute(ctx, connect.NewRequest(&api.WithdrawRouteRequest{Node: node, Prefix: p.String()}))
	if err != nil {
		return RouteInfo{}, called("withdraw route", err)
	}
	return routeInfoFromWire(resp.Msg.Route)
}

// called makes the error of a call into its problem, or names the call.
func called(act string, err error) error {
	if err == nil {
		return nil
	}
	if p, ok := sentProblem(err); ok {
		return p
	}
	return fmt.Errorf("%s: %w", act, err) // the caller knows the way to the coordinator, and why it may be closed
}

// each converts a list.
func each[W, T any](ws []W, from func(W) (T, error)) ([]T, error) {
	ts := make([]T, 0, len(ws))
	for _, w := range ws {
		t, err := from(w)
		if err != nil {
			return nil, fmt.Errorf("read answer: %w", err)
		}
		ts = append(ts, t)
	}
	return ts, nil
}

func routeInfoFromWire(w *api.RouteInfo) (RouteInfo, error) {
	p, err := netip.ParsePrefix(w.GetPrefix())
	return RouteInfo{
		Route: Route{p, w.GetApproved()}, NodeID: w.GetNodeId(), Node: w.GetNode(),
		Advertised: w.GetAdvertised(), Online: w.GetOnline(),
	}, err
}
