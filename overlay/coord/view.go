package coord

import (
	"encoding/json"
	"net/netip"
	"slices"

	"overlayd/overlay/coord/api"
	"overlayd/overlay/policy"
)

// node returns a node as the one at label self sees it: of a peer, only the
// routes that are approved.
func (s *Server) node(snap *snapshot, n *nodeRecord, self bool) Node {
	seen := s.seen(n)
	v := Node{
		ID: n.ID, Name: n.Name, Label: n.Label, Role: n.Role, WireGuard: n.WireGuard,
		Addrs:  []netip.Addr{addrOf(snap.network.Overlay, n.Label)},
		Online: seen.online, BootID: seen.bootID, Attached: seen.attached,
		User: snap.userOf(n), Tags: n.Tags, State: snap.stateOf(n), Expires: n.Expires, Renewed: n.Renewed, Keyed: n.keyed(), Host: n.Host, Seat: n.Seat,
	}
	if self {
		v.Devices = snap.devicesOf(n)
	}
	for _, r := range n.routes() {
		if self || r.Approved {
			v.Routes = append(v.Routes, r)
		}
	}
	return v
}

// wholeMap returns what one node should know.
func (s *Server) wholeMap(snap *snapshot, self *nodeRecord, seen *sight, passes []Pass) *Map {
	m := &Map{
		Version: snap.rev, Network: snap.network.ID, Overlay: snap.network.Overlay,
		Self: s.node(snap, self, true), Relays: s.relays(snap), Passes: passes, Ruleset: seen.ruleset,
		Closed: seen.closed,
	}
	if self.Relay != nil {
		m.Revoked, _ = s.presence.revocations()
		m.Roll = s.roll(snap)
	}
	if k, err := snap.network.signer(); err == nil {
		m.Signer = k.Public()
	}
	for _, n := range snap.nodesByLabel() {
		switch {
		case seen.peers[n.Label] == nil:
		case n.Host != "":
			m.Hosted = append(m.Hosted, s.hosted(snap, n, self))
		default:
			m.Peers = append(m.Peers, s.node(snap, n, false))
		}
	}
	return m
}

// sight is what the standing lets one node see. It never changes.
type sight struct {
	standing *standing
	state    NodeState
	peers    map[uint32]*nodeRecord
	closed   []netip.Prefix
	ruleset  *policy.Ruleset
}

// sightOf returns what a node may see, and the old sight when nothing bears on
// it.
func (s *snapshot) sightOf(self *nodeRecord, old *sight) *sight {
	state := s.stateOf(self)
	if old != nil && old.standing == s.standing && old.state == state {
		return old
	}
	peers := s.peersOf(self)
	return &sight{standing: s.standing, state: state, peers: peers, closed: s.closedTo(self, peers), ruleset: s.rulesetOf(self)}
}

// delta returns what is dirty for one node, and what it sees from now on and no
// more.
func (s *Server) delta(snap *snapshot, self *nodeRecord, was, is *sight, d dirt) *api.Delta {
	w := &api.Delta{Version: snap.rev}
	put := func(n *nodeRecord) {
		if n.Host != "" {
			w.Hosted = append(w.Hosted, nodeToWire(s.hosted(snap, n, self)))
			return
		}
		w.Peers = append(w.Peers, nodeToWire(s.node(snap, n, false)))
	}
	for l := range d.labels {
		if n := snap.byLabel[l]; n == self {
			w.Self = nodeToWire(s.node(snap, n, true))
		} else if n != nil && is.peers[l] != nil {
			put(n)
		}
	}
	if was != is {
		for l := range is.peers {
			if _, sent := d.labels[l]; !sent && was.peers[l] == nil {
				put(snap.byLabel[l])
			}
		}
		for l := range was.peers {
			if is.peers[l] == nil {
				w.Removed = append(w.Removed, l)
			}
		}
		if !slices.Equal(was.closed, is.closed) {
			w.Closed = &api.PrefixList{Prefixes: prefixesToWire(is.closed)}
		}
		if was.ruleset.Node != is.ruleset.Node { // a delta is within one node
			w.Ruleset = rulesetToWire(is.ruleset)
		} else if change := was.ruleset.Diff(*is.ruleset); change.Base != change.Next {
			b, err := json.Marshal(change)
			if err != nil {
				panic("internal error: a change of a ruleset does not marshal: " + err.Error())
			}
			w.RulesetDelta = b
		}
	}
	if d.relays {
		w.Relays = &api.RelayList{Relays: relaysToWire(s.relays(snap))}
	}
	return w
}
