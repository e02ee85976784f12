package coord

import (
	"time"

	"overlayd/overlay/key"
)

const (
	maxInviteUses = 10000
	maxInviteTTL  = 366 * 24 * time.Hour
	// keepInvites is for how long an invite is listed after its end.
	keepInvites = 30 * 24 * time.Hour
)

// invite decides what a new invite looks like in the store. Invites that ended
// long ago go in the same commit.
func (s *snapshot) invite(want Invite, id string, secret key.Secret, now time.Time) (inviteRecord, []Record, error) {
	rec := inviteRecord{
		ID: id, Name: want.Name, Role: want.Role, Address: want.Address, Uses: want.Uses, Created: now,
		NeedsApproval: want.NeedsApproval, KeyTTL: want.KeyTTL,
	}
	hash := secret.Hash()
	rec.Hash = hash[:]
	if err := rec.fill(want); err != nil {
		return rec, nil, err
	}
	if want.User != "" {
		u, err := s.user(want.User)
		switch {
		case err != nil:
			return rec, nil, err
		case u.Disabled:
			return rec, nil, problem(KindConflict, "overlayd users enable "+u.Name, "the user %s is disabled", u.Name)
		case rec.Role != RoleMember:
			return rec, nil, problem(KindInvalid, "leave --user out", "a %s is nobody's own machine", rec.Role)
		}
		rec.User = u.ID
	}
	rec.Expires = now.Add(ttlOf(want))
	var err error
	if rec.Routes, err = checkAdvertised(want.Routes, s.network.Overlay); err != nil {
		return rec, nil, err
	}
	if rec.Address.IsValid() {
		if _, err := allocate(s.network.Overlay, s.occupancy(now), rec.Address, id); err != nil {
			return rec, nil, err
		}
	}
	if rec.Name != "" && rec.Uses == 1 {
		if err := s.nameFree(rec.Name); err != nil {
			return rec, nil, err
		}
		for _, i := range s.invites {
			if i.Name == rec.Name && i.Uses == 1 && i.state(now) == InviteOpen {
				return rec, nil, problem(KindConflict, "use that invite, or revoke it: overlayd invite revoke "+i.ID,
					"the name %s is promised to the invite %s", rec.Name, i.ID)
			}
		}
	}
	if s.invites[id] != nil {
		return rec, nil, problem(KindConflict, "try again", "the invite id %s is taken", id)
	}
	changes := []Record{putInvite(rec)}
	for old, i := range s.invites {
		if now.Sub(i.Expires) > keepInvites {
			changes = append(changes, drop(keyInvite+old))
		}
	}
	return rec, changes, nil
}

func ttlOf(want Invite) time.Duration {
	if want.TTL == 0 {
		return DefaultInviteTTL
	}
	return want.TTL
}

// fill sets the defaults and refuses what makes no sense in itself.
func (i *inviteRecord) fill(want Invite) error {
	if i.Role == "" {
		i.Role = RoleMember
		if len(want.Routes) > 0 {
			i.Role = RoleGateway
		}
	}
	if i.Uses == 0 {
		i.Uses = 1
	}
	ttl := ttlOf(want)
	switch {
	case !i.Role.valid():
		return problem(KindInvalid, "it is member, gateway or relay", "%.80q is not a role", string(i.Role))
	case i.Role == RoleRelay && len(want.Routes) > 0:
		return problem(KindInvalid, "make one invite for the relay and one for the gateway", "a relay offers no routes")
	case i.Uses < 0 || i.Uses > maxInviteUses:
		return problem(KindInvalid, "make several invites", "an invite has between 1 and %d uses", maxInviteUses)
	case ttl < 0 || ttl > maxInviteTTL:
		return problem(KindInvalid, "make a new invite when it is needed", "an invite lives at most a year")
	case i.Address.IsValid() && i.Uses > 1:
		return problem(KindInvalid, "make one invite for each address", "an invite for one address has one use")
	case i.KeyTTL != 0 && i.Role != RoleMember:
		return problem(KindInvalid, "leave --key-ttl out", "the key of a %s does not expire", i.Role)
	case i.Name != "":
		if err := checkName(i.Name); err != nil {
			return err
		}
	}
	return checkKeyTTL(i.KeyTTL)
}

// nameFree refuses a name that a node has.
func (s *snapshot) nameFree(name string) error {
	if n := s.byName[name]; n != nil {
		return problem(KindConflict, "choose another name, or rename that node: overlayd nodes rename "+name+" NAME",
			"the name %s is taken by the node with the address %s", name, addrOf(s.network.Overlay, n.Label))
	}
	return nil
}

// revoke decides what revoking an invite changes.
func (s *snapshot) revoke(id string) ([]Record, error) {
	i := s.invites[id]
	if i == nil {
		return nil, problem(KindNotFound, "list them with: overlayd invite list", "there is no invite %.80q", id)
	}
	if i.Revoked {
		return nil, nil
	}
	r := *i
	r.Revoked = true
	return []Record{putInvite(r)}, nil
}

func (s *snapshot) inviteInfo(i *inviteRecord, now time.Time) InviteInfo {
	user := ""
	if u := s.users[i.User]; u != nil {
		user = u.Name
	}
	return InviteInfo{
		Invite: Invite{User: user, NeedsApproval: i.NeedsApproval, KeyTTL: i.KeyTTL, Name: i.Name, Role: i.Role, Address: i.Address, Routes: i.Routes, Uses: i.Uses, TTL: i.Expires.Sub(i.Created)},
		ID:     i.ID, Used: i.Used, Created: i.Created, Expires: i.Expires, State: i.state(now),
	}
}
