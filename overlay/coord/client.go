package coord

import (
	"log/slog"
	"net"
	"net/netip"
	"time"

	"overlayd/overlay/key"
)

// ClientOptions say how to reach a coordinator, and who asks.
type ClientOptions struct {
	Endpoint string           // host:port; required
	Pin      key.Pin          // of its TLS key; zero: ordinary certificate checks
	Machine  key.Machine      // required
	Dialer   *net.Dialer      // nil: a plain one
	Log      *slog.Logger     // nil: slog.Default
	Now      func() time.Time // the wall clock; nil: time.Now
}

// EnrollRequest asks for a membership.
type EnrollRequest struct {
	Invite    string
	Secret    key.Secret
	Name      string // wished; made a DNS label, and unique
	Role      Role   // empty: the invite's
	WireGuard key.Public
	Advertise []netip.Prefix
}

// Enrolled is a membership.
type Enrolled struct {
	NodeID  string
	Name    string
	Network NetworkID
	Overlay netip.Prefix
	Label   uint32
	Addrs   []netip.Addr
	Role    Role
}

// FollowOptions say what to follow with, and whom to tell.
type FollowOptions struct {
	Have      *Map                  // the last map known, if any
	BootID    uint64                // random for each start of the daemon
	Advertise func() []netip.Prefix // asked before each report; nil: leave it as it is
	OnMap     func(*Map)            // the whole new map, which is the callee's to keep
	OnState   func(ControlState)    // may be nil
}

// ControlState is how the connection to the coordinator stands.
type ControlState struct {
	Phase Phase
	Since time.Time
	Err   error // with PhaseLost: why
}

// Phase is a stage of the connection to the coordinator.
type Phase string

// The phases.
const (
	PhaseConnecting Phase = "connecting"
	PhaseConnected  Phase = "connected" // a whole map has come
	PhaseLost       Phase = "lost"      // waiting to try again
)
