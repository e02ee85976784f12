package coord

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"time"

	"overlayd/overlay/key"
	"overlayd/overlay/policy"
)

// Map is everything that one node should know of its network.
type Map struct {
	// Version is the store's revision: it grows with every change of what is
	// kept. Presence (Online, BootID) is not kept, and changes without it.
	Version uint64
	Network NetworkID
	Overlay netip.Prefix
	Self    Node
	Peers   []Node // by label
	Hosted  []Node // that a peer carries, or this node, by label; a peer's have no key
	Relays  []Relay
	Passes  []Pass

	// Revoked is for relays only: the passes that they have to refuse.
	Revoked []Removal

	// Roll is for relays only, to hand on to those who cannot ask the
	// coordinator; Signer tells everybody that it comes from there. Zero: the
	// coordinator is from before there were rolls.
	Roll   SignedRoll
	Signer key.MachinePublic

	// Closed are the prefixes behind gateways of which this node may reach nothing,
	// in order; who has them is not for it to know. Only a member's map has any.
	Closed []netip.Prefix

	// Ruleset is what this node lets in, to read and keep. Nil: the coordinator
	// has no policy, and nothing is refused.
	Ruleset *policy.Ruleset
}

// Node is a member of the network.
type Node struct {
	ID        string
	Name      string // a DNS label, unique in the network
	Label     uint32 // the host part of its address
	Addrs     []netip.Addr
	Role      Role
	WireGuard key.Public
	Online    bool
	BootID    uint64       // random for each start of the node's daemon; 0: not seen yet
	Routes    []Route      // a peer's are approved; one's own may wait
	Attached  []Attachment // the relays at which it can be reached, as it last reported; nil: unknown
	User      string       // whose it is; empty: nobody's, as a gateway or a relay
	Tags      []string     // in order
	Expires   time.Time    // of its key; zero: never
	Renewed   time.Time    // when that was last moved; zero: never
	Keyed     time.Time    // since when it has its WireGuard key
	State     NodeState

	// Host is the ID of the node that carries a hosted member: what the member
	// sends comes from there, and what is sent to the member goes there. Empty:
	// it stands by itself.
	Host string
	Seat bool // hosted, with an address of the carrier's own and no key

	// Devices is how many devices a node carries, also those that take no part
	// now: they have its key in their files. A node knows its own only.
	Devices int
}

// NodeState says whether a node may take part.
type NodeState string

// The states of a node. One that is not active has no peers and no passes.
const (
	NodeActive   NodeState = "active"
	NodePending  NodeState = "pending"  // an admin has to approve it
	NodeDisabled NodeState = "disabled" // itself, or its user
	NodeExpired  NodeState = "expired"  // its key; see Node.Expires
)

func (s NodeState) valid() bool {
	return s == NodeActive || s == NodePending || s == NodeDisabled || s == NodeExpired
}

// Applied says which map a node enforces.
type Applied struct {
	MapVersion uint64
	FlowsCut   int // on the way there from the version before
}

// Role is what a node is for.
type Role string

// The roles. A gateway is a member that advertises routes; a relay also
// forwards other members' packets, and only an invite for a relay makes one.
const (
	RoleMember  Role = "member"
	RoleGateway Role = "gateway"
	RoleRelay   Role = "relay"
)

func (r Role) valid() bool { return r == RoleMember || r == RoleGateway || r == RoleRelay }

// Route is a prefix that a node advertises. It is used once it is approved.
type Route struct {
	Prefix   netip.Prefix
	Approved bool
}

// Pass lets the node that got it attach to a relay.
type Pass struct {
	Relay    string // the relay's ID
	Ticket   []byte
	Key      key.Secret
	NotAfter time.Time
}

// NetworkID names a network. Its text form is hexadecimal.
type NetworkID [16]byte

// String returns 32 hexadecimal digits.
func (n NetworkID) String() string { return hex.EncodeToString(n[:]) }

// MarshalText is String.
func (n NetworkID) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText reads the form that String writes.
func (n *NetworkID) UnmarshalText(b []byte) error {
	d, err := hex.DecodeString(string(b))
	if err != nil || len(d) != len(n) {
		return fmt.Errorf("%q is not a network id", b)
	}
	*n = NetworkID(d)
	return nil
}
