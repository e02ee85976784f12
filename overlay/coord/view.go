package coord

import (
	"net/netip"

	"overlayd/overlay/coord/api"
)

// node returns a node as the one at label self sees it: of a peer, only the
// routes that are approved.
func (s *Server) node(snap *snapshot, n *nodeRecord, self bool) Node {
	seen := s.presence.sighting(n.ID)
	v := Node{
		ID: n.ID, Name: n.Name, Label: n.Label, Role: n.Role, WireGuard: n.WireGuard,
		Addrs:  []netip.Addr{addrOf(snap.network.Overlay, n.Label)},
		Online: seen.online, BootID: seen.bootID, Attached: seen.attached,
	}
	for _, r := range n.routes() {
		if self || r.Approved {
			v.Routes = append(v.Routes, r)
		}
	}
	return v
}

// wholeMap returns what one node should know. Peers are all others.
func (s *Server) wholeMap(snap *snapshot, self *nodeRecord, passes []Pass) *Map {
	m := &Map{
		Version: snap.rev, Network: snap.network.ID, Overlay: snap.network.Overlay,
		Self: s.node(snap, self, true), Relays: s.relays(snap), Passes: passes,
	}
	if self.Relay != nil {
		m.Revoked, _ = s.presence.revocations()
	}
	for _, n := range snap.nodesByLabel() {
		if n != self {
			m.Peers = append(m.Peers, s.node(snap, n, false))
		}
	}
	return m
}

// delta returns what is dirty for one node.
func (s *Server) delta(snap *snapshot, self *nodeRecord, d dirt) *api.Delta {
	w := &api.Delta{Version: snap.rev}
	for l := range d.labels {
		switch n := snap.byLabel[l]; n {
		case nil:
			w.Removed = append(w.Removed, l)
		case self:
			w.Self = nodeToWire(s.node(snap, n, true))
		default:
			w.Peers = append(w.Peers, nodeToWire(s.node(snap, n, false)))
		}
	}
	if d.relays {
		w.Relays = &api.RelayList{Relays: relaysToWire(s.relays(snap))}
	}
	return w
}
