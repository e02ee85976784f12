package coord

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"overlayd/internal/limit"
	"overlayd/overlay/key"
	"overlayd/overlay/policy"
)

// Server is a coordinator.
type Server struct {
	o         ServerOptions
	audiences []string // what a token may be for
	ledger    *ledger
	presence  *presence
	failures  *limit.Failures
	doorman   *doorman
	reach     reach
	refusals  *limit.Failures // of recorded refusals, by node
	churn     *limit.Failures // of nodes' changes of themselves, by node
	rolls     rolls
	moved     chan struct{} // buffered 1: a key may expire sooner than it did
}

// ServerOptions say what a Server serves.
type ServerOptions struct {
	Store    Store            // required; the Server does not close it
	Log      *slog.Logger     // nil: slog.Default
	Overlay  netip.Prefix     // zero: what the store says; required for a new store
	Relay    Relay            // this machine's; no ID: none. Label 0: that of the first node that enrolled as a relay without an offer
	Secret   key.Secret       // that relay's
	Endpoint string           // host:port, as nodes reach the Node service
	Pin      key.Pin          // of the TLS key; zero: nodes use ordinary certificate checks
	Unpinned bool             // nodes use ordinary certificate checks, but for those that know the pin otherwise
	Passes   Passes           // nil: nodes get none
	Removed  func(Removal)    // called for each node that was removed, after that is kept; must not call the Server; may be nil
	Now      func() time.Time // nil: time.Now
	Policy   string           // of a new network; "": policy.Default
	Events   *Events          // where changes are recorded; nil: nowhere
	KeyTTL   time.Duration    // how long the keys of people's nodes hold; 0: as before, DefaultKeyTTL in a new network; or ForEver

	Publisher Publisher // of ports; nil: none can be
	// Changed is called after each change, whoever made it: what guests have begun
	// and may go on with no more is ended. It returns how much that was, and must
	// change nothing itself. May be nil.
	Changed func() (ended int)
}

// Passes makes the tickets that let nodes attach to the relay with a secret. A
// later serial is a larger one.
type Passes interface {
	Pass(relaySecret key.Secret, label uint32, serial uint64, notAfter time.Time) (ticket []byte, k key.Secret)
}

// Removal says which passes are worth nothing any more: those for a label whose
// serials go up to Serial.
type Removal struct {
	Label  uint32
	Serial uint64
}

func (o *ServerOptions) validate() error {
	if o.Store == nil {
		return errors.New("a coordinator needs a store")
	}
	if _, _, err := net.SplitHostPort(o.Endpoint); err != nil {
		return problem(KindInvalid, "write it as host:port", "the coordinator's address %q is malformed", o.Endpoint)
	}
	if o.Overlay.IsValid() {
		if err := checkOverlay(o.Overlay); err != nil {
			return err
		}
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Removed == nil {
		o.Removed = func(Removal) {}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if err := checkKeyTTL(o.KeyTTL); err != nil {
		return err
	}
	if o.Policy == "" {
		o.Policy = policy.Default
	}
	return nil
}

// NewServer loads the store. A new one becomes the network of the prefix.
func NewServer(o ServerOptions) (*Server, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	s := &Server{
		o:         o,
		audiences: []string{audience(key.Pin{}, o.Endpoint)},
		presence:  newPresence(),
		failures:  limit.NewFailures(),
		doorman:   newDoorman(),
		refusals:  limit.NewFailures(),
		churn:     limit.New(churnBurst, churnEvery),
		moved:     make(chan struct{}, 1),
	}
	if !o.Pin.IsZero() {
		s.audiences = append(s.audiences, audience(o.Pin, o.Endpoint))
	}
	var err error
	if s.ledger, err = openLedger(context.Background(), o.Store, s.changed); err != nil {
		return nil, err
	}
	s.noteGap()
	founding := withAct(context.Background(), act{who: byCoordinator, call: "Found"})
	if err := s.ledger.change(founding, s.found); err != nil {
		return nil, err
	}
	err = s.ledger.change(withAct(context.Background(), act{who: byCoordinator, call: "KeyTTL"}), func(snap *snapshot) ([]Record, error) {
		return snap.setKeyTTL(o.KeyTTL, o.Now().UTC()), nil
	})
	if err != nil {
		return nil, err
	}
	s.presence.revoked = s.removals()
	if have := s.Overlay(); o.Overlay.IsValid() && o.Overlay != have {
		return nil, problem(KindConflict,
			fmt.Sprintf("start it with --overlay %s, or with another --state-dir to make a new network", have),
			"the overlay of this network is %s, not %s", have, o.Overlay)
	}
	return s, nil
}

// found decides how a new store becomes a network, and an older one one of
// today.
func (s *Server) found(snap *snapshot) ([]Record, error) {
	switch {
	case snap.network.Schema > networkSchema:
		return nil, problem(KindConflict, "use the version of overlayd that wrote it",
			"the coordinator's database has the schema %d, and this version knows %d", snap.network.Schema, networkSchema)
	case snap.network.Overlay.IsValid() && snap.network.Schema == networkSchema && len(snap.network.Signer) > 0:
		return nil, nil
	case snap.network.Overlay.IsValid() && snap.network.Schema == networkSchema: // from before there were rolls
		n := snap.network
		n.Signer = key.NewMachine().Expose()
		return []Record{put(keyNetwork, n)}, nil
	case snap.network.Overlay.IsValid():
		return snap.upgrade(s.o.Policy, s.o.Now().UTC()), nil
	}
	if !s.o.Overlay.IsValid() {
		return nil, problem(KindInvalid, "name one: --overlay 172.18.0.0/24", "a new network needs an overlay prefix")
	}
	now := s.o.Now().UTC()
	n := networkRecord{Overlay: s.o.Overlay, Created: now, Schema: networkSchema, Signer: key.NewMachine().Expose()}
	rand.Read(n.ID[:])
	return []Record{put(keyNetwork, n), putPolicy(policyRecord{Version: 1, Text: s.o.Policy, By: byCoordinator, At: now})}, nil
}

// Network returns the network's id.
func (s *Server) Network() NetworkID { return s.ledger.now().network.ID }

// Overlay returns the network's prefix.
func (s *Server) Overlay() netip.Prefix { return s.ledger.now().network.Overlay }

// errStopping ends the streams of a server that ends.
var errStopping = problem(KindUnreachable, "", "the coordinator is stopping")

// Run follows the store until ctx ends, and then ends all streams: the HTTP
// server that carries them can be shut down. The handlers work before it too.
func (s *Server) Run(ctx context.Context) error {
	var sweeper sync.WaitGroup
	sweep, stop := context.WithCancel(ctx)
	sweeper.Go(func() { s.sweep(sweep) })
	err := s.ledger.follow(ctx)
	stop()
	sweeper.Wait()
	s.presence.close(errStopping)
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("follow store: %w", err)
}

const (
	// sweepEvery is how often what time has ended is cleared away; nobody waits
	// for it: a grant ends at the node that enforces it. It is also how late a key
	// expires at most if the clock was set meanwhile.
	sweepEvery = time.Minute
	// endAgain is how soon what could not be kept is tried again: the disk is full,
	// for instance. Those who receive let nobody in whose key has expired.
	endAgain = 10 * time.Second
)

// sweep ends what time has ended, keys at their moment, until ctx ends.
func (s *Server) sweep(ctx context.Context) {
	due := time.Now().Add(sweepEvery)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		wait := time.Until(due)
		if next := s.ledger.now().nextExpiry(); !next.IsZero() {
			wait = min(wait, next.Sub(s.o.Now()))
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-s.moved:
			continue
		case <-timer.C:
		}
		err := s.end(ctx)
		if ctx.Err() != nil {
			return
		}
		if due = time.Now().Add(sweepEvery); err == nil {
			continue
		}
		s.o.Log.Error("what is over is not cleared away", "err", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(endAgain):
		}
	}
}

// end ends what is over by now: first keys, which somebody may be using.
func (s *Server) end(ctx context.Context) error {
	err := s.ledger.change(withAct(ctx, act{who: byCoordinator, call: "Expire"}), func(snap *snapshot) ([]Record, error) {
		return snap.expired(s.o.Now().UTC()), nil
	})
	if err != nil {
		return err
	}
	return s.ledger.change(withAct(ctx, act{who: byCoordinator, call: "Sweep"}), func(snap *snapshot) ([]Record, error) {
		return snap.overdue(s.o.Now().UTC()), nil
	})
}

// changed tells everybody what a commit changed.
func (s *Server) changed(ctx context.Context, c change) {
	old, next := c.old, c.next
	labels, gone := changedLabels(old, next)
	for _, n := range gone {
		s.presence.forget(n.ID, errNotMember)
		s.o.Removed(s.presence.revoke(n.ID, n.Label, s.o.Now()))
		s.o.Log.Info("node removed", "node", n.Name, "addr", addrOf(next.network.Overlay, n.Label))
	}
	for id, n := range next.nodes {
		if o := old.nodes[id]; o != nil && !o.Barred.Equal(n.Barred) {
			s.o.Removed(s.presence.revoke(id, n.Label, s.o.Now()))
			s.o.Log.Info("node barred", "node", n.Name, "addr", addrOf(next.network.Overlay, n.Label))
		}
		if u := next.users[n.User]; n.User != "" && u != old.users[n.User] { // its name or state may be another
			labels = append(labels, n.Label)
		}
	}
	relays := !slices.Equal(s.relays(old), s.relays(next))
	if relays || len(labels) > 0 || old.standing != next.standing {
		s.presence.mark(s.o.Now(), relays, labels)
	}
	s.recordChange(ctx, c)
	if s.o.Changed != nil {
		tallyOf(ctx).add(s.o.Changed())
	}
	select {
	case s.moved <- struct{}{}:
	default: // somebody has already said so
	}
}

// Removals returns what Removed was told, also before this start, as far as the
// passes would still be good: whoever refuses them may have forgotten it.
func (s *Server) Removals() []Removal {
	rs, _ := s.presence.revocations()
	return rs
}

// removals is what the store knows of them.
func (s *Server) removals() (rs []Removal) {
	snap, now := s.ledger.now(), s.o.Now()
	for label, when := range snap.retired {
		if now.Sub(when) <= passLife {
			rs = append(rs, Removal{label, serialAt(when)})
		}
	}
	for label, n := range snap.byLabel { // which may have been another's before
		if now.Sub(n.Joined) <= passLife {
			rs = append(rs, Removal{label, serialAt(n.Joined)})
		}
		if !n.Barred.IsZero() && now.Sub(n.Barred) <= passLife {
			rs = append(rs, Removal{label, serialAt(n.Barred)})
		}
	}
	return rs
}

// Invite makes an invite. Its secret is in the link, and nowhere else.
func (s *Server) Invite(ctx context.Context, want Invite) (Link, error) {
	link, _, err := s.invite(withAct(ctx, act{who: byCoordinator, call: "Invite"}), want)
	return link, err
}

func (s *Server) invite(ctx context.Context, want Invite) (Link, inviteRecord, error) {
	l := Link{Endpoint: s.o.Endpoint, Invite: newID("i", 9), Secret: key.NewSecret()}
	if !s.o.Unpinned {
		l.Pin = s.o.Pin
	}
	var rec inviteRecord
	err := s.ledger.change(ctx, func(snap *snapshot) (changes []Record, err error) {
		rec, changes, err = snap.invite(want, l.Invite, l.Secret, s.o.Now().UTC())
		return changes, err
	})
	if err != nil {
		return Link{}, inviteRecord{}, err
	}
	s.o.Log.Info("invite made", "invite", rec.ID, "role", string(rec.Role), "uses", rec.Uses, "expires", rec.Expires)
	return l, rec, nil
}
