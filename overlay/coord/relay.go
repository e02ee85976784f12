package coord

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"overlayd/overlay/coord/api"
	"overlayd/overlay/key"
)

// Relay is where packets for peers can be sent.
type Relay struct {
	ID       string
	Name     string
	Endpoint string  // host:port, UDP and TCP
	Label    uint32  // its own node's; 0: it has none
	Pin      key.Pin // of its TLS key; zero: ordinary certificate checks
}

// RelayOffer is what a relay that joins a network serves. Nobody but the
// coordinator gets to see it.
type RelayOffer struct {
	Endpoint string     // host:port, as nodes reach it by UDP and TCP
	Pin      key.Pin    // of its TLS key; zero: ordinary certificate checks
	Secret   key.Secret // what its session keys are derived from
}

// Attachment is a relay that a node is attached to.
type Attachment struct {
	Relay string        // its ID
	Cost  time.Duration // the round trip there, more by TLS; 0: unknown
}

// mostAttachments bounds what a node may report.
const mostAttachments = 16

// relayRecord is the part of a nodeRecord that makes the node a relay.
type relayRecord struct {
	Endpoint string  `json:"endpoint"`
	Pin      key.Pin `json:"pin"`
	Secret   []byte  `json:"secret"`
}

func (r *relayRecord) secret() key.Secret {
	s, err := key.ParseSecret(r.Secret)
	if err != nil { // a damaged record: nobody can use passes made with it
		return key.NewSecret()
	}
	return s
}

func (r *relayRecord) equal(o *relayRecord) bool {
	if r == nil || o == nil {
		return r == o
	}
	return r.Endpoint == o.Endpoint && r.Pin == o.Pin && r.secret().Equal(o.secret())
}

func (o *RelayOffer) record() *relayRecord {
	if o == nil {
		return nil
	}
	return &relayRecord{Endpoint: o.Endpoint, Pin: o.Pin, Secret: o.Secret.Expose()}
}

// ownRelay returns the node of the coordinator's own machine, if that is a relay
// and has joined.
func (s *snapshot) ownRelay() *nodeRecord {
	var first *nodeRecord
	for _, n := range s.nodes {
		if n.Role == RoleRelay && n.Relay == nil && (first == nil || n.Joined.Before(first.Joined)) {
			first = n
		}
	}
	return first
}

// checkOffer refuses what no node could use beside the relays that there are.
func (s *snapshot) checkOffer(own Relay, m key.MachinePublic, o *RelayOffer) error {
	if o == nil {
		return nil
	}
	host, port, err := net.SplitHostPort(o.Endpoint)
	if err != nil || host == "" || port == "" || len(o.Endpoint) > maxEndpoint || strings.Trim(o.Endpoint, endpointChars) != "" {
		return problem(KindInvalid, "write it as host:port", "the relay's address %.80q is malformed", o.Endpoint)
	}
	if o.Secret.IsZero() {
		return problem(KindInvalid, "", "the relay sent no secret")
	}
	const hint = "give this machine's own public address with --public"
	if own.ID != "" && own.Endpoint == o.Endpoint {
		return problem(KindConflict, hint, "%s is the address of the network's first relay", o.Endpoint)
	}
	for _, n := range s.relays {
		if n.Relay.Endpoint == o.Endpoint && n.Machine != m {
			return problem(KindConflict, hint+", or remove that relay: overlayd nodes remove "+n.Name,
				"%s is the address of the relay %s", o.Endpoint, n.Name)
		}
	}
	return nil
}

// maxEndpoint holds the longest host name, and a port.
const maxEndpoint = 260

// offer decides what a relay's new offer changes.
func (s *snapshot) offer(id string, o *RelayOffer) ([]Record, error) {
	n := s.nodes[id]
	if n == nil {
		return nil, errNotMember
	}
	if o == nil || n.Relay == nil || n.Relay.equal(o.record()) {
		return nil, nil
	}
	next := *n
	next.Relay = o.record()
	return []Record{putNode(next)}, nil
}

// relays returns all of the network's: this machine's own first, if it is one.
func (s *Server) relays(snap *snapshot) []Relay {
	var all []Relay
	if own := s.o.Relay; own.ID != "" {
		if n := snap.ownRelay(); n != nil && own.Label == 0 {
			own.Label, own.Name = n.Label, n.Name
		}
		all = append(all, own)
	}
	for _, n := range snap.joinedRelays() {
		all = append(all, Relay{ID: n.ID, Name: n.Name, Endpoint: n.Relay.Endpoint, Label: n.Label, Pin: n.Relay.Pin})
	}
	return all
}

// joinedRelays returns the nodes that are relays beside the coordinator's own,
// by label.
func (s *snapshot) joinedRelays() []*nodeRecord {
	return slices.SortedFunc(maps.Values(s.relays), func(a, b *nodeRecord) int { return cmp.Compare(a.Label, b.Label) })
}

// passesFor returns a node's passes, one for each relay, renewed when they are
// due, and none for a node that is not active, or was removed meanwhile: its Removal
// may not cover them.
func (s *Server) passesFor(n *nodeRecord, now time.Time) []Pass {
	if s.o.Passes == nil || s.ledger.now().stateOf(n) != NodeActive {
		return nil
	}
	since := n.Joined
	if n.Barred.After(since) {
		since = n.Barred
	}
	var all []Pass
	add := func(id string, secret key.Secret) {
		all = append(all, s.presence.pass(n.ID, id, secret, since, now, func(serial uint64, notAfter time.Time) Pass {
			ticket, k := s.o.Passes.Pass(secret, n.Label, serial, notAfter)
			return Pass{Relay: id, Ticket: ticket, Key: k, NotAfter: notAfter}
		}))
	}
	if s.o.Relay.ID != "" {
		add(s.o.Relay.ID, s.o.Secret)
	}
	snap := s.ledger.now()
	for _, r := range snap.joinedRelays() {
		if r.ID != n.ID { // its own relay asks it for nothing
			add(r.ID, r.Relay.secret())
		}
	}
	if m := s.ledger.now().nodes[n.ID]; m == nil || s.ledger.now().stateOf(m) != NodeActive {
		return nil
	}
	return all
}

// samePasses compares what was sent with what is due.
func samePasses(a, b []Pass) bool {
	return slices.EqualFunc(a, b, func(a, b Pass) bool { return a.Relay == b.Relay && a.Key.Equal(b.Key) })
}

func offerToWire(o *RelayOffer) *api.RelayOffer {
	if o == nil {
		return nil
	}
	return &api.RelayOffer{Endpoint: o.Endpoint, Pin: pinToWire(o.Pin), Secret: o.Secret.Expose()}
}

func offerFromWire(w *api.RelayOffer) (*RelayOffer, error) {
	if w == nil {
		return nil, nil
	}
	o := &RelayOffer{Endpoint: w.Endpoint}
	var err error
	if o.Pin, err = pinFromWire(w.Pin); err != nil {
		return nil, problem(KindInvalid, "", "the relay's key fingerprint is malformed")
	}
	if o.Secret, err = key.ParseSecret(w.Secret); err != nil {
		return nil, problem(KindInvalid, "", "the relay's secret is malformed")
	}
	return o, nil
}

func pinToWire(p key.Pin) string {
	if p.IsZero() {
		return ""
	}
	return p.String()
}

func pinFromWire(s string) (key.Pin, error) {
	if s == "" {
		return key.Pin{}, nil
	}
	return key.ParsePin(s)
}

func relaysToWire(rs []Relay) (w []*api.Relay) {
	for _, r := range rs {
		w = append(w, &api.Relay{Id: r.ID, Name: r.Name, Endpoint: r.Endpoint, Label: r.Label, Pin: pinToWire(r.Pin)})
	}
	return w
}

func relaysFromWire(w []*api.Relay) (rs []Relay, err error) {
	for _, r := range w {
		pin, err := pinFromWire(r.Pin)
		if err != nil {
			return nil, fmt.Errorf("the relay %.80q: %w", r.Id, err)
		}
		rs = append(rs, Relay{ID: r.Id, Name: r.Name, Endpoint: r.Endpoint, Label: r.Label, Pin: pin})
	}
	return rs, nil
}

func attachedToWire(as []Attachment) (w []*api.Attachment) {
	for _, a := range as {
		w = append(w, &api.Attachment{Relay: a.Relay, CostUs: uint32(min(a.Cost.Microseconds(), 1<<32-1))})
	}
	return w
}

// attachedFromWire leaves out what no relay can be.
func attachedFromWire(w []*api.Attachment) (as []Attachment) {
	for _, a := range w {
		if validID(a.Relay) && len(as) < mostAttachments {
			as = append(as, Attachment{a.Relay, time.Duration(a.CostUs) * time.Microsecond})
		}
	}
	return as
}

func revokedToWire(rs []Removal) (w []*api.Revocation) {
	for _, r := range rs {
		w = append(w, &api.Revocation{Label: r.Label, Serial: r.Serial})
	}
	return w
}

func revokedFromWire(w []*api.Revocation) (rs []Removal) {
	for _, r := range w {
		rs = append(rs, Removal{r.Label, r.Serial})
	}
	return rs
}
