package overlay

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"overlayd/overlay/coord"
	"overlayd/overlay/key"
)

// hubJSON is what a relay's machine keeps besides its membership.
type hubJSON struct {
	Schema int    `json:"schema"`
	TLS    []byte `json:"tls_key"`
	Relay  []byte `json:"relay_secret"`
	Public string `json:"public"`
	Joined bool   `json:"joined,omitempty"` // the network of another machine's coordinator
}

// hubState is hubJSON with keys that hide themselves.
type hubState struct {
	tls    key.Machine
	relay  key.Secret
	public string
}

// joins reports whether this machine's relay belongs to the network of another
// machine's coordinator: the link says so at the first start, and from then on
// what is stored.
func (h *Hub) joins() (bool, error) {
	link := h.o.Link != ""
	founded, err := h.founded()
	switch {
	case err != nil:
		return false, err
	case link && founded:
		return false, fault(ExitConflict, "leave --join out to go on with that network, or choose another --state-dir",
			"this machine is the coordinator of a network of its own")
	}
	var j hubJSON
	id, err := h.dir.identity()
	if err == nil {
		_, err = h.dir.readJSON(hubFile, &j)
	}
	if err != nil {
		return false, err
	}
	if j.Joined && !link && !founded && (id == nil || !id.joined()) {
		return false, fault(ExitNotJoined, "start it with --join and a link again, or found a network of its own with another --state-dir",
			"this relay was to join another machine's network, and has not done so yet")
	}
	joined := link || j.Joined && !founded
	if joined && (h.o.Overlay.IsValid() || h.o.Address.IsValid()) {
		return false, fault(ExitConflict, "leave --overlay and --address out",
			"this relay belongs to a network whose coordinator gives out the addresses")
	}
	return joined, nil
}

// founded reports whether this machine keeps a network's records.
func (h *Hub) founded() (bool, error) {
	if there, err := h.dir.has(storeFile); !there || err != nil {
		return false, err
	}
	store, err := coord.OpenBolt(h.dir.file(storeFile))
	if err != nil {
		return false, err
	}
	fresh, err := isNew(store)
	return !fresh, errors.Join(err, store.Close())
}

// state loads the hub's keys, or makes them at the first start.
func (h *Hub) state(joined bool) (*hubState, error) {
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
	if found && s.public == j.Public && joined == j.Joined {
		return s, nil
	}
	if err := h.checkPublic(s.public); err != nil {
		return nil, err
	}
	return s, h.dir.writeJSON(hubFile, hubJSON{
		Schema: stateSchema, TLS: s.tls.Expose(), Relay: s.relay.Expose(), Public: s.public, Joined: joined,
	})
}

// carrierNAT is what carriers use behind their own NATs (RFC 6598).
var carrierNAT = netip.MustParsePrefix("100.64.0.0/10")

// isPublic reports whether an address can be reached from everywhere, as far as
// it says itself.
func isPublic(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.IsPrivate() && !carrierNAT.Contains(a)
}

// checkPublic refuses an address that no node could reach, for it goes into
// every invite from now on. A name of the DNS may come to be known later.
func (h *Hub) checkPublic(endpoint string) error {
	ctx, cancel := context.WithTimeout(context.Background(), lookupTimeout)
	defer cancel()
	at, err := lookupEndpoint(ctx, endpoint)
	if err == nil {
		if !slices.ContainsFunc(at, func(a netip.AddrPort) bool { return isPublic(a.Addr()) }) {
			h.log.Warn("the public address is a private one: only nodes of the same network will reach this machine", "endpoint", endpoint)
		}
		return nil
	}
	if !strings.Contains(endpoint, ".") {
		return fault(ExitUsage, "give this machine's public address, e.g. --public 203.0.113.10, or its name in the DNS",
			"public address %s is no address, and no name that can be looked up", endpoint)
	}
	h.log.Warn("the public name cannot be looked up; nodes will need it", "endpoint", endpoint, "err", err)
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
