package overlay

import (
	"math"
	"net/netip"
	"slices"
	"time"

	"overlayd/overlay/coord"
	"overlayd/overlay/key"
	"overlayd/overlay/portmap"
	"overlayd/overlay/record"
	"overlayd/overlay/relay"
	"overlayd/overlay/tunnel"
	"overlayd/overlay/underlay"
)

// snapshot is what a Status is made of, read at one moment.
type snapshot struct {
	view
	options  Options
	name     string
	key      key.Public
	endpoint string
	heard    time.Time // when the coordinator was last heard; zero: not yet
	relays   []underlay.RelayStatus
	paths    map[key.Public]underlay.Path
	stats    map[key.Public]tunnel.Stat
	counters []Counter
	guard    enforced
	changes  record.Status   // of the coordinator's record
	mapping  *portmap.Status // nil: the router is not asked
	full     bool            // the stack in user space lately had no room
	now      time.Time

	ssh       *StatusSSH // of the coordinator's machine
	exposures []StatusExposure
}

// Status tells what this node knows now; before Run has joined, next to nothing.
func (n *Node) Status() Status {
	s := snapshot{view: n.look(), options: n.o, now: time.Now()}
	if s.joined {
		s.name, s.key = n.id.Name, n.keys.current().Public()
		s.endpoint, s.heard = n.id.Endpoint, n.coord.Heard()
	}
	s.full = s.stackFull(s.now)
	s.counters, s.guard = n.counters(s.view), n.guard.status(s.m, s.now)
	_, s.guard.unkept = n.flows.status()
	if n.hub != nil && n.hub.coord != nil {
		s.changes = n.hub.coord.events.Status()
		s.ssh, s.exposures = n.hub.guest.status()
	}
	if s.live != nil {
		s.relays = s.live.bind.Relays()
		if s.live.mapper != nil {
			m := s.live.mapper.Status()
			s.mapping = &m
		}
		s.paths = map[key.Public]underlay.Path{}
		if s.m != nil {
			for _, p := range s.m.Peers {
				s.paths[p.WireGuard] = s.live.bind.Path(p.WireGuard)
			}
		}
		stats, err := s.live.dev.Stats()
		if err != nil {
			n.log.Warn("tunnel statistics cannot be read", "err", err)
		}
		s.stats = stats
	}
	return s.status()
}

// status is pure.
func (s snapshot) status() Status {
	items := append(health(s.view, s.relays, s.now), s.guard.health()...)
	items = append(items, s.proofs()...)
	items = append(items, controlHealth(s.changes)...)
	items = append(items, stackHealth(s.full)...)
	refusals := s.refusals()
	items = append(items, refusedHealth(refusals, s.now)...)
	out := Status{
		Schema:  StatusSchema,
		Version: s.options.Version,
		State:   nodeState(s.view, items),
		Node: StatusNode{
			Name: s.name, IPs: []netip.Addr{}, Role: string(s.options.Role),
			PublicKey: s.key.String(), Interface: s.options.Interface, Userspace: s.options.Userspace,
		},
		Network:  StatusNetwork{Control: StatusControl{State: string(s.control.Phase), Endpoint: s.endpoint}},
		Relays:   []StatusRelay{},
		Peers:    []StatusPeer{},
		Routes:   []StatusRoute{},
		Health:   items,
		Hosted:   []StatusHosted{},
		Counters: nonNil(s.counters),
		Refusals: refusals,

		SSH: s.ssh, Exposures: nonNil(s.exposures),
	}
	out.Network.Control.ProofAgeMS = age(s.heard, s.now)
	if s.control.Phase == coord.PhaseConnected && stale(s.heard, controlProof, s.now) {
		out.Network.Control.State = ProofDegraded
	}
	if out.Network.Control.State == "" {
		out.Network.Control.State = string(coord.PhaseConnecting)
	}
	out.PortMapping = s.portMapping()
	if s.m == nil {
		return out
	}
	out.Node.Name, out.Node.IPs = s.m.Self.Name, nonNil(s.m.Self.Addrs)
	out.Network.Overlay, out.Network.MapVersion = &s.m.Overlay, &s.m.Version
	out.Network.MapAgeMS = s.mapAge()
	out.Relays = s.statusRelays()
	for _, p := range s.m.Peers {
		out.Peers = append(out.Peers, s.statusPeer(p))
	}
	for _, h := range s.m.Hosted {
		out.Hosted = append(out.Hosted, statusHosted(s.m, h))
	}
	if s.plan != nil {
		out.Routes = s.statusRoutes(out.Peers)
		out.Node.MTUBytes = &s.plan.Routing.MTU
	}
	return out
}

// portMapping is what the router maps to our port; nil before it was asked.
func (s snapshot) portMapping() *StatusPortMapping {
	switch {
	case s.live == nil:
		return nil
	case s.mapping == nil:
		return &StatusPortMapping{Reason: portmap.ReasonOff}
	}
	m := &StatusPortMapping{Protocol: string(s.mapping.Protocol), Reason: s.mapping.Reason, Detail: s.mapping.Detail}
	if s.mapping.Gateway.IsValid() {
		m.Router = &s.mapping.Gateway
	}
	if s.mapping.Protocol != "" {
		at := s.mapping.Expires.UTC()
		m.External, m.ExpiresAt = &s.mapping.External, &at
	}
	return m
}

// mapAge is how long ago the coordinator last vouched for the map; nil when it
// has not since the start.
func (s snapshot) mapAge() *int64 {
	if s.heard.IsZero() {
		return nil
	}
	ms := max(s.now.Sub(s.heard), 0).Milliseconds()
	return &ms
}

func (s snapshot) statusRelays() []StatusRelay {
	out := []StatusRelay{}
	for _, r := range s.relays {
		state := r.State
		if r.Transport == underlay.TransportLocal {
			state = "own"
		} else if state == relay.Up.String() && relayStale(r, s.now) {
			state = ProofDegraded
		}
		if state == relay.Lost.String() {
			r.RTT = 0 // measured in another time
		}
		out = append(out, StatusRelay{
			Name: r.Name, Endpoint: r.Endpoint, State: state,
			Transport: r.Transport, RTTMS: milliseconds(r.RTT), Reason: r.Reason, Nearest: r.Nearest,
			ProofAgeMS: age(r.LastEcho, s.now),
		})
	}
	return out
}

// statusRoutes are the plan's, with what their gateways prove.
func (s snapshot) statusRoutes(peers []StatusPeer) []StatusRoute {
	silent := map[string]bool{}
	for _, p := range peers {
		silent[p.Name] = p.State == PeerUnanswered
	}
	routes := nonNil(slices.Clone(s.plan.Routes))
	for i, r := range routes {
		if r.State == RouteActive && silent[r.Via] {
			routes[i].State, routes[i].Reason = RouteDegraded, "the gateway does not answer"
		}
	}
	return routes
}

func (s snapshot) statusPeer(p coord.Node) StatusPeer {
	path, stat := s.paths[p.WireGuard], s.stats[p.WireGuard]
	out := StatusPeer{
		Name: p.Name, IPs: nonNil(p.Addrs), Role: string(p.Role), Online: p.Online,
		Path: StatusPath{
			Kind: path.Kind, Transport: path.Transport, Endpoint: path.Endpoint, Reason: path.Reason,
			MTUBytes: known(path.MTU), Relay: s.relayName(path),
		},
		RTTMS:   milliseconds(path.RTT),
		RxBytes: stat.RxBytes, TxBytes: stat.TxBytes,
	}
	if out.RTTMS == nil && s.plan != nil && s.plan.atRelay(p.WireGuard, path.RelayID) {
		for _, r := range s.relays {
			if r.ID == path.RelayID { // on its own machine: there is no further to go
				out.RTTMS = milliseconds(r.RTT)
			}
		}
	}
	e := s.echoes[p.WireGuard]
	last := e.heard
	for _, t := range []time.Time{path.LastEcho, stat.LastHandshake} {
		if t.After(last) {
			last = t
		}
	}
	out.State, out.ProofAgeMS = peerState(p.Online, path.Reason == underlay.ReasonPeerSilent, e, last, s.now), age(last, s.now)
	if out.State == PeerOffline && path.Kind != underlay.KindDirect {
		out.Path.Reason, out.RTTMS = reasonOffline, nil
	}
	if !last.IsZero() {
		at := last.UTC()
		out.LastEchoAt = &at
	}
	if !stat.LastHandshake.IsZero() {
		at := stat.LastHandshake.UTC()
		out.LastHandshakeAt = &at
	}
	return out
}

// refusals are what policy refused of late.
func (s snapshot) refusals() []StatusRefusal {
	out := []StatusRefusal{}
	if barred(s.m) != nil {
		return out // there is more amiss
	}
	for _, r := range s.guard.refused {
		by, closed := "", false
		if s.plan != nil {
			if p := s.plan.carrier(r.Remote.Addr()); p != nil {
				by = p.Name
			}
			_, closed = s.plan.closedAt(r.Remote.Addr())
		}
		if r.Nowhere && !closed {
			continue // as far as is known here, nobody has that address
		}
		out = append(out, StatusRefusal{Target: targetText(r.Proto, r.Remote), By: by, At: r.At.UTC()})
	}
	return out
}

// targetText writes a remote end as grants and requests name it.
func targetText(proto uint8, remote netip.AddrPort) string {
	switch proto {
	case protoTCP:
		return remote.String()
	case protoUDP:
		return remote.String() + "/udp"
	case protoICMP, protoICMP6:
		return remote.Addr().String() + "/icmp"
	}
	return remote.Addr().String()
}

// statusHosted is a member that another node carries, or this one.
func statusHosted(m *coord.Map, h coord.Node) StatusHosted {
	out := StatusHosted{Name: h.Name, IPs: nonNil(h.Addrs), User: h.User, Kind: "device"}
	if h.Seat {
		out.Kind = "seat"
	}
	for _, n := range slices.Concat([]coord.Node{m.Self}, m.Peers) {
		if n.ID == h.Host {
			out.Host = n.Name
		}
	}
	return out
}

// reasonOffline is why a path to a node that is away is not better.
const reasonOffline = "peer_offline"

// relayName names the relay that a path leads by.
func (s snapshot) relayName(p underlay.Path) string {
	if p.Kind == underlay.KindRelay {
		for _, r := range s.relays {
			if r.ID == p.RelayID {
				return r.Name
			}
		}
	}
	return ""
}

// milliseconds rounds to microseconds; an unknown round trip is null.
func milliseconds(d time.Duration) *float64 {
	if d <= 0 {
		return nil
	}
	ms := math.Round(float64(d)/float64(time.Microsecond)) / 1000
	return &ms
}

// known is null for a number that is not known.
func known(n int) *int {
	if n <= 0 {
		return nil
	}
	return &n
}

// nonNil makes an empty JSON array of a nil slice.
func nonNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
