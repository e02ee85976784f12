package underlay

import (
	"net/netip"
	"time"

	"overlayd/overlay/key"
	"overlayd/overlay/relay"
)

// way is how a peer's datagrams leave. It is immutable, and swapped whole.
type way struct {
	carrier carrier // nil: they are held until there is one
	label   relay.Label
	path    Path // by the relay
	reason  string

	// Set where the peer's own address is used, too or alone.
	relayed *way // the way without
	spot    *spot
	both    bool
	line    *line
}

// direct returns the peer's own address when nothing else is used, and the zero
// value otherwise.
func (w *way) direct() netip.AddrPort {
	if w.spot == nil || w.both {
		return netip.AddrPort{}
	}
	return w.spot.addr
}

// Reasons why there is no way to a peer.
const (
	reasonUnknownPeer = "unknown_peer" // not in the map
	reasonNoRelay     = "no_relay"     // the map has no relay
	reasonRelayDown   = "relay_down"   // no session with the relay
)

// Reasons that others ask about: why a relay is reached by TLS, and that a peer
// answers nothing, by the relay neither.
const (
	ReasonUDPBlocked = "udp_blocked"
	ReasonPeerSilent = "peer_silent"
)

// Kinds of Path.
const (
	KindDirect = "direct"
	KindRelay  = "relay"
	KindNone   = "none"
)

// Transports of Path and RelayStatus.
const (
	TransportUDP   = "udp"
	TransportTLS   = "tls"
	TransportLocal = "local" // the relay is in this process
)

// Path says how packets reach a peer right now.
type Path struct {
	Kind      string // KindDirect, KindRelay, KindNone
	Transport string // "" when there is none
	Endpoint  string // address the packets are sent to, "" when there is none
	RelayID   string // of the relay, when Kind is KindRelay or its relay is down

	// RTT is the round trip to the peer by this path; 0: unknown.
	RTT time.Duration

	// LastEcho is when the peer last answered a ping at its own address; zero:
	// the path is relayed.
	LastEcho time.Time

	// MTU is the longest packet that was seen to pass in one piece; 0: unknown.
	MTU int

	// Reason says why the path is not better: unknown_peer, no_relay,
	// relay_down, udp_blocked (the relay is reached by TLS); of another
	// relayed one idle, probing, lossy, mtu, no_common_family,
	// symmetric_nat_both, peer_silent.
	Reason string
}

// Path returns the peer's path.
func (b *Bind) Path(k key.Public) Path {
	b.mu.Lock()
	p := b.peers[k]
	b.mu.Unlock()
	if p == nil {
		return Path{Kind: KindNone, Reason: reasonUnknownPeer}
	}
	return p.path(time.Now())
}
