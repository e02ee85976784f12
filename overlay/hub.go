package overlay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"overlayd/overlay/coord"
	"overlayd/overlay/key"
	"overlayd/overlay/relay"
)

// DefaultOverlay is the prefix of a new network: a part of the shared address
// space of RFC 6598, which no LAN uses and few carriers show to their customers.
var DefaultOverlay = netip.MustParsePrefix("100.88.0.0/24")

// DefaultPort is the one port of a relay, for UDP and for TCP.
const DefaultPort = 443

// HubOptions says how a Hub runs.
type HubOptions struct {
	// Options' Link is for a relay more in another machine's network; "": the
	// one that this machine joined before, else this machine's own network.
	Options
	Public  string       // host or host:port under which nodes reach it; required at the first start
	Listen  string       // host:port or :port to listen on; "": all addresses, the public port
	Overlay netip.Prefix // of a new network; zero: the stored one, else DefaultOverlay
	Address netip.Addr   // wished overlay address of this machine; zero: any
	TLSCert string       // file with a certificate for Public; "": a self-made one, pinned by invites
	TLSKey  string       // its key
	SSH     string       // [host]:port of the jump host; "": none

	KeyTTL time.Duration // how long the keys of people's machines hold; 0: as before; or coord.ForEver
}

// Hub is a machine in the middle: a relay and a Node of its own, and on the
// first one of a network the coordinator.
type Hub struct {
	o      HubOptions // set by NewHub, then read-only
	log    *slog.Logger
	dir    stateDir
	node   *Node
	public string
	listen netip.AddrPort

	relay *relay.Server // set by Run before its goroutines start
	coord *coordinator  // nil: another machine's
	guest *guests       // nil: likewise

	heeded []coord.Removal // the last map's; of the goroutine that takes maps
}

// NewHub checks the options. Nothing is read or changed before Run.
func NewHub(o HubOptions) (*Hub, error) {
	o.Role = coord.RoleRelay
	node, err := New(o.Options)
	if err != nil {
		return nil, err
	}
	h := &Hub{o: o, log: node.log, dir: node.dir, node: node}
	node.hub = h
	if (o.TLSCert == "") != (o.TLSKey == "") {
		return nil, fault(ExitUsage, "give both --tls-cert and --tls-key, or neither", "a certificate needs its key")
	}
	if o.Overlay.IsValid() {
		if err := checkOverlay(o.Overlay); err != nil {
			return nil, err
		}
	}
	return h, h.addresses()
}

// Run serves the network until ctx ends or the local API is asked to stop.
func (h *Hub) Run(ctx context.Context) (err error) {
	defer func() { h.node.end(err) }()
	if err := preflight(false, sudo); err != nil {
		return err
	}
	unlock, err := h.dir.open()
	if err != nil {
		return err
	}
	defer unlock()
	joined, err := h.joins()
	if err != nil {
		return err
	}
	if joined && h.o.SSH != "" {
		return fault(ExitUsage, "give --ssh to the first relay", "this relay belongs to another machine's network, which has the users' keys")
	}
	var store *bookkeeping
	if !joined {
		if err := h.node.setProxy(NoProxy); err != nil { // its coordinator is here
			return err
		}
		if store, err = h.openStore(); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, store.Close()) }()
	}
	state, err := h.state(joined)
	if err != nil {
		return err
	}
	cert, pin, err := h.certificate(state)
	if err != nil {
		return err
	}
	// Both ports first: a second daemon must not get as far as the store's
	// contents, nor use up an invite.
	ln, err := net.Listen("tcp", h.listen.String())
	if err != nil {
		return listenFault(err, "tcp", h.listen)
	}
	ln = newTurnstile(ln, maxConns, maxConnsOf)
	defer ln.Close()
	h.relay, err = relay.NewServer(relay.ServerOptions{Listen: h.listen, Secret: state.relay, Log: h.log})
	if err != nil {
		return listenFault(err, "udp", h.listen)
	}
	if joined {
		h.offer(state, pin)
	} else if err := h.found(store, state, pin); err != nil {
		h.relay.Close()
		return err
	}
	return h.serve(ctx, ln, cert)
}

// found makes the coordinator, and what serves its guests.
func (h *Hub) found(store *bookkeeping, state *hubState, pin key.Pin) (err error) {
	if h.guest, err = h.newGuests(); err != nil {
		return err
	}
	if h.coord, err = h.newCoordinator(store, state, pin); err != nil {
		h.guest.close()
	}
	return err
}

// offer tells the coordinator, by the node, what this machine's relay serves.
func (h *Hub) offer(s *hubState, pin key.Pin) {
	if h.o.TLSCert != "" {
		pin = key.Pin{}
	}
	h.node.offer = &coord.RelayOffer{Endpoint: s.public, Pin: pin, Secret: s.relay}
}

// heed refuses the passes that a map calls worthless. The coordinator's own
// relay hears of them from the coordinator itself.
func (h *Hub) heed(m *coord.Map) {
	if slices.Equal(m.Revoked, h.heeded) { // as in most maps
		return
	}
	h.heeded = m.Revoked
	for _, r := range m.Revoked {
		h.relay.Disconnect(relay.Network(m.Network), relay.Label(r.Label), r.Serial)
	}
}

// roll is what this relay hands to those who cannot ask the coordinator.
func (h *Hub) roll() coord.SignedRoll {
	if m := h.node.look().m; m != nil {
		return m.Roll
	}
	return coord.SignedRoll{}
}

// serve runs the parts; when one ends, all do.
func (h *Hub) serve(ctx context.Context, ln net.Listener, cert tls.Certificate) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	mux := http.NewServeMux()
	mux.Handle(relay.StreamPath, h.relay)
	if h.coord != nil {
		mux.Handle("/", h.coord.Handler())
	} else {
		mux.Handle(coord.RollPath, coord.RollHandler(h.roll))
	}
	web := coord.NewHTTPServer(mux, cert, h.log)
	if h.guest != nil {
		h.guest.ports.Challenge(web.TLSConfig)
	}

	// The relay's readers keep their processors while they rest between two
	// bursts: the rest of the program gets as many as there are.
	usual := runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(2 * usual)
	defer runtime.GOMAXPROCS(usual)

	if h.coord != nil { // the record goes last: what ends below is still written
		stop := h.keepEvents()
		defer stop()
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return h.relay.Run(ctx) })
	if h.coord != nil {
		g.Go(func() error { return h.coord.Run(ctx) })
		g.Go(func() error { return h.guest.run(ctx) })
	}
	g.Go(func() error {
		if err := web.ServeTLS(ln, "", ""); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve TLS: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		return web.Close()
	})
	g.Go(func() error {
		defer cancel()
		if h.coord != nil {
			if err := h.selfInvite(ctx); err != nil {
				return err
			}
		}
		return h.node.runLocked(ctx)
	})
	h.log.Info("relay listens", "addr", h.listen)
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// keepEvents writes the coordinator's record until the function is called that
// it returns.
func (h *Hub) keepEvents() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.coord.events.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			h.log.Error("the record of changes ended", "err", err)
		}
	}
}

func listenFault(err error, network string, at netip.AddrPort) error {
	switch {
	case isAddrInUse(err):
		return fault(ExitConflict, fmt.Sprintf("find it with `ss -lnp sport = :%d` and stop it, or choose another port with --listen", at.Port()),
			"%s port %d is in use by another program", network, at.Port())
	case isPermission(err):
		return fault(ExitPermission, "run it with sudo", "listen on %s %s: permission denied", network, at)
	}
	return fmt.Errorf("listen on %s %s: %w", network, at, err)
}
