package coord

import (
	"context"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	"overlayd/overlay/coord/api"
	"overlayd/overlay/key"
)

// adminService is the Admin service.
type adminService struct {
	*Server
	api.UnimplementedAdminHandler
}

var _ api.AdminHandler = adminService{}

// AdminHandler serves the Admin service. It asks nobody who he is: serve it
// only where the operator alone can reach it.
func (s *Server) AdminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(s.adminRoute(true))
	return mux
}

// adminRoute is the Admin service, for the operator or for members.
func (s *Server) adminRoute(local bool) (string, http.Handler) {
	return api.NewAdminHandler(adminService{Server: s}, connect.WithReadMaxBytes(maxAdminRequest), uncompressed, connect.WithInterceptors(s.guard(local)))
}

// maxAdminRequest holds the longest policy.
const maxAdminRequest = maxPolicy + maxRequest

func (s adminService) CreateInvite(ctx context.Context, req *connect.Request[api.CreateInviteRequest]) (*connect.Response[api.CreateInviteResponse], error) {
	m := req.Msg
	want := Invite{Name: m.Name, Role: Role(m.Role), Uses: int(m.Uses), TTL: time.Duration(m.TtlMs) * time.Millisecond,
		User: m.User, NeedsApproval: m.NeedsApproval, KeyTTL: lifeFromWire(m.KeyTtlMs)}
	var err error
	if m.Address != "" {
		if want.Address, err = netip.ParseAddr(m.Address); err != nil {
			return nil, problem(KindInvalid, "write it as 172.18.0.11", "%.80q is not an address", m.Address)
		}
	}
	if want.Routes, err = parsePrefixes(m.Routes); err != nil {
		return nil, err
	}
	link, rec, err := s.invite(ctx, want)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&api.CreateInviteResponse{Link: link.Encode(), Invite: inviteToWire(s.ledger.now().inviteInfo(&rec, s.o.Now()))}), nil
}

func (s adminService) ListInvites(context.Context, *connect.Request[api.ListInvitesRequest]) (*connect.Response[api.ListInvitesResponse], error) {
	now := s.o.Now()
	var infos []InviteInfo
	snap := s.ledger.now()
	for _, i := range snap.invites {
		infos = append(infos, snap.inviteInfo(i, now))
	}
	slices.SortFunc(infos, func(a, b InviteInfo) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	resp := &api.ListInvitesResponse{}
	for _, i := range infos {
		resp.Invites = append(resp.Invites, inviteToWire(i))
	}
	return connect.NewResponse(resp), nil
}

func (s adminService) RevokeInvite(ctx context.Context, req *connect.Request[api.RevokeInviteRequest]) (*connect.Response[api.RevokeInviteResponse], error) {
	id := req.Msg.Id
	if err := s.ledger.change(ctx, func(snap *snapshot) ([]Record, error) { return snap.revoke(id) }); err != nil {
		return nil, err
	}
	s.o.Log.Info("invite revoked", "invite", id)
	return connect.NewResponse(&api.RevokeInviteResponse{}), nil
}

func (s adminService) ListNodes(context.Context, *connect.Request[api.ListNodesRequest]) (*connect.Response[api.ListNodesResponse], error) {
	snap := s.ledger.now()
	resp := &api.ListNodesResponse{}
	for _, n := range snap.nodesByLabel() {
		resp.Nodes = append(resp.Nodes, s.nodeInfo(snap, n))
	}
	return connect.NewResponse(resp), nil
}

func (s adminService) nodeInfo(snap *snapshot, n *nodeRecord) *api.NodeInfo {
	seen := s.seen(n)
	return &api.NodeInfo{
		Member: nodeToWire(s.node(snap, n, true)), Machine: n.Machine.Bytes(),
		JoinedAt: timeToWire(n.Joined), LastSeenAt: timeToWire(seen.last),
	}
}

// changeNode makes a change of one node, and returns the node after it.
func (s adminService) changeNode(ctx context.Context, decide func(*snapshot) (nodeRecord, []Record, error)) (nodeRecord, error) {
	var n nodeRecord
	err := s.ledger.change(ctx, func(snap *snapshot) (changes []Record, err error) {
		n, changes, err = decide(snap)
		return changes, err
	})
	return n, err
}

func (s adminService) RenameNode(ctx context.Context, req *connect.Request[api.RenameNodeRequest]) (*connect.Response[api.RenameNodeResponse], error) {
	n, err := s.changeNode(ctx, func(snap *snapshot) (nodeRecord, []Record, error) {
		return snap.rename(req.Msg.Node, req.Msg.Name)
	})
	if err != nil {
		return nil, err
	}
	s.o.Log.Info("node renamed", "node", n.Name, "addr", addrOf(s.Overlay(), n.Label))
	return connect.NewResponse(&api.RenameNodeResponse{Node: s.nodeInfo(s.ledger.now(), &n)}), nil
}

func (s adminService) RemoveNode(ctx context.Context, req *connect.Request[api.RemoveNodeRequest]) (*connect.Response[api.RemoveNodeResponse], error) {
	n, err := s.changeNode(ctx, func(snap *snapshot) (nodeRecord, []Record, error) {
		return snap.remove(req.Msg.Node, s.o.Now().UTC())
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&api.RemoveNodeResponse{Node: s.nodeInfo(s.ledger.now(), &n)}), nil
}

func (s adminService) ListRoutes(context.Context, *connect.Request[api.ListRoutesRequest]) (*connect.Response[api.ListRoutesResponse], error) {
	resp := &api.ListRoutesResponse{}
	for _, n := range s.ledger.now().nodesByLabel() {
		all := append(slices.Clone(n.Advertised), n.Approved...)
		slices.SortFunc(all, netip.Prefix.Compare)
		for _, p := range slices.Compact(all) {
			resp.Routes = append(resp.Routes, s.routeInfo(n, p))
		}
	}
	return connect.NewResponse(resp), nil
}

func (s adminService) routeInfo(n *nodeRecord, p netip.Prefix) *api.RouteInfo {
	return &api.RouteInfo{
		Prefix: p.String(), NodeId: n.ID, Node: n.Name, Online: s.presence.sighting(n.ID).online,
		Approved: slices.Contains(n.Approved, p), Advertised: slices.Contains(n.Advertised, p),
	}
}

func (s adminService) ApproveRoute(ctx context.Context, req *connect.Request[api.ApproveRouteRequest]) (*connect.Response[api.ApproveRouteResponse], error) {
	p, err := parsePrefix(req.Msg.Prefix)
	if err != nil {
		return nil, err
	}
	n, err := s.changeNode(ctx, func(snap *snapshot) (nodeRecord, []Record, error) { return snap.approve(req.Msg.Node, p) })
	if err != nil {
		return nil, err
	}
	s.o.Log.Info("route approved", "prefix", p, "node", n.Name)
	return connect.NewResponse(&api.ApproveRouteResponse{Route: s.routeInfo(&n, p)}), nil
}

func (s adminService) WithdrawRoute(ctx context.Context, req *connect.Request[api.WithdrawRouteRequest]) (*connect.Response[api.WithdrawRouteResponse], error) {
	p, err := parsePrefix(req.Msg.Prefix)
	if err != nil {
		return nil, err
	}
	n, err := s.changeNode(ctx, func(snap *snapshot) (nodeRecord, []Record, error) { return snap.withdraw(req.Msg.Node, p) })
	if err != nil {
		return nil, err
	}
	s.o.Log.Info("route withdrawn", "prefix", p, "node", n.Name)
	return connect.NewResponse(&api.WithdrawRouteResponse{Route: s.routeInfo(&n, p)}), nil
}

func (s adminService) UpdateNode(ctx context.Context, req *connect.Request[api.UpdateNodeRequest]) (*connect.Response[api.UpdateNodeResponse], error) {
	m := req.Msg
	n, err := s.changeNode(ctx, func(snap *snapshot) (nodeRecord, []Record, error) {
		return snap.updateNode(m.Node, nodeUpdate{
			disabled: m.Disabled, approve: m.Approve, user: m.User, addTags: m.AddTags, noTags: m.RemoveTags,
		}, s.o.Now().UTC())
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&api.UpdateNodeResponse{Node: s.nodeInfo(s.ledger.now(), &n)}), nil
}

func inviteToWire(i InviteInfo) *api.InviteInfo {
	return &api.InviteInfo{
		Id: i.ID, Name: i.Name, Role: string(i.Role), Address: addrToWire(i.Address), Routes: prefixesToWire(i.Routes),
		Uses: uint32(i.Uses), Used: uint32(i.Used), CreatedAt: timeToWire(i.Created), ExpiresAt: timeToWire(i.Expires),
		State: string(i.State), User: i.User, NeedsApproval: i.NeedsApproval, KeyTtlMs: lifeToWire(i.KeyTTL),
	}
}

func inviteFromWire(w *api.InviteInfo) (InviteInfo, error) {
	i := InviteInfo{
		Invite: Invite{Name: w.Name, Role: Role(w.Role), Uses: int(w.Uses), User: w.User, NeedsApproval: w.NeedsApproval, KeyTTL: lifeFromWire(w.KeyTtlMs)},
		ID:     w.Id, Used: int(w.Used), Created: timeFromWire(w.CreatedAt), Expires: timeFromWire(w.ExpiresAt),
		State: InviteState(w.State),
	}
	i.TTL = i.Expires.Sub(i.Created)
	var err error
	if w.Address != "" {
		if i.Address, err = netip.ParseAddr(w.Address); err != nil {
			return i, err
		}
	}
	i.Routes, err = parsePrefixes(w.Routes)
	return i, err
}

func nodeInfoFromWire(w *api.NodeInfo) (NodeInfo, error) {
	n, err := nodeFromWire(w.GetMember())
	if err != nil {
		return NodeInfo{}, err
	}
	m, err := key.MachinePublicFromBytes(w.GetMachine())
	return NodeInfo{Node: n, Machine: m, Joined: timeFromWire(w.GetJoinedAt()), LastSeen: timeFromWire(w.GetLastSeenAt())}, err
}
