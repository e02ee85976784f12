package coord

import (
	"log/slog"
	"net/netip"
	"time"

	"overlayd/overlay/key"
)

// ServerOptions say what a Server serves.
type ServerOptions struct {
	Store    Store            // required; the Server does not close it
	Log      *slog.Logger     // nil: slog.Default
	Overlay  netip.Prefix     // zero: what the store says; required for a new store
	Relay    Relay            // this machine's; no ID: none. Label 0: that of the first node that enrolled as a relay
	Endpoint string           // host:port, as nodes reach the Node service
	Pin      key.Pin          // of the TLS key; zero: nodes use ordinary certificate checks
	Passes   Passes           // nil: nodes get none
	Removed  func(uint32)     // called with the label of each node that was removed, after that is kept; may be nil
	Now      func() time.Time // nil: time.Now
}

// Passes makes the tickets that let nodes attach to relays. A later serial is
// a larger one.
type Passes interface {
	Pass(relayID string, label uint32, serial uint64, notAfter time.Time) (ticket []byte, k key.Secret)
}
