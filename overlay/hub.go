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
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"

	"overlayd/overlay/coord"
	"overlayd/overlay/key"
	"overlayd/overlay/relay"
	"overlayd/routing"
)

// DefaultOverlay is the prefix of a new network: a part of the shared address
// space of RFC 6598, which no LAN uses and few carriers show to their customers.
var DefaultOverlay = netip.MustParsePrefix("100.88.0.0/24")

// maxConns bounds the connections to the TLS port: a node keeps one, and a
// network has at most as many nodes as sessions with the relay, 16,384.
const maxConns = 20_000

// DefaultPort is the one port of a relay, for UDP and for TCP.
const DefaultPort = 443

// HubOptions says how a Hub runs.
type HubOptions struct {
	Options
	Public  string       // host or host:port under which nodes reach it; required at the first start
	Listen  string       // host:port or :port to listen on; "": all addresses, the public port
	Overlay netip.Prefix // of a new network; zero: the stored one, else DefaultOverlay
	Address netip.Addr   // wished overlay address of this machine; zero: any
	TLSCert string       // file with a certificate for Public; "": a self-made one, pinned by invites
	TLSKey  string       // its key
}

// Hub is the machine in the middle: coordinator, relay and a Node of its own.
type Hub struct {
	o      HubOptions // set by NewHub, then read-only
	log    *slog.Logger
	dir    stateDir
	node   *Node
	public string
	listen netip.AddrPort

	coord *coord.Server // set by Run before its goroutines start
	relay *relay.Server
}

// NewHub checks the options. Nothing is read or changed before Run.
func NewHub(o HubOptions) (*Hub, error) {
	o.Role = coord.RoleRelay
	o.Proxy = NoProxy // to itself
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

// checkOverlay refuses prefixes that cannot number a network.
func checkOverlay(p netip.Prefix) error {
	const fix = "choose a private prefix that no machine of the network is on, e.g. --overlay 100.88.0.0/24"
	switch {
	case !p.Addr().Is4():
		return fault(ExitUsage, fix, "overlay %s: only IPv4 prefixes can number a network", p)
	case p != p.Masked():
		return fault(ExitUsage, "did you mean "+p.Masked().String()+"?", "overlay %s: the address has bits set beyond the prefix length", p)
	case p.Bits() < 8 || p.Bits() > 30:
		return fault(ExitUsage, fix, "overlay %s: the prefix length has to be between 8 and 30", p)
	case p.Addr().IsMulticast(), p.Addr().IsLoopback(), p.Addr().IsLinkLocalUnicast(), p.Addr().IsUnspecified():
		return fault(ExitUsage, fix, "overlay %s: these addresses have another meaning", p)
	}
	return nil
}

// addresses works out where to listen and what to tell the nodes.
func (h *Hub) addresses() error {
	host, port := h.o.Public, ""
	if hp, p, err := net.SplitHostPort(h.o.Public); err == nil {
		host, port = hp, p
	}
	listen := h.o.Listen
	if listen == "" {
		if port == "" {
			port = strconv.Itoa(DefaultPort)
		}
		listen = ":" + port
	}
	addr, lport, err := net.SplitHostPort(listen)
	if err != nil {
		return fault(ExitUsage, "write it as :443 or 203.0.113.10:443", "listen address %q is malformed", listen)
	}
	num, err := strconv.ParseUint(lport, 10, 16)
	if err != nil || num == 0 {
		return fault(ExitUsage, "choose a port between 1 and 65535", "listen address %q has no usable port", listen)
	}
	ip := netip.IPv4Unspecified()
	if addr != "" {
		if ip, err = netip.ParseAddr(addr); err != nil {
			return fault(ExitUsage, "give an address of this machine, or only :"+lport, "listen address %q is no IP address", listen)
		}
	}
	h.listen = netip.AddrPortFrom(ip, uint16(num))
	if host == "" {
		return nil // Run takes the stored one
	}
	if port == "" {
		port = lport
	}
	h.public = net.JoinHostPort(host, port)
	return nil
}

// hubJSON is what a relay's machine keeps besides its membership.
type hubJSON struct {
	Schema int    `json:"schema"`
	TLS    []byte `json:"tls_key"`
	Relay  []byte `json:"relay_secret"`
	Public string `json:"public"`
}

// hubState is hubJSON with keys that hide themselves.
type hubState struct {
	tls    key.Machine
	relay  key.Secret
	public string
}

// state loads the hub's keys, or makes them at the first start.
func (h *Hub) state() (*hubState, error) {
	var j hubJSON
	found, err := h.dir.readJSON(hubFile, &j)
	if err != nil {
		return nil, err
	}
	s := &hubState{public: j.Public}
	if found {
		var terr, rerr error
		s.tls, terr = key.ParseMachine(j.TLS)
		s.relay, rerr = key.ParseSecret(j.Relay)
		if terr != nil || rerr != nil {
			return nil, h.dir.damaged(hubFile, "a key is missing or malformed")
		}
	} else {
		s.tls, s.relay = key.NewMachine(), key.NewSecret()
	}
	if h.public != "" {
		s.public = h.public
	}
	if s.public == "" {
		return nil, fault(ExitUsage, "e.g. overlayd relay --public 203.0.113.10",
			"say with --public under which address the nodes reach this machine")
	}
	if found && s.public == j.Public {
		return s, nil
	}
	if err := h.checkPublic(s.public); err != nil {
		return nil, err
	}
	return s, h.dir.writeJSON(hubFile, hubJSON{
		Schema: stateSchema, TLS: s.tls.Expose(), Relay: s.relay.Expose(), Public: s.public,
	})
}

// checkPublic refuses an address that no node could reach, for it goes into
// every invite from now on. A name of the DNS may come to be known later.
func (h *Hub) checkPublic(endpoint string) error {
	ctx, cancel := context.WithTimeout(context.Background(), lookupTimeout)
	defer cancel()
	_, err := lookupEndpoint(ctx, endpoint)
	if err == nil {
		return nil
	}
	if !strings.Contains(endpoint, ".") {
		return fault(ExitUsage, "give this machine's public address, e.g. --public 203.0.113.10, or its name in the DNS",
			"public address %s is no address, and no name that can be looked up", endpoint)
	}
	h.log.Warn("the public name cannot be looked up; nodes will need it", "endpoint", endpoint, "err", err)
	return nil
}

// Run serves the network until ctx ends or the local API is asked to stop.
func (h *Hub) Run(ctx context.Context) (err error) {
	unlock, err := h.dir.open()
	if err != nil {
		return err
	}
	defer unlock()
	if err := preflight(false); err != nil {
		return err
	}
	store, err := coord.OpenBolt(h.dir.file(storeFile))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	number := h.o.Overlay
	if fresh, err := isNew(store); err != nil {
		return err
	} else if fresh {
		if !number.IsValid() {
			number = DefaultOverlay
		}
		if err := h.checkOverlayFree(number); err != nil {
			return err
		}
	}
	state, err := h.state()
	if err != nil {
		return err
	}

	cert, pin, err := h.certificate(state)
	if err != nil {
		return err
	}
	// Both ports first: a second daemon must not get as far as the store's contents.
	ln, err := net.Listen("tcp", h.listen.String())
	if err != nil {
		return listenFault(err, "tcp", h.listen)
	}
	ln = netutil.LimitListener(ln, maxConns)
	defer ln.Close()
	h.relay, err = relay.NewServer(relay.ServerOptions{Listen: h.listen, Secret: state.relay, Log: h.log})
	if err != nil {
		return listenFault(err, "udp", h.listen)
	}
	passes := &passes{secret: state.relay}
	h.coord, err = coord.NewServer(coord.ServerOptions{
		Store: store, Log: h.log, Overlay: number,
		Relay:    coord.Relay{ID: relayID, Name: relayName, Endpoint: state.public},
		Endpoint: state.public, Pin: pin, Unpinned: h.o.TLSCert != "", Passes: passes,
		Removed: func(r coord.Removal) { h.relay.Disconnect(passes.network, relay.Label(r.Label), r.Serial) },
	})
	if err != nil {
		h.relay.Close()
		return err
	}
	passes.network = relay.Network(h.coord.Network())
	for _, r := range h.coord.Removals() { // the relay forgets with each start, and passes live for days
		h.relay.Disconnect(passes.network, relay.Label(r.Label), r.Serial)
	}
	return h.serve(ctx, ln, cert, pin)
}

const (
	relayID   = "1" // the only relay so far
	relayName = "vps"
)

// serve runs the three parts; when one ends, all do.
func (h *Hub) serve(ctx context.Context, ln net.Listener, cert tls.Certificate, pin key.Pin) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	mux := http.NewServeMux()
	mux.Handle(relay.StreamPath, h.relay)
	mux.Handle("/", h.coord.Handler())
	web := coord.NewHTTPServer(mux, cert, h.log)

	// The relay's readers keep their processors while they rest between two
	// bursts: the rest of the program gets as many as there are.
	usual := runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(2 * usual)
	defer runtime.GOMAXPROCS(usual)

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return h.relay.Run(ctx) })
	g.Go(func() error { return h.coord.Run(ctx) })
	g.Go(func() error {
		if err := web.ServeTLS(ln, "", ""); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve the API: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		return web.Close()
	})
	g.Go(func() error {
		defer cancel()
		if err := h.selfInvite(ctx, pin); err != nil {
			return err
		}
		return h.node.runLocked(ctx)
	})
	h.log.Info("relay listens", "addr", h.listen, "network", h.coord.Network())
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// selfInvite gives the hub's own node what every other gets: an invite, here
// for the way over loopback.
func (h *Hub) selfInvite(ctx context.Context, pin key.Pin) error {
	id, err := h.dir.identity()
	if err != nil {
		return err
	}
	at := h.loopback()
	if id != nil && id.joined() {
		if id.Endpoint != at || id.Pin != pin {
			id.Endpoint, id.Pin = at, pin
			return h.dir.saveIdentity(id)
		}
		return nil
	}
	name := h.o.Name
	if name == "" {
		name = relayName
	}
	link, err := h.coord.Invite(ctx, coord.Invite{Name: name, Role: coord.RoleRelay, Address: h.o.Address, TTL: time.Hour})
	if err != nil {
		return err
	}
	link.Endpoint, link.Pin = at, pin
	h.node.o.Link = link.Encode()
	return nil
}

// loopback is how the hub's own node reaches the API.
func (h *Hub) loopback() string {
	if !h.listen.Addr().IsUnspecified() {
		return h.listen.String()
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), h.listen.Port()).String()
}

// isNew reports whether a store holds no network yet.
func isNew(store coord.Store) (bool, error) {
	records, _, err := store.Load(context.Background())
	return len(records) == 0, err
}

// checkOverlayFree refuses to number a new network with addresses that this
// machine already sees on a real one. Of a network that there is, the plan tells.
func (h *Hub) checkOverlayFree(want netip.Prefix) error {
	host, err := routing.Look()
	if err != nil {
		return err
	}
	for _, c := range host.Connected(want, h.node.o.Interface) {
		return fault(ExitConflict, "choose another prefix with --overlay, e.g. --overlay 100.88.0.0/24",
			"overlay %s overlaps %s, which this machine has on %s", want, c.Prefix, c.Link)
	}
	return nil
}

// certificate is what the TLS port shows: the operator's, or one made of the
// hub's own key and pinned by the invites. The hub's own node pins either: it
// comes over loopback, for which no certificate is.
func (h *Hub) certificate(s *hubState) (tls.Certificate, key.Pin, error) {
	if h.o.TLSCert != "" {
		cert, err := tls.LoadX509KeyPair(h.o.TLSCert, h.o.TLSKey)
		if err != nil {
			return cert, key.Pin{}, fault(ExitFailure, "check the files given with --tls-cert and --tls-key", "load certificate: %v", err)
		}
		return cert, key.PinOf(cert.Leaf), nil
	}
	host, _, err := net.SplitHostPort(s.public)
	if err != nil {
		return tls.Certificate{}, key.Pin{}, fault(ExitUsage, "write it as 203.0.113.10 or vps.example.org:443", "public address %q is malformed", s.public)
	}
	return coord.SelfSigned(s.tls, host)
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

// passes makes the tickets that package coord hands out and package relay takes.
type passes struct {
	secret  key.Secret
	network relay.Network
}

// Pass implements coord.Passes.
func (p *passes) Pass(_ string, label uint32, serial uint64, notAfter time.Time) ([]byte, key.Secret) {
	t := relay.Ticket{Network: p.network, Label: relay.Label(label), NotAfter: notAfter, Serial: serial}.Append(nil)
	return t, relay.SessionKey(p.secret, t)
}
