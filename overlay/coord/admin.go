package coord

import (
	"net/http"
	"net/netip"
	"time"

	"overlayd/overlay/coord/api"
	"overlayd/overlay/key"
)

// Admin calls a coordinator's Admin service.
type Admin struct{ c api.AdminClient }

// NewAdmin returns an Admin that speaks over hc to the service at baseURL.
func NewAdmin(hc *http.Client, baseURL string) *Admin {
	return &Admin{api.NewAdminClient(hc, baseURL)}
}

// Invite says what an invite is for. The zero value is for one member, for a
// day.
type Invite struct {
	Name    string         // the node's name; empty: the node says
	Role    Role           // empty: RoleGateway with Routes, else RoleMember
	Address netip.Addr     // the node's address; zero: any free one
	Routes  []netip.Prefix // approved from the start
	Uses    int            // 0: one
	TTL     time.Duration  // 0: DefaultInviteTTL
}

// DefaultInviteTTL is for how long an invite holds when nobody says.
const DefaultInviteTTL = 24 * time.Hour

// InviteState says whether an invite can be used.
type InviteState string

// The states of an invite.
const (
	InviteOpen    InviteState = "open"
	InviteUsed    InviteState = "used"
	InviteExpired InviteState = "expired"
	InviteRevoked InviteState = "revoked"
)

// InviteInfo is an invite as it is listed.
type InviteInfo struct {
	Invite
	ID      string
	Used    int
	Created time.Time
	Expires time.Time
	State   InviteState
}

// NodeInfo is a node as the operator sees it.
type NodeInfo struct {
	Node
	Machine  key.MachinePublic
	Joined   time.Time
	LastSeen time.Time // zero: not since the coordinator started
}

// RouteInfo is a route of a node.
type RouteInfo struct {
	Route
	NodeID     string
	Node       string // its name
	Advertised bool   // false: approved, but the node does not offer it now
	Online     bool
}
