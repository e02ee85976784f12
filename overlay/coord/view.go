package coord

import (
	"net/netip"
	"time"

	"overlayd/overlay/coord/api"
)

// node returns a node as the one at label self sees it: of a peer, only the
// routes that are approved.
func (s *Server) node(snap *snapshot, n *nodeRecord, self bool) Node {
	seen := s.presence.sighting(n.ID)
	v := Node{
		ID: n.ID, Name: n.Name, Label: n.Label, Role: n.Role, WireGuard: n.WireGuard,
		Addrs:  []netip.Addr{addrOf(snap.network.Overlay, n.Label)},
		Online: seen.online, BootID: seen.bootID,
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

// relays returns this machine's relay, if it is one.
func (s *Server) relays(snap *snapshot) []Relay {
	r := s.o.Relay
	if r.ID == "" {
		return nil
	}
	r.Label = s.relayLabel(snap)
	return []Relay{r}
}

// relayLabel returns the label of this machine's own node, 0 while it has
// none.
func (s *Server) relayLabel(snap *snapshot) uint32 {
	if s.o.Relay.Label != 0 {
		return s.o.Relay.Label
	}
	var first *nodeRecord
	for _, n := range snap.nodes {
		if n.Role == RoleRelay && (first == nil || n.Joined.Before(first.Joined)) {
			first = n
		}
	}
	if first == nil {
		return 0
	}
	return first.Label
}

// passesFor returns a node's passes, renewed when they are due, and none for a
// node that was removed meanwhile: its Removal may not cover them.
func (s *Server) passesFor(n *nodeRecord, now time.Time) []Pass {
	if s.o.Passes == nil || s.o.Relay.ID == "" {
		return nil
	}
	pass := s.presence.pass(n.ID, n.Joined, now, func(serial uint64, notAfter time.Time) Pass {
		ticket, k := s.o.Passes.Pass(s.o.Relay.ID, n.Label, serial, notAfter)
		return Pass{Relay: s.o.Relay.ID, Ticket: ticket, Key: k, NotAfter: notAfter}
	})
	if s.ledger.now().nodes[n.ID] == nil {
		return nil
	}
	return []Pass{pass}
}
