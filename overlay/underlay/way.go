package underlay

import (
	"overlayd/overlay/key"
	"overlayd/overlay/relay"
)

// way is how a peer's datagrams leave. It is immutable, and swapped whole.
type way struct {
	carrier carrier // nil: they are held until there is one
	label   relay.Label
	path    Path
	reason  string
}

// Reasons why there is no way to a peer.
const (
	reasonUnknownPeer = "unknown_peer" // not in the map
	reasonNoRelay     = "no_relay"     // the map has no relay
	reasonRelayDown   = "relay_down"   // no session with the relay
)

// reach is what choose knows about a relay.
type reach struct {
	id        string
	transport string
	endpoint  string
	carrier   carrier // nil: no session
}

// choose returns the way to a peer. The relays come in order of preference.
func choose(p Peer, relays []reach) *way {
	if len(relays) == 0 {
		return &way{label: p.Label, reason: reasonNoRelay}
	}
	r := relays[0]
	for _, other := range relays {
		if other.id == p.Relay {
			r = other
		}
	}
	if r.carrier == nil {
		return &way{label: p.Label, reason: reasonRelayDown, path: Path{RelayID: r.id}}
	}
	return &way{carrier: r.carrier, label: p.Label, path: Path{
		Kind: KindRelay, Transport: r.transport, Endpoint: r.endpoint, RelayID: r.id,
	}}
}

// Kinds of Path.
const (
	KindRelay = "relay"
	KindNone  = "none"
)

// Transports of Path and RelayStatus.
const (
	TransportUDP   = "udp"
	TransportLocal = "local" // the relay is in this process
)

// Path says how packets reach a peer right now.
type Path struct {
	Kind      string // KindRelay, KindNone
	Transport string // "" when there is none
	Endpoint  string // address the packets are sent to, "" when there is none
	Reason    string // why the path is not better: no_relay, relay_down, unknown_peer
	RelayID   string
}

// Path returns the peer's path.
func (b *Bind) Path(k key.Public) Path {
	b.mu.Lock()
	p := b.peers[k]
	b.mu.Unlock()
	if p == nil {
		return Path{Kind: KindNone, Reason: reasonUnknownPeer}
	}
	w := p.way.Load()
	path := w.path
	if w.carrier == nil {
		path.Kind, path.Reason = KindNone, w.reason
	}
	return path
}
