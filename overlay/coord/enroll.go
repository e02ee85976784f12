package coord

import (
	"net/netip"
	"slices"
	"time"

	"overlayd/overlay/key"
)

// errBadInvite is the same for an invite that never was and for a wrong
// secret: a stranger learns nothing.
var errBadInvite = problem(KindDenied, "ask for a new link: overlayd invite", "the invite is unknown, or its secret is wrong")

// enroll decides what an enrolment changes: the invite's use and the node are
// one commit. A machine that is a member already stays what it is, and its
// invite keeps its use.
func (s *snapshot) enroll(m key.MachinePublic, r EnrollRequest, id string, now time.Time) (nodeRecord, []Record, error) {
	if r.WireGuard.IsZero() {
		return nodeRecord{}, nil, problem(KindInvalid, "", "the enrolment has no WireGuard key")
	}
	advertised, err := checkAdvertised(r.Advertise, s.network.Overlay)
	if err != nil {
		return nodeRecord{}, nil, err
	}
	if other := s.byWireGuard[r.WireGuard]; other != nil && other.Host != "" {
		return nodeRecord{}, nil, problem(KindConflict, "join with a key of its own: a new --state-dir makes one",
			"the WireGuard key belongs to the device %s", other.Name)
	} else if other != nil && other.Machine != m {
		return nodeRecord{}, nil, problem(KindConflict, "a state directory was copied: delete the copy and join again",
			"the WireGuard key belongs to the node %s", other.Name)
	}
	if n := s.byMachine[m]; n != nil {
		if r.Renew {
			return s.renewBy(n, r, now)
		}
		next := *n
		if next.Advertised = advertised; next.WireGuard != r.WireGuard {
			next.WireGuard, next.Keyed = r.WireGuard, now
		}
		if r.Relay != nil && n.Relay != nil {
			next.Relay = r.Relay.record()
		}
		if next.WireGuard == n.WireGuard && slices.Equal(next.Advertised, n.Advertised) && next.Relay.equal(n.Relay) {
			return next, nil, nil
		}
		return next, []Record{putNode(next)}, nil
	}
	if r.Renew {
		return nodeRecord{}, nil, errNotMember
	}
	i := s.invites[r.Invite]
	if i == nil || !i.admits(r.Secret) {
		return nodeRecord{}, nil, errBadInvite
	}
	if err := i.usable(r.Role, now); err != nil {
		return nodeRecord{}, nil, err
	}
	return s.admit(*i, m, r, advertised, id, now)
}

// usable says why an invite admits nobody, or not in this role.
func (i *inviteRecord) usable(role Role, now time.Time) error {
	const hint = "ask for a new link: overlayd invite"
	switch i.state(now) {
	case InviteRevoked:
		return problem(KindDenied, hint, "the invite %s was revoked", i.ID)
	case InviteUsed:
		return problem(KindDenied, hint, "the invite %s is used up", i.ID)
	case InviteExpired:
		return problem(KindDenied, hint, "the invite %s expired at %s", i.ID, i.Expires.UTC().Format(time.RFC3339))
	}
	if role != "" && !role.valid() {
		return problem(KindInvalid, "it is member, gateway or relay", "%.80q is not a role", string(role))
	}
	if role == RoleRelay && i.Role != RoleRelay {
		return problem(KindDenied, "make one on the first relay with: overlayd invite --relay", "the invite %s is not for a relay", i.ID)
	}
	if role != RoleRelay && role != "" && i.Role == RoleRelay {
		return problem(KindInvalid, "run it on the VPS that is to be one: overlayd relay --join LINK --public ADDRESS", "the invite %s is for a relay", i.ID)
	}
	if role == RoleMember && i.Role == RoleGateway {
		return problem(KindInvalid, "run it on the gateway: overlayd gateway LINK", "the invite %s is for a gateway", i.ID)
	}
	return nil
}

// admit makes the node that an invite lets in.
func (s *snapshot) admit(i inviteRecord, m key.MachinePublic, r EnrollRequest, advertised []netip.Prefix, id string, now time.Time) (nodeRecord, []Record, error) {
	label, err := allocate(s.network.Overlay, s.occupancy(now), i.Address, i.ID)
	if err != nil {
		return nodeRecord{}, nil, err
	}
	wish := r.Name
	if i.Name != "" {
		wish = i.Name
		if i.Uses == 1 {
			if err := s.nameFree(i.Name); err != nil {
				return nodeRecord{}, nil, err
			}
		}
	}
	taken := func(name string) bool { return s.byName[name] != nil || s.namePromised(name, i.ID, now) }
	n := nodeRecord{
		ID: id, Name: uniqueName(wish, taken), Label: label, Role: r.Role, Machine: m, WireGuard: r.WireGuard,
		Advertised: advertised, Approved: i.Routes, Joined: now, Invite: i.ID,
	}
	if n.Role == "" {
		n.Role = i.Role
	}
	switch own := s.ownRelay(); {
	case n.Role == RoleRelay && r.Relay == nil && own != nil:
		return nodeRecord{}, nil, problem(KindInvalid, "run it with: overlayd relay --join LINK --public ADDRESS", "a relay has to say where it is")
	case n.Role == RoleRelay:
		n.Relay = r.Relay.record()
	}
	if n.Role == RoleGateway && r.Advertise == nil {
		n.Advertised = i.Routes // a gateway that names no prefix offers what it was invited for
	}
	if s.nodes[id] != nil {
		return nodeRecord{}, nil, problem(KindConflict, "try again", "the node id %s is taken", id)
	}
	n.Pending = i.NeedsApproval
	i.Used++
	changes := []Record{putInvite(i)}
	switch u := s.users[i.User]; {
	case n.Role != RoleMember:
	case i.User == "":
		own := s.ownUser(n.Name, "u"+id[1:], now)
		n.User = own.ID
		changes = append(changes, putUser(own))
	case u == nil || u.Disabled:
		return nodeRecord{}, nil, problem(KindDenied, "ask for a new link: overlayd invite", "the user whom the invite %s is for is disabled, or gone", i.ID)
	default:
		n.User = u.ID
	}
	if n.KeyTTL = i.KeyTTL; n.expires() {
		n = s.renewed(n, 0, now)
	}
	changes = append(changes, putNode(n))
	if _, ok := s.retired[label]; ok {
		changes = append(changes, drop(retiredKey(label)))
	}
	return n, changes, nil
}

// namePromised reports whether another open invite is for a node of that name.
func (s *snapshot) namePromised(name, except string, now time.Time) bool {
	for id, i := range s.invites {
		if i.Name == name && id != except && i.Uses == 1 && i.state(now) == InviteOpen {
			return true
		}
	}
	return false
}

// advertise decides what a node's new set of prefixes changes.
func (s *snapshot) advertise(id string, ps []netip.Prefix) ([]Record, error) {
	n := s.nodes[id]
	if n == nil {
		return nil, errNotMember
	}
	ps, err := checkAdvertised(ps, s.network.Overlay)
	if err != nil || slices.Equal(ps, n.Advertised) {
		return nil, err
	}
	next := *n
	next.Advertised = ps
	return []Record{putNode(next)}, nil
}

// errNotMember ends a node's Follow for good.
var errNotMember = problem(KindDenied, "ask for a new invite, and join again with its link", "this machine is not a member of the network, or was removed from it")
