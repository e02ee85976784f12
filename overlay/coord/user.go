package coord

import (
	"maps"
	"slices"
	"strings"
	"time"

	"overlayd/overlay/policy"
)

// userRecord is a person. Names change, ids do not.
type userRecord struct {
	ID       string    `json:"id"`
	Name     string    `json:"name"`
	Admin    bool      `json:"admin,omitempty"`
	Disabled bool      `json:"disabled,omitempty"`
	Tags     []string  `json:"tags,omitempty"` // in order
	Created  time.Time `json:"created"`
}

// groupRecord is a name for users.
type groupRecord struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Members []string  `json:"members,omitempty"` // ids of users, in order
	Created time.Time `json:"created"`

	Disabled bool `json:"disabled,omitempty"` // it stands for nobody
}

func putUser(u userRecord) Record   { return put(keyUser+u.ID, u) }
func putGroup(g groupRecord) Record { return put(keyGroup+g.ID, g) }

// checkWord refuses what a policy could not name: kind is user, group or tag.
func checkWord(kind, s string) error {
	if _, err := policy.ParseSource(kind + ":" + s); err != nil || strings.TrimSpace(s) != s {
		return problem(KindInvalid, "a name has letters, digits and . _ - @, begins with a letter or digit, is no address and no word of the policy, and has 64 of them at most",
			"%.80q is not a name for a %s", s, kind)
	}
	return nil
}

// reservedName reports whether a name has another meaning in a policy.
func reservedName(s string) bool { return checkWord("user", s) != nil }

// wishedWord is a name for the hint that says how to make what has it: what was
// asked for, if that may be one.
func wishedWord(s string) string {
	if reservedName(s) {
		return "NAME"
	}
	return s
}

// user finds a user by id or name.
func (s *snapshot) user(ref string) (*userRecord, error) {
	if u := s.users[ref]; u != nil {
		return u, nil
	}
	if u := s.userByName[ref]; u != nil {
		return u, nil
	}
	return nil, problem(KindNotFound, policy.DidYouMean(ref, slices.Sorted(maps.Keys(s.userByName)), "list them with: overlayd users; add one with: overlayd users add "+wishedWord(ref)),
		"there is no user %.80q", ref)
}

func (s *snapshot) group(ref string) (*groupRecord, error) {
	if g := s.groups[ref]; g != nil {
		return g, nil
	}
	if g := s.groupByName[ref]; g != nil {
		return g, nil
	}
	hint := "list them with: overlayd groups; add one with: overlayd groups add " + wishedWord(ref)
	if s.policyNames("group", ref) {
		hint = "it is in the policy only: overlayd policy show; overlayd groups add " + ref + " makes it one of the network's"
	}
	return nil, problem(KindNotFound, policy.DidYouMean(ref, slices.Sorted(maps.Keys(s.groupByName)), hint), "there is no group %.80q", ref)
}

// wordFree refuses a name that a user or a group has, or nearly has: in a policy
// the two are written alike.
func (s *snapshot) wordFree(kind, name string) error {
	if err := checkWord(kind, name); err != nil {
		return err
	}
	for _, u := range s.users {
		if strings.EqualFold(u.Name, name) {
			return problem(KindConflict, "choose another name, or rename that user: overlayd users rename "+u.Name+" NAME", "the name %s is taken by the user %s", name, u.Name)
		}
	}
	for _, g := range s.groups {
		if strings.EqualFold(g.Name, name) {
			return problem(KindConflict, "choose another name, or rename that group: overlayd groups rename "+g.Name+" NAME", "the name %s is taken by the group %s", name, g.Name)
		}
	}
	return nil
}

// addUser decides what a new user changes.
func (s *snapshot) addUser(name, id string, groups, tags []string, now time.Time) (userRecord, []Record, error) {
	if err := s.wordFree("user", name); err != nil {
		return userRecord{}, nil, err
	}
	u := userRecord{ID: id, Name: name, Created: now}
	var err error
	if u.Tags, err = retag(nil, tags, nil); err != nil {
		return u, nil, err
	}
	changes := []Record{putUser(u)}
	for _, ref := range slices.Compact(slices.Sorted(slices.Values(groups))) {
		g, err := s.group(ref)
		if err != nil {
			return u, nil, err
		}
		changes = append(changes, putGroup(g.with(u.ID)))
	}
	return u, changes, nil
}

// userUpdate is a change of a user. Nil leaves a thing as it is.
type userUpdate struct {
	name            *string
	disabled, admin *bool
	addTags, noTags []string
}

// updateUser decides what a change of a user changes: the passes of whoever is
// disabled are worth nothing from then on.
func (s *snapshot) updateUser(ref string, up userUpdate, now time.Time) (userRecord, []Record, error) {
	old, err := s.user(ref)
	if err != nil {
		return userRecord{}, nil, err
	}
	u := *old
	if up.name != nil && *up.name != u.Name {
		if !strings.EqualFold(*up.name, u.Name) {
			if err := s.wordFree("user", *up.name); err != nil {
				return u, nil, err
			}
		}
		if err := checkWord("user", *up.name); err != nil {
			return u, nil, err
		}
		if s.policyNames("user", u.Name) {
			return u, nil, problem(KindConflict, "take the name out of the policy first: overlayd policy show", "the policy names the user %s", u.Name)
		}
		u.Name = *up.name
	}
	if up.disabled != nil {
		u.Disabled = *up.disabled
	}
	if up.admin != nil {
		u.Admin = *up.admin
	}
	if u.Tags, err = retag(u.Tags, up.addTags, up.noTags); err != nil {
		return u, nil, err
	}
	if sameRecord(putUser(u), putUser(*old)) {
		return u, nil, nil
	}
	changes := []Record{putUser(u)}
	if u.Disabled && !old.Disabled {
		for _, n := range s.nodesOf(u.ID) {
			changes = append(changes, putNode(n.barred(now)))
		}
		if l := s.logins[u.ID]; l != nil { // what was proved before counts no more, also once enabled again
			barred := *l
			barred.Changed = now
			changes = append(changes, putLogin(barred))
		}
	}
	return u, changes, nil
}

// removeUser decides what the removal of a user changes: the nodes, grants,
// requests and open invites go too.
func (s *snapshot) removeUser(ref string, now time.Time) (userRecord, []Record, error) {
	u, err := s.user(ref)
	if err != nil {
		return userRecord{}, nil, err
	}
	changes := append(s.endUser(u, now), drop(keyUser+u.ID))
	for _, k := range s.sshKeysOf(u.ID) {
		changes = append(changes, drop(keySSHKey+k.ID))
	}
	if s.logins[u.ID] != nil {
		changes = append(changes, drop(keyLogin+u.ID))
	}
	for _, n := range s.nodesOf(u.ID) {
		changes = append(changes, s.dropped(n, now)...)
	}
	for _, g := range s.groupsByName() {
		if slices.Contains(g.Members, u.ID) {
			changes = append(changes, putGroup(g.without(u.ID)))
		}
	}
	return *u, changes, nil
}

// endUser takes away what was given to a user besides the policy.
func (s *snapshot) endUser(u *userRecord, now time.Time) (changes []Record) {
	for _, g := range s.grantsByID() {
		if g.User == u.ID {
			changes = append(changes, drop(keyGrant+g.ID))
		}
	}
	for id, r := range s.requests {
		if r.User == u.ID {
			changes = append(changes, drop(keyRequest+id))
		}
	}
	for _, e := range s.exposuresByAge() {
		if e.User == u.ID {
			changes = append(changes, drop(keyExposure+e.ID))
		}
	}
	for _, i := range s.invites {
		if i.User == u.ID && i.state(now) == InviteOpen {
			r := *i
			r.Revoked = true
			changes = append(changes, putInvite(r))
		}
	}
	return changes
}

// nodesOf returns a user's nodes, by label.
func (s *snapshot) nodesOf(user string) (list []*nodeRecord) {
	for _, n := range s.nodesByLabel() {
		if n.User == user {
			list = append(list, n)
		}
	}
	return list
}

// barred is the node with passes that are worth nothing.
func (n *nodeRecord) barred(now time.Time) nodeRecord {
	next := *n
	next.Barred = now
	return next
}

// addGroup decides what a new group changes.
func (s *snapshot) addGroup(name, id string, members []string, now time.Time) (groupRecord, []Record, error) {
	if err := s.wordFree("group", name); err != nil {
		return groupRecord{}, nil, err
	}
	g := groupRecord{ID: id, Name: name, Created: now}
	for _, ref := range members {
		u, err := s.user(ref)
		if err != nil {
			return g, nil, err
		}
		g = g.with(u.ID)
	}
	return g, []Record{putGroup(g)}, nil
}

// groupUpdate is a change of a group. Nil leaves a thing as it is.
type groupUpdate struct {
	name        *string
	disabled    *bool
	add, remove []string // users
}

// updateGroup decides what a change of a group changes.
func (s *snapshot) updateGroup(ref string, up groupUpdate) (groupRecord, []Record, error) {
	old, err := s.group(ref)
	if err != nil {
		return groupRecord{}, nil, err
	}
	g := *old
	if up.name != nil && *up.name != g.Name {
		if err := s.wordFree("group", *up.name); err != nil {
			return g, nil, err
		}
		if s.policyNames("group", g.Name) {
			return g, nil, problem(KindConflict, "take the name out of the policy first: overlayd policy show", "the policy names the group %s", g.Name)
		}
		g.Name = *up.name
	}
	if up.disabled != nil {
		g.Disabled = *up.disabled
	}
	for _, m := range up.add {
		u, err := s.user(m)
		if err != nil {
			return g, nil, err
		}
		g = g.with(u.ID)
	}
	for _, m := range up.remove {
		u, err := s.user(m)
		if err != nil {
			return g, nil, err
		}
		if !slices.Contains(g.Members, u.ID) {
			return g, nil, problem(KindNotFound, "list them with: overlayd groups", "the user %s is not in the group %s", u.Name, g.Name)
		}
		g = g.without(u.ID)
	}
	if sameRecord(putGroup(g), putGroup(*old)) {
		return g, nil, nil
	}
	return g, []Record{putGroup(g)}, nil
}

// removeGroup decides what the removal of a group changes.
func (s *snapshot) removeGroup(ref string) (groupRecord, []Record, error) {
	g, err := s.group(ref)
	if err != nil {
		return groupRecord{}, nil, err
	}
	if s.policyNames("group", g.Name) {
		return *g, nil, problem(KindConflict, "take the name out of the policy first: overlayd policy show", "the policy names the group %s", g.Name)
	}
	return *g, []Record{drop(keyGroup + g.ID)}, nil
}

func (g *groupRecord) with(user string) groupRecord {
	next := *g
	next.Members = slices.Compact(slices.Sorted(slices.Values(append(slices.Clone(g.Members), user))))
	return next
}

func (g *groupRecord) without(user string) groupRecord {
	next := *g
	next.Members = slices.DeleteFunc(slices.Clone(g.Members), func(m string) bool { return m == user })
	return next
}

// policyNames reports whether the policy in force has a name in it: whoever gets
// that name gets what the policy gives it.
func (s *snapshot) policyNames(kind, name string) bool {
	if s.standing == nil {
		return false
	}
	p := s.standing.policy
	is := func(t policy.Term) bool {
		return t.Name == name && (kind == "user" && t.Kind == policy.KindUser || kind == "group" && t.Kind == policy.KindGroup)
	}
	for _, g := range p.Groups {
		if kind == "user" && slices.Contains(g.Members, name) || kind == "group" && g.Name == name {
			return true
		}
	}
	for _, r := range p.Rules {
		if slices.ContainsFunc(r.Src, is) {
			return true
		}
	}
	return slices.ContainsFunc(p.Tests, func(t policy.Test) bool { return is(t.Who) })
}

// ownUser makes the user of a node that was invited for nobody in particular:
// one of its own, with a name that gives it nothing.
func (s *snapshot) ownUser(node, id string, now time.Time) userRecord {
	taken := func(name string) bool {
		return s.wordFree("user", name) != nil || s.policyNames("user", name) || s.policyNames("group", name)
	}
	return userRecord{ID: id, Name: uniqueName(node, taken), Created: now}
}

// retag adds and removes tags.
func retag(tags, add, remove []string) ([]string, error) {
	for _, t := range append(slices.Clone(add), remove...) {
		if err := checkWord("tag", t); err != nil {
			return nil, err
		}
	}
	next := slices.DeleteFunc(append(slices.Clone(tags), add...), func(t string) bool { return slices.Contains(remove, t) })
	slices.Sort(next)
	next = slices.Compact(next)
	if len(next) > maxTags {
		return nil, problem(KindInvalid, "use a group in the policy instead", "there are %d tags; %d are the most", len(next), maxTags)
	}
	if len(next) == 0 {
		return nil, nil
	}
	return next, nil
}

// maxTags bounds what travels with every node.
const maxTags = 32

// nodeUpdate is a change of a node. Nil leaves a thing as it is.
type nodeUpdate struct {
	disabled        *bool
	approve         bool
	user            *string // empty: nobody's
	addTags, noTags []string
}

// updateNode decides what a change of a node changes.
func (s *snapshot) updateNode(ref string, up nodeUpdate, now time.Time) (nodeRecord, []Record, error) {
	old, err := s.node(ref)
	if err != nil {
		return nodeRecord{}, nil, err
	}
	n := *old
	if up.approve {
		n.Pending = false
	}
	if up.disabled != nil {
		if *up.disabled && old == s.ownRelay() {
			return n, nil, problem(KindConflict, "stop overlayd there instead", "%s is the coordinator itself", n.Name)
		}
		if *up.disabled && !n.Disabled {
			n.Barred = now
		}
		n.Disabled = *up.disabled
	}
	if up.user != nil {
		switch {
		case n.Seat:
			return n, nil, problem(KindInvalid, "", "%s is the place of its user on another machine, and nobody else's", n.Name)
		case *up.user == "":
			n.User = ""
		case n.Role != RoleMember:
			return n, nil, problem(KindInvalid, "give it a tag: overlayd nodes tag", "a %s is nobody's own machine", n.Role)
		default:
			u, err := s.user(*up.user)
			if err != nil {
				return n, nil, err
			}
			n.User = u.ID
		}
	}
	if n.Tags, err = retag(n.Tags, up.addTags, up.noTags); err != nil {
		return n, nil, err
	}
	if sameRecord(putNode(n), putNode(*old)) {
		return n, nil, nil
	}
	return n, []Record{putNode(n)}, nil
}
