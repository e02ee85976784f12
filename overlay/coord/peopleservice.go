package coord

import (
	"context"
	"slices"
	"time"

	"connectrpc.com/connect"

	"overlayd/overlay/coord/api"
	"overlayd/overlay/policy"
)

func (s adminService) userInfo(snap *snapshot, u *userRecord) *api.UserInfo {
	w := &api.UserInfo{
		Id: u.ID, Name: u.Name, Admin: u.Admin, Disabled: u.Disabled, Tags: u.Tags, CreatedAt: timeToWire(u.Created),
	}
	for _, g := range snap.groupsByName() {
		if slices.Contains(g.Members, u.ID) {
			w.Groups = append(w.Groups, g.Name)
		}
	}
	for _, n := range snap.nodesOf(u.ID) {
		w.Nodes = append(w.Nodes, n.Name)
	}
	w.SshKeys = uint32(len(snap.sshKeysOf(u.ID)))
	if l := snap.logins[u.ID]; l != nil {
		w.Password, w.Codes = l.Hash != "", len(l.Seed) > 0
	}
	return w
}

func (s adminService) ListUsers(context.Context, *connect.Request[api.ListUsersRequest]) (*connect.Response[api.ListUsersResponse], error) {
	snap, resp := s.ledger.now(), &api.ListUsersResponse{}
	for _, u := range snap.usersByName() {
		resp.Users = append(resp.Users, s.userInfo(snap, u))
	}
	return connect.NewResponse(resp), nil
}

// changeUser makes a change of one user, and returns the user after it.
func (s adminService) changeUser(ctx context.Context, decide func(*snapshot) (userRecord, []Record, error)) (*api.UserInfo, error) {
	var u userRecord
	err := s.ledger.change(ctx, func(snap *snapshot) (changes []Record, err error) {
		u, changes, err = decide(snap)
		return changes, err
	})
	if err != nil {
		return nil, err
	}
	return s.userInfo(s.ledger.now(), &u), nil
}

func (s adminService) AddUser(ctx context.Context, req *connect.Request[api.AddUserRequest]) (*connect.Response[api.AddUserResponse], error) {
	id := newID("u", 11)
	u, err := s.changeUser(ctx, func(snap *snapshot) (userRecord, []Record, error) {
		return snap.addUser(req.Msg.Name, id, req.Msg.Groups, req.Msg.Tags, s.o.Now().UTC())
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&api.AddUserResponse{User: u}), nil
}

func (s adminService) UpdateUser(ctx context.Context, req *connect.Request[api.UpdateUserRequest]) (*connect.Response[api.UpdateUserResponse], error) {
	m := req.Msg
	u, err := s.changeUser(ctx, func(snap *snapshot) (userRecord, []Record, error) {
		return snap.updateUser(m.User, userUpdate{
			name: m.Name, disabled: m.Disabled, admin: m.Admin, addTags: m.AddTags, noTags: m.RemoveTags,
		}, s.o.Now().UTC())
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&api.UpdateUserResponse{User: u}), nil
}

func (s adminService) RemoveUser(ctx context.Context, req *connect.Request[api.RemoveUserRequest]) (*connect.Response[api.RemoveUserResponse], error) {
	u, err := s.changeUser(ctx, func(snap *snapshot) (userRecord, []Record, error) {
		return snap.removeUser(req.Msg.User, s.o.Now().UTC())
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&api.RemoveUserResponse{User: u}), nil
}

func groupToWire(snap *snapshot, g *groupRecord) *api.GroupInfo {
	w := &api.GroupInfo{Id: g.ID, Name: g.Name, Disabled: g.Disabled}
	for _, m := range g.Members {
		if u := snap.users[m]; u != nil {
			w.Members = append(w.Members, u.Name)
		}
	}
	slices.Sort(w.Members)
	return w
}

func (s adminService) ListGroups(context.Context, *connect.Request[api.ListGroupsRequest]) (*connect.Response[api.ListGroupsResponse], error) {
	snap, resp := s.ledger.now(), &api.ListGroupsResponse{}
	for _, g := range snap.groupsByName() {
		resp.Groups = append(resp.Groups, groupToWire(snap, g))
	}
	return connect.NewResponse(resp), nil
}

func (s adminService) changeGroup(ctx context.Context, decide func(*snapshot) (groupRecord, []Record, error)) (*api.GroupInfo, error) {
	var g groupRecord
	err := s.ledger.change(ctx, func(snap *snapshot) (changes []Record, err error) {
		g, changes, err = decide(snap)
		return changes, err
	})
	if err != nil {
		return nil, err
	}
	return groupToWire(s.ledger.now(), &g), nil
}

func (s adminService) AddGroup(ctx context.Context, req *connect.Request[api.AddGroupRequest]) (*connect.Response[api.AddGroupResponse], error) {
	id := newID("g", 11)
	g, err := s.changeGroup(ctx, func(snap *snapshot) (groupRecord, []Record, error) {
		return snap.addGroup(req.Msg.Name, id, req.Msg.Members, s.o.Now().UTC())
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&api.AddGroupResponse{Group: g}), nil
}

func (s adminService) UpdateGroup(ctx context.Context, req *connect.Request[api.UpdateGroupRequest]) (*connect.Response[api.UpdateGroupResponse], error) {
	m := req.Msg
	g, err := s.changeGroup(ctx, func(snap *snapshot) (groupRecord, []Record, error) {
		return snap.updateGroup(m.Group, groupUpdate{name: m.Name, disabled: m.Disabled, add: m.AddMembers, remove: m.RemoveMembers})
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&api.UpdateGroupResponse{Group: g}), nil
}

func (s adminService) RemoveGroup(ctx context.Context, req *connect.Request[api.RemoveGroupRequest]) (*connect.Response[api.RemoveGroupResponse], error) {
	g, err := s.changeGroup(ctx, func(snap *snapshot) (groupRecord, []Record, error) { return snap.removeGroup(req.Msg.Group) })
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&api.RemoveGroupResponse{Group: g}), nil
}

func policyToWire(p *policyRecord) *api.PolicyInfo {
	return &api.PolicyInfo{Version: p.Version, By: p.By, At: timeToWire(p.At)}
}

func (s adminService) GetPolicy(_ context.Context, req *connect.Request[api.GetPolicyRequest]) (*connect.Response[api.GetPolicyResponse], error) {
	snap, version := s.ledger.now(), req.Msg.Version
	if version == 0 {
		version = snap.policyVersion()
	}
	p := snap.policies[version]
	if p == nil {
		return nil, problem(KindNotFound, "list them with: overlayd policy versions", "there is no version %d of the policy, or it is kept no more", version)
	}
	resp := &api.GetPolicyResponse{Policy: policyToWire(p), Text: p.Text}
	for v := uint64(1); v <= snap.policyVersion(); v++ {
		if p := snap.policies[v]; p != nil {
			resp.Versions = append(resp.Versions, policyToWire(p))
		}
	}
	return connect.NewResponse(resp), nil
}

func (s adminService) TryPolicy(_ context.Context, req *connect.Request[api.TryPolicyRequest]) (*connect.Response[api.TryPolicyResponse], error) {
	snap, text := s.ledger.now(), req.Msg.Text
	if text == "" {
		if p := snap.policies[snap.policyVersion()]; p != nil {
			text = p.Text
		}
	}
	t, err := snap.tryPolicy(text)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&api.TryPolicyResponse{Changes: t.changes, Tests: uint32(t.tests), Warnings: t.warnings}), nil
}

func (s adminService) ApplyPolicy(ctx context.Context, req *connect.Request[api.ApplyPolicyRequest]) (*connect.Response[api.ApplyPolicyResponse], error) {
	var p policyRecord
	var t tried
	err := s.ledger.change(ctx, func(snap *snapshot) (changes []Record, err error) {
		p, t, changes, err = snap.applyPolicy(req.Msg.Text, actOf(ctx).who, s.o.Now().UTC())
		return changes, err
	})
	if err != nil {
		return nil, err
	}
	s.o.Log.Info("policy in force", "version", p.Version, "by", p.By)
	return connect.NewResponse(&api.ApplyPolicyResponse{Policy: policyToWire(&p), Changes: t.changes, Tests: uint32(t.tests), Warnings: t.warnings}), nil
}

func grantToWire(snap *snapshot, g *grantRecord, warning func(policy.Target) string) *api.GrantInfo {
	w := &api.GrantInfo{Id: g.ID, Target: g.Target, Until: timeToWire(g.Until), By: g.By, CreatedAt: timeToWire(g.Created)}
	if u := snap.users[g.User]; u != nil {
		w.User = u.Name
	}
	if to, err := policy.ParseTarget(g.Target); err == nil { // it was checked when the grant was made
		w.Warning = warning(to)
	}
	return w
}

func (s adminService) changeGrant(ctx context.Context, decide func(*snapshot) (grantRecord, []Record, error)) (*api.GrantInfo, error) {
	var g grantRecord
	err := s.ledger.change(ctx, func(snap *snapshot) (changes []Record, err error) {
		g, changes, err = decide(snap)
		return changes, err
	})
	if err != nil {
		return nil, err
	}
	snap := s.ledger.now()
	return grantToWire(snap, &g, snap.standing.warning()), nil
}

func (s adminService) AddGrant(ctx context.Context, req *connect.Request[api.AddGrantRequest]) (*connect.Response[api.AddGrantResponse], error) {
	m, id := req.Msg, newID("a", 9)
	g, err := s.changeGrant(ctx, func(snap *snapshot) (grantRecord, []Record, error) {
		return snap.grant(m.User, m.Target, time.Duration(m.ForMs)*time.Millisecond, id, actOf(ctx).who, s.o.Now().UTC())
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&api.AddGrantResponse{Grant: g}), nil
}

func (s adminService) ListGrants(ctx context.Context, _ *connect.Request[api.ListGrantsRequest]) (*connect.Response[api.ListGrantsResponse], error) {
	snap, resp, now := s.ledger.now(), &api.ListGrantsResponse{}, s.o.Now()
	warning := snap.standing.warning()
	for _, g := range snap.grantsByID() {
		if now.Before(g.Until) && s.sees(ctx, snap, g.User) {
			resp.Grants = append(resp.Grants, grantToWire(snap, g, warning))
		}
	}
	return connect.NewResponse(resp), nil
}

func requestToWire(snap *snapshot, r *requestRecord) *api.AccessRequest {
	w := &api.AccessRequest{Id: r.ID, Node: r.Node, Target: r.Target, ForMs: r.For.Milliseconds(), CreatedAt: timeToWire(r.Created)}
	if u := snap.users[r.User]; u != nil {
		w.User = u.Name
	}
	return w
}

func (s adminService) RequestAccess(ctx context.Context, req *connect.Request[api.RequestAccessRequest]) (*connect.Response[api.RequestAccessResponse], error) {
	from := actOf(ctx).member
	if from == nil {
		return nil, problem(KindInvalid, "run it on the machine of a user, or grant it: overlayd grant USER TARGET", "this machine is the coordinator's own")
	}
	var r requestRecord
	id := newID("r", 9)
	err := s.ledger.change(ctx, func(snap *snapshot) (changes []Record, err error) {
		r, changes, err = snap.request(from, req.Msg.Target, time.Duration(req.Msg.ForMs)*time.Millisecond, id, s.o.Now().UTC())
		return changes, err
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&api.RequestAccessResponse{Request: requestToWire(s.ledger.now(), &r)}), nil
}

// ListRequests lists all to an admin, and to others their own.
func (s adminService) ListRequests(ctx context.Context, _ *connect.Request[api.ListRequestsRequest]) (*connect.Response[api.ListRequestsResponse], error) {
	snap, resp := s.ledger.now(), &api.ListRequestsResponse{}
	for _, r := range snap.requestsByAge() {
		if s.sees(ctx, snap, r.User) {
			resp.Requests = append(resp.Requests, requestToWire(snap, r))
		}
	}
	return connect.NewResponse(resp), nil
}

// sees reports whether the caller may see what belongs to a user.
func (s adminService) sees(ctx context.Context, snap *snapshot, user string) bool {
	n := actOf(ctx).member
	if n == nil {
		return true
	}
	u := ownerOf(snap, n)
	return u != nil && (u.Admin || u.ID == user)
}

func (s adminService) ApproveRequest(ctx context.Context, req *connect.Request[api.ApproveRequestRequest]) (*connect.Response[api.ApproveRequestResponse], error) {
	m, id := req.Msg, newID("a", 9)
	g, err := s.changeGrant(ctx, func(snap *snapshot) (grantRecord, []Record, error) {
		return snap.approveRequest(m.Id, time.Duration(m.ForMs)*time.Millisecond, id, actOf(ctx).who, s.o.Now().UTC())
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&api.ApproveRequestResponse{Grant: g}), nil
}

func (s adminService) DenyRequest(ctx context.Context, req *connect.Request[api.DenyRequestRequest]) (*connect.Response[api.DenyRequestResponse], error) {
	err := s.ledger.change(ctx, func(snap *snapshot) ([]Record, error) {
		r, err := snap.requestOf(req.Msg.Id)
		if err != nil {
			return nil, err
		}
		return []Record{drop(keyRequest + r.ID)}, nil
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&api.DenyRequestResponse{}), nil
}

func (s adminService) Revoke(ctx context.Context, req *connect.Request[api.RevokeRequest]) (*connect.Response[api.RevokeResponse], error) {
	r, err := s.revokeNow(ctx, req.Msg.What)
	if err != nil {
		return nil, err
	}
	resp := &api.RevokeResponse{Kind: r.Kind, Name: r.Name, TookMs: r.Took.Milliseconds()}
	for _, a := range r.Nodes {
		resp.Nodes = append(resp.Nodes, &api.NodeAck{Node: a.Node, Online: a.Online, Applied: a.Applied, FlowsCut: uint32(a.FlowsCut)})
	}
	return connect.NewResponse(resp), nil
}
