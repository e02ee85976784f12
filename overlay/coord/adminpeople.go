package coord

import (
	"context"
	"time"

	"connectrpc.com/connect"

	"overlayd/overlay/coord/api"
)

// User is a person, as listed.
type User struct {
	ID       string
	Name     string
	Admin    bool
	Disabled bool
	Tags     []string
	Groups   []string // without those that only the policy knows
	Nodes    []string
	Created  time.Time
	SSHKeys  int
	Password bool // there is one for published pages
	Codes    bool // and a seed for the codes
}

// UserUpdate is a change of a user. What is nil or empty stays.
type UserUpdate struct {
	Name            *string
	Disabled, Admin *bool
	AddTags         []string
	RemoveTags      []string
}

// Group is a name for users.
type Group struct {
	ID       string
	Name     string
	Members  []string
	Disabled bool // it stands for nobody
}

// GroupUpdate is a change of a group. What is nil or empty stays.
type GroupUpdate struct {
	Name                      *string
	Disabled                  *bool
	AddMembers, RemoveMembers []string
}

// NodeUpdate is a change of a node. What is nil, false or empty stays.
type NodeUpdate struct {
	Disabled   *bool
	Approve    bool
	User       *string // whose it is; empty: nobody's
	AddTags    []string
	RemoveTags []string
}

// UpdateNode changes a node, named by id, name or address.
func (a *Admin) UpdateNode(ctx context.Context, node string, up NodeUpdate) (NodeInfo, error) {
	resp, err := a.c.UpdateNode(ctx, connect.NewRequest(&api.UpdateNodeRequest{
		Node: node, Disabled: up.Disabled, Approve: up.Approve, User: up.User, AddTags: up.AddTags, RemoveTags: up.RemoveTags,
	}))
	if err != nil {
		return NodeInfo{}, called("change node", err)
	}
	return nodeInfoFromWire(resp.Msg.Node)
}

// Users lists all users, by name.
func (a *Admin) Users(ctx context.Context) ([]User, error) {
	resp, err := a.c.ListUsers(ctx, connect.NewRequest(&api.ListUsersRequest{}))
	if err != nil {
		return nil, called("list users", err)
	}
	return each(resp.Msg.Users, userFromWire)
}

// AddUser makes a user, who is in groups that there are.
func (a *Admin) AddUser(ctx context.Context, name string, groups, tags []string) (User, error) {
	resp, err := a.c.AddUser(ctx, connect.NewRequest(&api.AddUserRequest{Name: name, Groups: groups, Tags: tags}))
	if err != nil {
		return User{}, called("add user", err)
	}
	return userFromWire(resp.Msg.User)
}

// UpdateUser changes a user, named by name or id.
func (a *Admin) UpdateUser(ctx context.Context, user string, up UserUpdate) (User, error) {
	resp, err := a.c.UpdateUser(ctx, connect.NewRequest(&api.UpdateUserRequest{
		User: user, Name: up.Name, Disabled: up.Disabled, Admin: up.Admin, AddTags: up.AddTags, RemoveTags: up.RemoveTags,
	}))
	if err != nil {
		return User{}, called("change user", err)
	}
	return userFromWire(resp.Msg.User)
}

// RemoveUser removes a user, with all nodes, grants, requests and open invites.
func (a *Admin) RemoveUser(ctx context.Context, user string) (User, error) {
	resp, err := a.c.RemoveUser(ctx, connect.NewRequest(&api.RemoveUserRequest{User: user}))
	if err != nil {
		return User{}, called("remove user", err)
	}
	return userFromWire(resp.Msg.User)
}

func userFromWire(w *api.UserInfo) (User, error) {
	return User{
		ID: w.GetId(), Name: w.GetName(), Admin: w.GetAdmin(), Disabled: w.GetDisabled(), Tags: w.GetTags(),
		Groups: w.GetGroups(), Nodes: w.GetNodes(), Created: timeFromWire(w.GetCreatedAt()),
		SSHKeys: int(w.GetSshKeys()), Password: w.GetPassword(), Codes: w.GetCodes(),
	}, nil
}

// Groups lists all groups, by name.
func (a *Admin) Groups(ctx context.Context) ([]Group, error) {
	resp, err := a.c.ListGroups(ctx, connect.NewRequest(&api.ListGroupsRequest{}))
	if err != nil {
		return nil, called("list groups", err)
	}
	return each(resp.Msg.Groups, groupFromWire)
}

// AddGroup makes a group.
func (a *Admin) AddGroup(ctx context.Context, name string, members []string) (Group, error) {
	resp, err := a.c.AddGroup(ctx, connect.NewRequest(&api.AddGroupRequest{Name: name, Members: members}))
	if err != nil {
		return Group{}, called("add group", err)
	}
	return groupFromWire(resp.Msg.Group)
}

// UpdateGroup changes a group, named by name or id.
func (a *Admin) UpdateGroup(ctx context.Context, group string, up GroupUpdate) (Group, error) {
	resp, err := a.c.UpdateGroup(ctx, connect.NewRequest(&api.UpdateGroupRequest{
		Group: group, Name: up.Name, Disabled: up.Disabled, AddMembers: up.AddMembers, RemoveMembers: up.RemoveMembers,
	}))
	if err != nil {
		return Group{}, called("change group", err)
	}
	return groupFromWire(resp.Msg.Group)
}

// RemoveGroup removes a group; its members stay.
func (a *Admin) RemoveGroup(ctx context.Context, group string) (Group, error) {
	resp, err := a.c.RemoveGroup(ctx, connect.NewRequest(&api.RemoveGroupRequest{Group: group}))
	if err != nil {
		return Group{}, called("remove group", err)
	}
	return groupFromWire(resp.Msg.Group)
}

func groupFromWire(w *api.GroupInfo) (Group, error) {
	return Group{ID: w.GetId(), Name: w.GetName(), Members: w.GetMembers(), Disabled: w.GetDisabled()}, nil
}
