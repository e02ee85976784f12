package coord

import (
	"context"
	"time"

	"connectrpc.com/connect"

	"overlayd/overlay/coord/api"
	"overlayd/overlay/policy"
)

const (
	// DefaultKeyTTL is how long the key of a person's machine holds when nobody
	// says: half a year.
	DefaultKeyTTL = 180 * 24 * time.Hour
	// maxKeyTTL is a decade. What is to hold longer is to hold for ever.
	maxKeyTTL = 10 * 366 * 24 * time.Hour
	// ForEver is the life of a key that does not expire.
	ForEver time.Duration = -1
)

// checkKeyTTL refuses what is no life of a key; 0 is the network's.
func checkKeyTTL(d time.Duration) error {
	switch {
	case d == ForEver, d >= 0 && d <= maxKeyTTL:
		return nil
	}
	return problem(KindInvalid, "say for instance 180d, or never", "a key holds for ten years at most, or for ever")
}

// keyTTL returns how long a key holds: as its node, or else the network says.
func (n *networkRecord) keyTTL(own time.Duration) time.Duration {
	switch {
	case own != 0:
		return own
	case n.KeyTTL != 0:
		return n.KeyTTL
	}
	return DefaultKeyTTL
}

// expires reports whether a node is of those whose keys expire: a person's
// machine with a key of its own.
func (n *nodeRecord) expires() bool { return n.Role == RoleMember && n.Host == "" }

// renewed is the node with a key that holds from now on; ttl 0 is the life that
// it had before.
func (s *snapshot) renewed(n nodeRecord, ttl time.Duration, now time.Time) nodeRecord {
	if ttl != 0 {
		n.KeyTTL = ttl
	}
	n.Expired, n.Renewed, n.Expires = false, now, time.Time{}
	if d := s.network.keyTTL(n.KeyTTL); d != ForEver {
		n.Expires = now.Add(d).Truncate(time.Second)
	}
	return n
}

// renew decides what the renewal of a node's key changes.
func (s *snapshot) renew(ref string, ttl time.Duration, now time.Time) (nodeRecord, []Record, error) {
	n, err := s.node(ref)
	if err != nil {
		return nodeRecord{}, nil, err
	}
	if !n.expires() {
		return *n, nil, problem(KindInvalid, "only people's own machines need it", "the key of %s does not expire", n.Name)
	}
	if err := checkKeyTTL(ttl); err != nil {
		return *n, nil, err
	}
	next := s.renewed(*n, ttl, now)
	return next, []Record{putNode(next)}, nil
}

// renewBy decides what a member's renewal with an invite changes. The invite has
// to be for its user: who may join as somebody may also go on as somebody.
func (s *snapshot) renewBy(n *nodeRecord, r EnrollRequest, now time.Time) (nodeRecord, []Record, error) {
	i := s.invites[r.Invite]
	if i == nil || !i.admits(r.Secret) {
		return nodeRecord{}, nil, errBadInvite
	}
	if err := i.usable(n.Role, now); err != nil {
		return nodeRecord{}, nil, err
	}
	switch u := s.users[n.User]; {
	case !n.expires():
		return nodeRecord{}, nil, problem(KindInvalid, "only people's own machines need it", "the key of %s does not expire", n.Name)
	case u == nil || i.User != n.User:
		return nodeRecord{}, nil, problem(KindDenied, "ask for one: overlayd invite --user "+s.userOf(n),
			"the invite %s is not for %s, whose machine %s is", i.ID, s.userOf(n), n.Name)
	case u.Disabled:
		return nodeRecord{}, nil, problem(KindDenied, "ask an admin", "the user %s is disabled", u.Name)
	}
	used := *i
	used.Used++
	next := s.renewed(*n, i.KeyTTL, now)
	return next, []Record{putInvite(used), putNode(next)}, nil
}

// expired decides whose keys time has ended: their passes are worth nothing from
// then on.
func (s *snapshot) expired(now time.Time) (changes []Record) {
	for _, n := range s.nodesByLabel() {
		if !n.Expired && !n.Expires.IsZero() && !now.Before(n.Expires) {
			next := n.barred(now)
			next.Expired = true
			changes = append(changes, putNode(next))
		}
	}
	return changes
}

// nextExpiry returns when the next key expires; zero: none does.
func (s *snapshot) nextExpiry() (next time.Time) {
	for _, n := range s.nodes {
		if !n.Expired && !n.Expires.IsZero() && (next.IsZero() || n.Expires.Before(next)) {
			next = n.Expires
		}
	}
	return next
}

// setKeyTTL decides what a network's other life of keys changes: they hold so
// long from when they are next renewed. Keys of people that had no end get one.
func (s *snapshot) setKeyTTL(ttl time.Duration, now time.Time) (changes []Record) {
	network := s.network
	if ttl != 0 && ttl != network.KeyTTL {
		network.KeyTTL = ttl
		changes = append(changes, put(keyNetwork, network))
	}
	for _, n := range s.nodesByLabel() {
		if d := network.keyTTL(n.KeyTTL); n.expires() && n.Expires.IsZero() && d != ForEver {
			next := *n
			next.Expires = now.Add(d).Truncate(time.Second)
			changes = append(changes, putNode(next))
		}
	}
	return changes
}

// Unexpired returns the map without the peers whose keys have expired by a time,
// and without all that takes part once its own node's has; or the map itself when
// none has. It is what the coordinator says at that moment, for those who cannot
// hear it.
func (m *Map) Unexpired(now time.Time) *Map {
	over := func(n Node) bool { return !n.Expires.IsZero() && !now.Before(n.Expires) }
	if m.Self.State != NodeActive || !over(m.Self) {
		return m.without(over, nil)
	}
	next := *m
	next.Self.State = NodeExpired
	next.Peers, next.Hosted, next.Passes, next.Closed = nil, nil, nil, nil
	if m.Ruleset != nil {
		next.Ruleset = &policy.Ruleset{Node: m.Self.Name}
	}
	return &next
}

// NextExpiry returns when the first key of a map's nodes expires after a time;
// zero: none does.
func (m *Map) NextExpiry(now time.Time) (next time.Time) {
	look := func(n Node) {
		if n.Expires.After(now) && (next.IsZero() || n.Expires.Before(next)) {
			next = n.Expires
		}
	}
	look(m.Self)
	for _, p := range m.Peers {
		look(p)
	}
	for _, h := range m.Hosted {
		look(h)
	}
	return next
}

// RenewNode lets the key of a person's node, named by id, name or address, hold
// from now on: for a time, ForEver, or with 0 as long as before.
func (a *Admin) RenewNode(ctx context.Context, node string, ttl time.Duration) (NodeInfo, error) {
	resp, err := a.c.RenewNode(ctx, connect.NewRequest(&api.RenewNodeRequest{Node: node, ForMs: lifeToWire(ttl)}))
	if err != nil {
		return NodeInfo{}, called("renew node", err)
	}
	return nodeInfoFromWire(resp.Msg.Node)
}

func (s adminService) RenewNode(ctx context.Context, req *connect.Request[api.RenewNodeRequest]) (*connect.Response[api.RenewNodeResponse], error) {
	n, err := s.changeNode(ctx, func(snap *snapshot) (nodeRecord, []Record, error) {
		return snap.renew(req.Msg.Node, lifeFromWire(req.Msg.ForMs), s.o.Now().UTC())
	})
	if err != nil {
		return nil, err
	}
	s.o.Log.Info("node renewed", "node", n.Name, "expires", n.Expires)
	return connect.NewResponse(&api.RenewNodeResponse{Node: s.nodeInfo(s.ledger.now(), &n)}), nil
}

func lifeToWire(d time.Duration) int64 {
	if d == ForEver {
		return -1
	}
	return d.Milliseconds()
}

func lifeFromWire(ms int64) time.Duration {
	if ms == -1 {
		return ForEver
	}
	return time.Duration(ms) * time.Millisecond
}
