package overlay

import (
	"net/netip"
	"time"
)

// StatusSchema names the JSON form of Status. Fields are only ever added.
const StatusSchema = "overlayd.status/v1"

// The states of a node. Without an invite no daemon runs: the last two are said
// while Run ends, as long as it takes to put the machine back, and of a Node whose
// Run is over.
const (
	StateStarting      = "starting"       // Run has not begun, or nothing is in force yet
	StateNeedsApproval = "needs_approval" // an admin has to let this node in, or what it advertises
	StateExpired       = "expired"        // its key has to be renewed
	StateDisabled      = "disabled"       // an admin took it out of the network for a while, or its user
	StateReady         = "ready"
	StateDegraded      = "degraded"     // it runs, with something wrong that Status.Health names
	StateNeedsInvite   = "needs_invite" // it is no member: it never joined, or was removed
	StateStopped       = "stopped"      // it was told to stop, or failed
)

// Status is what a node knows of itself and its network: the object that
// `overlayd status --json` prints. Unknown values are null.
type Status struct {
	Schema  string        `json:"schema"`
	Version string        `json:"version"`
	State   string        `json:"state"`
	Node    StatusNode    `json:"node"`
	Network StatusNetwork `json:"network"`
	Relays  []StatusRelay `json:"relays"`
	Peers   []StatusPeer  `json:"peers"`
	Routes  []StatusRoute `json:"routes"`
	Health  []HealthItem  `json:"health"`
	// Counters are totals since the daemon started: mostly of what it dropped.
	Counters []Counter `json:"counters"`

	PortMapping *StatusPortMapping `json:"port_mapping"` // null while the node starts

	// Of the coordinator's machine: who may come without overlayd.
	SSH       *StatusSSH       `json:"ssh"`       // null: there is no jump host here
	Exposures []StatusExposure `json:"exposures"` // published ports

	Hosted []StatusHosted `json:"hosted"` // members that others carry, or this node

	Refusals []StatusRefusal `json:"refusals"` // of the last minutes, the newest first
}

// StatusRefusal is something that this machine tried, and the policy refused: that
// which the node in front of it enforces, or because nothing there is for this
// machine.
type StatusRefusal struct {
	Target string    `json:"target"` // as overlayd request takes it: 192.168.1.201:80, 192.168.1.201:53/udp, 192.168.1.201/icmp
	By     string    `json:"by"`     // the node; "": it is not known, or not any more
	At     time.Time `json:"at"`     // when it was last tried
}

// StatusHosted is a member that another node carries: a device with a stock
// WireGuard, or a seat, from where its user begins connections on that machine.
type StatusHosted struct {
	Name string       `json:"name"`
	IPs  []netip.Addr `json:"ips"`
	User string       `json:"user"`
	Kind string       `json:"kind"` // device, seat
	Host string       `json:"host"` // the name of who carries it
}

// StatusNode is this machine as a member.
type StatusNode struct {
	Name      string       `json:"name"`
	IPs       []netip.Addr `json:"ips"`
	Role      string       `json:"role"`
	PublicKey string       `json:"public_key"`
	Interface string       `json:"interface"`
	MTUBytes  *int         `json:"mtu_bytes"`
	Userspace bool         `json:"userspace"` // there is no interface
}

// StatusNetwork says which network this is and how fresh our view of it is.
type StatusNetwork struct {
	Overlay    *netip.Prefix `json:"overlay"`
	MapVersion *uint64       `json:"map_version"`
	MapAgeMS   *int64        `json:"map_age_ms"` // since the coordinator was last heard
	Control    StatusControl `json:"control"`
}

// StatusControl is the connection to the coordinator.
type StatusControl struct {
	State    string `json:"state"` // connecting, connected, lost; degraded: connected, and silent
	Endpoint string `json:"endpoint"`
	// ProofAgeMS is how long ago it was last heard.
	ProofAgeMS *int64 `json:"proof_age_ms"`
}

// StatusPortMapping is the port that the router forwards to this machine.
type StatusPortMapping struct {
	Protocol  string          `json:"protocol"` // pcp, nat-pmp, upnp; "": there is none
	External  *netip.AddrPort `json:"external"`
	ExpiresAt *time.Time      `json:"expires_at"` // it is renewed before
	Router    *netip.Addr     `json:"router"`     // who is asked
	// Reason says why it is not offered to peers: off, no_router, asking,
	// no_answer, refused, private_address. Empty: it is.
	Reason string `json:"reason"`
	Detail string `json:"detail"` // more about the reason, in words
}

// StatusRelay is one relay and our session with it.
type StatusRelay struct {
	Name      string   `json:"name"`
	Endpoint  string   `json:"endpoint"`
	State     string   `json:"state"` // attaching, up, lost; degraded: up, and silent; idle: others are nearer; own on the relay's machine
	Transport string   `json:"transport"`
	RTTMS     *float64 `json:"rtt_ms"`
	// ProofAgeMS is how long ago it last answered.
	ProofAgeMS *int64 `json:"proof_age_ms"`
	// Reason says why it is not reached by UDP: udp_blocked; or not at all, as
	// far as TLS knows: tls_unreachable, proxy_refused, captive_portal,
	// tls_intercepted, not_a_relay, relay_full. Empty: there is nothing to say.
	Reason string `json:"reason"`
	// Nearest marks the relay with the shortest round trip of those that answer.
	Nearest bool `json:"nearest"`
}

// StatusPeer is one other node.
type StatusPeer struct {
	Name            string       `json:"name"`
	IPs             []netip.Addr `json:"ips"`
	Role            string       `json:"role"`
	Online          bool         `json:"online"`
	Path            StatusPath   `json:"path"`
	RTTMS           *float64     `json:"rtt_ms"`
	RxBytes         uint64       `json:"rx_bytes"`
	TxBytes         uint64       `json:"tx_bytes"`
	LastHandshakeAt *time.Time   `json:"last_handshake_at"`
	State           string       `json:"state"`        // answering, idle, degraded (what is sent goes unanswered), offline
	LastEchoAt      *time.Time   `json:"last_echo_at"` // when it last proved to be there
	ProofAgeMS      *int64       `json:"proof_age_ms"` // since then
}

// StatusPath is how packets reach a peer.
type StatusPath struct {
	Kind      string `json:"kind"`      // direct, relay, none
	Transport string `json:"transport"` // udp, tls, local
	Endpoint  string `json:"endpoint"`
	Reason    string `json:"reason"`
	// MTUBytes is the longest packet that gets to the peer in one piece, as
	// measured; longer ones are announced to their senders, or divided.
	MTUBytes *int   `json:"mtu_bytes"`
	Relay    string `json:"relay"` // its name; empty: the path leads by none
}

// StatusRoute is one prefix that a gateway offers, or that this node advertises,
// or of which it may reach nothing.
type StatusRoute struct {
	Prefix netip.Prefix `json:"prefix"`
	Via    string       `json:"via"`    // the gateway's name; "": it is not for this machine to know
	State  string       `json:"state"`  // active, degraded, standby, offline, clash, pending, advertised, refused
	Reason string       `json:"reason"` // why it is not active, in words
}

// The states of a route.
const (
	RouteActive     = "active"
	RouteStandby    = "standby"     // another gateway carries the prefix
	RouteDegraded   = ProofDegraded // installed, but its gateway does not answer
	RouteOffline    = "offline"     // installed, but its gateway is away
	RouteClash      = "clash"       // this machine is itself on that network, or is served from there, which wins
	RoutePending    = "pending"     // ours, waits for approval
	RouteAdvertised = "advertised"  // ours, approved
	RouteRefused    = "refused"     // this machine may reach nothing there, and is told so at once
)

// words names a route and the gateway, if that is known.
func (r StatusRoute) words() string {
	if r.Via == "" {
		return r.Prefix.String()
	}
	return r.Prefix.String() + " via " + r.Via
}

// HealthItem is something wrong, or worth knowing, and what to do about it.
type HealthItem struct {
	ID       string `json:"id"`
	Severity string `json:"severity"` // info, warning, error
	Title    string `json:"title"`
	Fix      string `json:"fix"`
}

// HealthRefused is the ID of the item about the refusals.
const HealthRefused = "refused_by_policy"

// The severities of a HealthItem. An error makes the node degraded.
const (
	SeverityInfo    = "info"
	SeverityWarning = "warning"
	SeverityError   = "error"
)

// StatusSSH is the jump host.
type StatusSSH struct {
	Listen      string `json:"listen"`
	Fingerprint string `json:"fingerprint"` // of its key
	Sessions    int    `json:"sessions"`
}

// StatusExposure is a published port.
type StatusExposure struct {
	ID          string     `json:"id"`
	Target      string     `json:"target"`
	Listen      string     `json:"listen"`
	Protocol    string     `json:"protocol"` // tcp, udp, http
	Host        string     `json:"host"`
	TLS         string     `json:"tls"` // self, acme, given; "": none
	Login       bool       `json:"login"`
	User        string     `json:"user"` // whose connections these are; "": the relay's own
	By          string     `json:"by"`
	Until       *time.Time `json:"until"`
	State       string     `json:"state"` // listening, failed, suspended
	Problem     string     `json:"problem"`
	Connections int        `json:"connections"`
}
