package coord

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"overlayd/overlay/key"
	"overlayd/overlay/policy"
)

// standing is who may reach what: the policy in force, with its grants, applied
// to the members. It never changes.
type standing struct {
	version  uint64 // of the policy
	policy   *policy.Policy
	world    policy.World
	grants   []policy.Grant
	behind   []behind
	resolved *policy.Resolved // only For and Peers: they change nothing in it
}

// behind is an approved prefix of a node that takes part.
type behind struct {
	prefix netip.Prefix
	label  uint32
}

// bearsOnAccess reports whether a change may change who reaches what.
func bearsOnAccess(r Record) bool {
	for _, prefix := range []string{keyNode, keyUser, keyGroup, keyPolicy, keyGrant} {
		if strings.HasPrefix(r.Key, prefix) {
			return true
		}
	}
	return false
}

// stand works out the standing. An unchanged policy is not read again.
func (s *snapshot) stand() error {
	next := &standing{version: s.policyVersion()}
	rec := s.policies[next.version]
	switch {
	case rec == nil: // a store from before there were policies, until it is upgraded
		s.standing = nil
		return nil
	case s.standing != nil && s.standing.version == next.version:
		next.policy = s.standing.policy
	default:
		p, err := policy.Parse([]byte(rec.Text))
		if err != nil {
			return fmt.Errorf("policy %d: %w", rec.Version, err)
		}
		next.policy = p
	}
	next.world, next.behind = s.world(), s.behind()
	for _, g := range s.grantsByID() {
		if u := s.users[g.User]; u != nil {
			if to, err := policy.ParseTarget(g.Target); err == nil { // it was checked when the grant was made
				next.grants = append(next.grants, policy.Grant{ID: g.ID, User: u.Name, To: to, Until: g.Until})
			}
		}
	}
	next.resolved = policy.Resolve(next.policy, next.world, next.grants)
	s.standing = next
	return nil
}

// answer returns a standing of one's own for questions, which policy.Resolved
// remembers.
func (t *standing) answer() *policy.Resolved {
	return policy.Resolve(t.policy, t.world, t.grants)
}

// warning says why a grant may open nothing.
func (t *standing) warning() func(policy.Target) string {
	if t == nil { // a store from before there were policies, which has no grants
		return func(policy.Target) string { return "" }
	}
	return t.policy.Warning(t.world)
}

// policyVersion returns the version in force.
func (s *snapshot) policyVersion() (newest uint64) {
	for v := range s.policies {
		newest = max(newest, v)
	}
	return newest
}

// world returns the members as a policy sees them, in order.
func (s *snapshot) world() policy.World {
	var w policy.World
	in := map[string][]string{} // by user id
	for _, g := range s.groupsByName() {
		w.Groups = append(w.Groups, g.Name)
		if g.Disabled {
			w.Idle = append(w.Idle, g.Name)
		}
		for _, m := range g.Members {
			in[m] = append(in[m], g.Name)
		}
	}
	for _, u := range s.usersByName() {
		w.Users = append(w.Users, policy.User{Name: u.Name, Groups: in[u.ID], Tags: u.Tags, Disabled: u.Disabled})
	}
	for _, n := range s.nodesByLabel() {
		v := policy.Node{
			Name: n.Name, Role: policy.Role(n.Role), Tags: n.Tags, Disabled: s.stateOf(n) != NodeActive,
			Addresses: []netip.Addr{addrOf(s.network.Overlay, n.Label)}, Seat: n.Seat,
		}
		if h := s.nodes[n.Host]; h != nil {
			v.Host = h.Name
		}
		if u := s.users[n.User]; u != nil {
			v.User = u.Name
		}
		for _, r := range n.routes() {
			if r.Approved {
				v.Routes = append(v.Routes, r.Prefix)
			}
		}
		w.Nodes = append(w.Nodes, v)
	}
	return w
}

// stateOf says whether a node may take part.
func (s *snapshot) stateOf(n *nodeRecord) NodeState {
	switch u := s.users[n.User]; {
	case n.Disabled, n.User != "" && (u == nil || u.Disabled), n.Host != "" && s.nodes[n.Host] == nil:
		return NodeDisabled
	case n.Pending:
		return NodePending
	case n.Expired:
		return NodeExpired
	}
	return NodeActive
}

// userOf returns the name of whose node it is.
func (s *snapshot) userOf(n *nodeRecord) string {
	if u := s.users[n.User]; u != nil {
		return u.Name
	}
	return ""
}

// peersOf returns the nodes that belong on a node's map, by label.
func (s *snapshot) peersOf(n *nodeRecord) map[uint32]*nodeRecord {
	peers := map[uint32]*nodeRecord{}
	if s.standing == nil || s.stateOf(n) != NodeActive {
		return peers
	}
	for _, name := range s.standing.resolved.Peers(n.Name) {
		if p := s.byName[name]; p != nil {
			peers[p.Label] = p
		}
	}
	return peers
}

// behind lists what lies behind the nodes that take part, in order.
func (s *snapshot) behind() (list []behind) {
	for _, n := range s.nodes {
		for _, r := range n.routes() {
			if r.Approved && s.stateOf(n) == NodeActive {
				list = append(list, behind{r.Prefix, n.Label})
			}
		}
	}
	slices.SortFunc(list, func(a, b behind) int { return cmp.Or(a.prefix.Compare(b.prefix), cmp.Compare(a.label, b.label)) })
	return list
}

// closedTo lists the prefixes of which a member may reach nothing: those that
// neither it nor any of its peers has. Gateways and relays are nobody's, and hear
// of none.
func (s *snapshot) closedTo(n *nodeRecord, peers map[uint32]*nodeRecord) (list []netip.Prefix) {
	if s.standing == nil || n.Role != RoleMember || s.stateOf(n) != NodeActive {
		return nil
	}
	all := s.standing.behind
	for len(all) > 0 {
		prefix, open := all[0].prefix, false
		for ; len(all) > 0 && all[0].prefix == prefix; all = all[1:] {
			open = open || all[0].label == n.Label || peers[all[0].label] != nil
		}
		if !open {
			list = append(list, prefix)
		}
	}
	return list
}

// rulesetOf returns what a node lets in.
func (s *snapshot) rulesetOf(n *nodeRecord) *policy.Ruleset {
	r := policy.Ruleset{Node: n.Name}
	if s.standing != nil {
		r = s.standing.resolved.For(n.Name)
	}
	return &r
}

func (s *snapshot) usersByName() []*userRecord {
	return slices.SortedFunc(maps.Values(s.users), func(a, b *userRecord) int { return strings.Compare(a.Name, b.Name) })
}

func (s *snapshot) groupsByName() []*groupRecord {
	return slices.SortedFunc(maps.Values(s.groups), func(a, b *groupRecord) int { return strings.Compare(a.Name, b.Name) })
}

func (s *snapshot) grantsByID() []*grantRecord {
	return slices.SortedFunc(maps.Values(s.grants), func(a, b *grantRecord) int { return strings.Compare(a.ID, b.ID) })
}

// sameRecord reports whether two records would be written alike.
func sameRecord(a, b Record) bool { return a.Key == b.Key && bytes.Equal(a.Value, b.Value) }

// policyRecord is a version of the policy.
type policyRecord struct {
	Version uint64    `json:"version"`
	Text    string    `json:"text"`
	By      string    `json:"by"`
	At      time.Time `json:"at"`
}

func policyKey(version uint64) string { return fmt.Sprintf("%s%08d", keyPolicy, version) }

func putPolicy(p policyRecord) Record { return put(policyKey(p.Version), p) }

const (
	// maxPolicy is a policy of about 15,000 rules.
	maxPolicy = 2 << 20
	// keepPolicies is how many versions are kept.
	keepPolicies = 100
)

// tried is what a policy would change.
type tried struct {
	policy  *policy.Policy
	changes []string
	tests   int

	warnings []string
}

// tryPolicy says what a text would change, if it is a policy that may be put in
// force.
func (s *snapshot) tryPolicy(text string) (tried, error) {
	const hint = "the policy in force stays as it is"
	if len(text) > maxPolicy {
		return tried{}, problem(KindInvalid, hint, "the policy has %d bytes; %d are the most", len(text), maxPolicy)
	}
	p, err := policy.Parse([]byte(text))
	if err != nil {
		return tried{}, policyProblem(err, hint)
	}
	w := s.world()
	if err := p.Check(w); err != nil {
		return tried{}, policyProblem(err, hint)
	}
	if err := p.RunTests(w); err != nil {
		return tried{}, policyProblem(err, hint)
	}
	t := tried{policy: p, warnings: p.Warnings(w).Lines()}
	for _, x := range p.Tests {
		t.tests += len(x.Accept) + len(x.Deny)
	}
	if s.standing != nil {
		t.changes = policy.Diff(s.standing.policy, p)
	}
	return t, nil
}

// policyProblem makes what is wrong with a policy into a Problem. The hints are
// in the text, each below its line.
func policyProblem(err error, hint string) error {
	return problem(KindInvalid, hint, "%s", err)
}

// applyPolicy decides what putting a text in force changes. The text in force,
// applied again, changes nothing.
func (s *snapshot) applyPolicy(text, by string, now time.Time) (policyRecord, tried, []Record, error) {
	t, err := s.tryPolicy(text)
	if err != nil {
		return policyRecord{}, t, nil, err
	}
	have := s.policyVersion()
	if old := s.policies[have]; old != nil && old.Text == text {
		return *old, t, nil, nil
	}
	next := policyRecord{Version: have + 1, Text: text, By: by, At: now}
	changes := []Record{putPolicy(next)}
	for v := range s.policies {
		if v+keepPolicies <= next.Version {
			changes = append(changes, drop(policyKey(v)))
		}
	}
	return next, t, changes, nil
}

// upgrade brings a store from before there were users to what is kept now:
// every member belongs to a user of its own, named after it, and the policy is
// the one of a new network.
func (s *snapshot) upgrade(text string, now time.Time) []Record {
	network := s.network
	network.Schema, network.Signer = networkSchema, key.NewMachine().Expose()
	changes := []Record{put(keyNetwork, network), putPolicy(policyRecord{Version: 1, Text: text, By: byCoordinator, At: now})}
	taken := map[string]bool{}
	for _, n := range s.nodesByLabel() {
		if n.Role != RoleMember || n.User != "" {
			continue
		}
		u := userRecord{ID: newID("u", 11), Name: uniqueName(n.Name, func(s string) bool { return taken[s] || reservedName(s) }), Created: now}
		taken[u.Name] = true
		next := *n
		next.User = u.ID
		changes = append(changes, putUser(u), putNode(next))
	}
	return changes
}
