package overlay

import (
	"context"
	"net/netip"
	"time"

	"overlayd/overlay/coord"
	"overlayd/overlay/key"
	"overlayd/overlay/record"
	"overlayd/overlay/relay"
	"overlayd/routing"
)

const (
	relayID   = "1" // of the relay beside the coordinator; others have their node's
	relayName = "vps"

	eventsName = "control" // the record of what was changed, in the state directory
)

// coordinator is what the first relay of a network has and the others have not.
type coordinator struct {
	*coord.Server
	pin    key.Pin // of this machine's TLS key
	events *record.Log
}

// bookkeeping is the coordinator's store, and the prefix of a network that is to
// be made in it.
type bookkeeping struct {
	coord.Store
	number netip.Prefix // zero: there is a network already
}

// openStore opens the store, and checks that a new network has room here.
func (h *Hub) openStore() (*bookkeeping, error) {
	db, err := coord.OpenBolt(h.dir.file(storeFile))
	if err != nil {
		return nil, err
	}
	store := &bookkeeping{db, h.o.Overlay}
	fresh, err := isNew(db)
	if err == nil && fresh {
		if !store.number.IsValid() {
			store.number = DefaultOverlay
		}
		err = h.checkOverlayFree(store.number)
	}
	if err != nil {
		db.Close()
		return nil, err
	}
	return store, nil
}

// isNew reports whether a store holds no network yet.
func isNew(store coord.Store) (bool, error) {
	records, _, err := store.Load(context.Background())
	return len(records) == 0, err
}

// newCoordinator makes the coordinator beside the relay.
func (h *Hub) newCoordinator(store *bookkeeping, state *hubState, pin key.Pin) (*coordinator, error) {
	own := coord.Relay{ID: relayID, Name: relayName, Endpoint: state.public, Pin: pin}
	unpinned := h.o.TLSCert != ""
	if unpinned {
		own.Pin = key.Pin{}
	}
	events, err := record.Open(h.dir.path, eventsName, record.Options{Chain: true, Log: h.log})
	if err != nil {
		return nil, err
	}
	passes := &passes{}
	server, err := coord.NewServer(coord.ServerOptions{
		Store: store.Store, Log: h.log, Overlay: store.number, KeyTTL: h.o.KeyTTL,
		Relay: own, Secret: state.relay,
		Endpoint: state.public, Pin: pin, Unpinned: unpinned, Passes: passes,
		Publisher: h.guest, Changed: h.guest.heed,
		Events:  &coord.Events{Dir: h.dir.path, Name: eventsName, Log: events},
		Removed: func(r coord.Removal) { h.relay.Disconnect(passes.network, relay.Label(r.Label), r.Serial) },
	})
	if err != nil {
		return nil, err
	}
	passes.network = relay.Network(server.Network())
	for _, r := range server.Removals() { // the relay forgets with each start, and passes live for days
		h.relay.Disconnect(passes.network, relay.Label(r.Label), r.Serial)
	}
	return &coordinator{server, pin, events}, nil
}

// selfInvite gives the hub's own node what every other gets: an invite, here
// for the way over loopback.
func (h *Hub) selfInvite(ctx context.Context) error {
	id, err := h.dir.identity()
	if err != nil {
		return err
	}
	at := h.loopback()
	if id != nil && id.joined() {
		if id.Endpoint != at || id.Pin != h.coord.pin {
			id.Endpoint, id.Pin = at, h.coord.pin
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
	link.Endpoint, link.Pin = at, h.coord.pin
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

// passes makes the tickets that package coord hands out and package relay takes.
type passes struct {
	network relay.Network
}

// Pass implements coord.Passes.
func (p *passes) Pass(secret key.Secret, label uint32, serial uint64, notAfter time.Time) ([]byte, key.Secret) {
	t := relay.Ticket{Network: p.network, Label: relay.Label(label), NotAfter: notAfter, Serial: serial}.Append(nil)
	return t, relay.SessionKey(secret, t)
}
