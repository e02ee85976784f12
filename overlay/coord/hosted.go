package coord

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"connectrpc.com/connect"

	"overlayd/overlay/coord/api"
	"overlayd/overlay/key"
	"overlayd/overlay/policy"
)

// hostedBy returns what a node carries, by label.
func (s *snapshot) hostedBy(host *nodeRecord) (list []*nodeRecord) {
	for _, n := range s.nodes {
		if n.Host == host.ID {
			list = append(list, n)
		}
	}
	slices.SortFunc(list, func(a, b *nodeRecord) int { return cmp.Compare(a.Label, b.Label) })
	return list
}

// devicesOf counts the devices that a node carries, also those that are disabled,
// or whose user is.
func (s *snapshot) devicesOf(host *nodeRecord) (n int) {
	for _, d := range s.nodes {
		if d.Host == host.ID && !d.Seat {
			n++
		}
	}
	return n
}

// seen is what is known of a node's presence: of a hosted member that of the
// node that carries it.
func (s *Server) seen(n *nodeRecord) sighting {
	if n.Host != "" {
		return s.presence.sighting(n.Host)
	}
	return s.presence.sighting(n.ID)
}

// hosted returns a hosted member as the node self sees it: its key is for who
// carries it.
func (s *Server) hosted(snap *snapshot, n, self *nodeRecord) Node {
	v := s.node(snap, n, false)
	v.Online, v.BootID, v.Attached = false, 0, nil // those of its carrier, which is told of by itself
	if n.Host != self.ID {
		v.WireGuard = key.Public{}
	}
	return v
}

// newHosted makes the record of a member that the coordinator's own relay is to
// carry for a user.
func (s *snapshot) newHosted(u *userRecord, name, id string, now time.Time) (nodeRecord, []Record, error) {
	own := s.ownRelay()
	if own == nil {
		return nodeRecord{}, nil, problem(KindUnreachable, "start the relay first", "the coordinator's own relay has not joined its network yet")
	}
	if s.nodes[id] != nil {
		return nodeRecord{}, nil, problem(KindConflict, "try again", "the node id %s is taken", id)
	}
	label, err := allocate(s.network.Overlay, s.occupancy(now), netip.Addr{}, "")
	if err != nil {
		return nodeRecord{}, nil, err
	}
	n := nodeRecord{ID: id, Name: name, Label: label, Role: RoleMember, Joined: now, User: u.ID, Host: own.ID}
	if _, ok := s.retired[label]; ok {
		return n, []Record{drop(retiredKey(label))}, nil
	}
	return n, nil, nil
}

// activeUser finds a user who may do something.
func (s *snapshot) activeUser(ref string) (*userRecord, error) {
	u, err := s.user(ref)
	if err != nil {
		return nil, err
	}
	if u.Disabled {
		return nil, problem(KindDenied, "overlayd users enable "+u.Name+" undoes that", "the user %s is disabled", u.Name)
	}
	return u, nil
}

// seat decides what it takes for a user to have a seat at the coordinator's own
// relay.
func (s *snapshot) seat(user, id string, now time.Time) (nodeRecord, []Record, error) {
	u, err := s.activeUser(user)
	if err != nil {
		return nodeRecord{}, nil, err
	}
	own := s.ownRelay()
	for _, n := range s.nodes {
		if !n.Seat || n.User != u.ID || own == nil || n.Host != own.ID {
			continue
		}
		if n.Disabled {
			return nodeRecord{}, nil, problem(KindDenied, "overlayd nodes enable "+n.Name+" undoes that", "%s, the place of %s on the relay, is disabled", n.Name, u.Name)
		}
		return *n, nil, nil
	}
	taken := func(name string) bool { return s.byName[name] != nil || s.namePromised(name, "", now) }
	name := dnsLabel(u.Name)
	if own != nil {
		name = cmp.Or(name, "user") + "-at-" + own.Name
	}
	n, changes, err := s.newHosted(u, uniqueName(name, taken), id, now)
	if err != nil {
		return n, nil, err
	}
	n.Seat = true
	return n, append(changes, putNode(n)), nil
}

// device decides what it takes for a user to have a device with a key.
func (s *snapshot) device(user, name string, k key.Public, id string, now time.Time) (nodeRecord, []Record, error) {
	u, err := s.activeUser(user)
	if err != nil {
		return nodeRecord{}, nil, err
	}
	if err := checkName(name); err != nil {
		return nodeRecord{}, nil, err
	}
	if k.IsZero() {
		return nodeRecord{}, nil, problem(KindInvalid, "copy it from the device, or leave it out", "the public key is empty")
	}
	if other := s.byWireGuard[k]; other != nil && other.Host != "" {
		return nodeRecord{}, nil, problem(KindConflict, "make another key on this device, or remove the other: overlayd wg remove "+other.Name,
			"the key %s is that of the device %s of %s", k.Short(), other.Name, s.userOf(other))
	} else if other != nil {
		return nodeRecord{}, nil, problem(KindConflict, "make a key of its own on the device", "the key %s is that of the node %s", k.Short(), other.Name)
	}
	if other := s.byName[name]; other != nil && other.Host != "" && !other.Seat {
		return nodeRecord{}, nil, problem(KindConflict, "choose another name, or remove that device first: overlayd wg remove "+name,
			"the name %s is taken by a device of %s", name, s.userOf(other))
	}
	if err := s.nameFree(name); err != nil {
		return nodeRecord{}, nil, err
	}
	if s.namePromised(name, "", now) {
		return nodeRecord{}, nil, problem(KindConflict, "choose another name, or revoke that invite: overlayd invite list", "the name %s is promised to an invite", name)
	}
	n, changes, err := s.newHosted(u, name, id, now)
	if err != nil {
		return n, nil, err
	}
	n.WireGuard = k
	return n, append(changes, putNode(n)), nil
}

// within returns what a user's device has to send to who carries it: the overlay,
// and those of the routes of which the user reaches any part.
func (s *snapshot) within(u *userRecord) []netip.Prefix {
	list := []netip.Prefix{s.network.Overlay}
	if s.standing == nil {
		return list
	}
	answer := s.standing.answer()
	for _, n := range s.nodesByLabel() {
		for _, r := range n.routes() {
			to, err := policy.ParseTarget(r.Prefix.String())
			if r.Approved && err == nil && answer.Reaches(policy.Term{Kind: policy.KindUser, Name: u.Name}, to, time.Time{}).Partly {
				list = append(list, r.Prefix)
			}
		}
	}
	slices.SortFunc(list[1:], netip.Prefix.Compare)
	return slices.Compact(list)
}

// AddDevice makes a stock WireGuard a member of the network, for a user.
func (s adminService) AddDevice(ctx context.Context, req *connect.Request[api.AddDeviceRequest]) (*connect.Response[api.AddDeviceResponse], error) {
	m, id := req.Msg, newID("n", 11)
	k, err := key.PublicFromBytes(m.PublicKey)
	if err != nil {
		return nil, problem(KindInvalid, "copy it from the device: 44 characters, the last is =", "the public key is malformed")
	}
	n, err := s.changeNode(ctx, func(snap *snapshot) (nodeRecord, []Record, error) {
		return snap.device(m.User, m.Name, k, id, s.o.Now().UTC())
	})
	if err != nil {
		return nil, err
	}
	snap := s.ledger.now()
	resp := &api.AddDeviceResponse{Node: s.nodeInfo(snap, &n), Endpoint: s.o.Relay.Endpoint}
	if host := snap.nodes[n.Host]; host != nil {
		resp.RelayKey = host.WireGuard.Bytes()
	}
	if u := snap.users[n.User]; u != nil {
		resp.Prefixes = prefixesToWire(snap.within(u))
	}
	s.o.Log.Info("device added", "node", n.Name, "user", snap.userOf(&n), "addr", addrOf(s.Overlay(), n.Label))
	s.introduce(ctx, snap, &n)
	return connect.NewResponse(resp), nil
}

// Device is what a stock WireGuard has to know.
type Device struct {
	NodeInfo
	RelayKey key.Public     // of who carries it
	Endpoint string         // host:port
	Prefixes []netip.Prefix // what to send there
}

// AddDevice makes a stock WireGuard with a key a member, for a user.
func (a *Admin) AddDevice(ctx context.Context, user, name string, k key.Public) (Device, error) {
	resp, err := a.c.AddDevice(ctx, connect.NewRequest(&api.AddDeviceRequest{User: user, Name: name, PublicKey: k.Bytes()}))
	if err != nil {
		return Device{}, called("add device", err)
	}
	var d Device
	var errs [3]error
	d.Endpoint = resp.Msg.Endpoint
	d.NodeInfo, errs[0] = nodeInfoFromWire(resp.Msg.Node)
	d.RelayKey, errs[1] = key.PublicFromBytes(resp.Msg.RelayKey)
	d.Prefixes, errs[2] = parsePrefixes(resp.Msg.Prefixes)
	return d, errors.Join(errs[:]...)
}

// introduce returns when the nodes that are to let a new hosted member in, and who
// carries it, know of it, or after a while.
func (s *Server) introduce(ctx context.Context, snap *snapshot, n *nodeRecord) {
	s.presence.await(ctx, snap.witnesses(revocation{nodes: []*nodeRecord{n}}), snap.rev, seatWait)
}

// seatWait is how long a new hosted member waits for the nodes that it may reach: two
// round trips of a bad line and a busy machine, well below a user's patience.
const seatWait = 2 * time.Second

// Seat returns the address from which a user, named by name or id, begins
// connections on the coordinator's own machine: its own node carries it. The
// first call makes it, and returns when the nodes that are to let it in know of it.
func (s *Server) Seat(ctx context.Context, user string) (netip.Addr, error) {
	snap, id := s.ledger.now(), newID("n", 11)
	n, changes, err := snap.seat(user, id, s.o.Now().UTC())
	if err != nil || len(changes) == 0 { // mostly it is there: no lock, no commit
		return addrOf(snap.network.Overlay, n.Label), err
	}
	err = s.ledger.change(withAct(ctx, act{who: byCoordinator, call: "Seat"}), func(snap *snapshot) (changes []Record, err error) {
		n, changes, err = snap.seat(user, id, s.o.Now().UTC())
		return changes, err
	})
	if err != nil {
		return netip.Addr{}, err
	}
	snap = s.ledger.now()
	if made := snap.nodes[n.ID]; made != nil {
		s.o.Log.Info("seat made", "node", n.Name, "user", snap.userOf(made), "addr", addrOf(snap.network.Overlay, n.Label))
		s.introduce(ctx, snap, made)
	}
	return addrOf(snap.network.Overlay, n.Label), ctx.Err()
}

// Reaches reports whether the policy lets a user, named by name or id, reach a
// port now: for what is on the carrier's own machine, where no other node's
// filter is asked. The protocol is tcp or udp.
func (s *Server) Reaches(user, protocol string, to netip.AddrPort) (bool, error) {
	snap := s.ledger.now()
	u, err := snap.activeUser(user)
	if err != nil || snap.standing == nil {
		return false, err
	}
	target, err := policy.ParseTarget(to.String() + "/" + protocol)
	if err != nil {
		return false, termProblem(err)
	}
	v := snap.standing.answer().Reaches(policy.Term{Kind: policy.KindUser, Name: u.Name}, target, s.o.Now())
	return v.Allowed, nil
}
