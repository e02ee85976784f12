package overlay

import (
	"context"
	"fmt"
	"time"

	"overlayd/overlay/coord"
	"overlayd/overlay/relay"
	"overlayd/overlay/underlay"
)

// dialRelay makes a TLS connection to a relay, which has the key that the map
// says or, where that is none, a certificate for its name. The HTTP proxy is the
// setting's, or the environment's.
func (n *Node) dialRelay(ctx context.Context, r underlay.Relay) (*relay.Stream, error) {
	return n.dialWithin(ctx, r, 0)
}

// checkDial bounds a connection that is only made to see whether it can be: who
// waits for it is a person.
const checkDial = 5 * time.Second

// tryRelay is dialRelay for a Netcheck.
func (n *Node) tryRelay(ctx context.Context, r underlay.Relay) (*relay.Stream, error) {
	return n.dialWithin(ctx, r, checkDial)
}

func (n *Node) dialWithin(ctx context.Context, r underlay.Relay, limit time.Duration) (*relay.Stream, error) {
	config, err := coord.ClientTLS(r.Endpoint, r.Pin)
	if err != nil {
		return nil, fmt.Errorf("dial relay %s: %w", r.Name, err)
	}
	return relay.Dial(ctx, relay.DialOptions{Endpoint: r.Endpoint, Addrs: r.Addrs, TLS: config, Dialer: n.outerDialer(), Proxy: n.proxy, Timeout: limit})
}
