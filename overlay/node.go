package overlay

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"overlayd/overlay/coord"
	"overlayd/overlay/key"
	"overlayd/overlay/relay"
	"overlayd/overlay/underlay"
	"overlayd/routing"
)

const (
	// reassertEvery is how often the plan is made true again although nothing
	// was seen to change: a firewall reload that drops our chains tells nobody.
	reassertEvery = 30 * time.Second
	// retryApply is how soon a plan that could not be applied is tried again.
	retryApply = 2 * time.Second
	// clearTimeout bounds how long a stopping node works on taking back what
	// it changed; some twenty short commands.
	clearTimeout = 10 * time.Second
	// cacheEvery is how often the last map is saved at most; a map changes
	// whenever a peer comes or goes.
	cacheEvery = 2 * time.Second
)

// Node is one machine's membership in one network.
type Node struct {
	o      Options // set by New, then read-only, but for setProxy
	log    *slog.Logger
	dir    stateDir
	guard  *enforcer // of the map's rules
	flows  *flowRecord
	hub    *Hub      // nil but on a relay's machine
	proxy  proxyFunc // to coordinator and relays
	names  lanNames
	uid    int // of this process; -1: this system has none
	inside inside
	outer  outer
	ways   *ways // the proxy and the forwards

	bootID  uint64             // tells peers that this is a new start
	changed chan struct{}      // buffered 1: map or control changed
	host    chan struct{}      // buffered 1: links, addresses or routes changed
	woke    chan time.Duration // buffered 1: this process stood still for so long
	unsaved chan struct{}      // buffered 1: the map is another than the one on disk

	id    *identity     // set by Run before its goroutines start, then read-only but for keys
	keys  *ownKeys      // set likewise
	coord *coord.Client // likewise

	offer *coord.RelayOffer // what a relay serves that joined; set before Run

	taking sync.Mutex // held while a map takes another's place, before mu

	mu    sync.Mutex // guards view, moved and quit
	view  view
	moved chan struct{}      // closed when view changes, and made anew
	quit  context.CancelFunc // ends Run
}

// view is what the goroutines of a node know, for status and for each other.
type view struct {
	joined  bool // the node's id, keys and coord are set
	m       *coord.Map
	whole   *coord.Map // m with those whose keys have expired
	from    time.Time  // m is as it is from then on, by this machine's clock
	until   time.Time  // until then; zero: as long as whole stays
	fresh   bool       // m has come since the start
	asked   bool       // the relays whether m still holds, since the start
	control coord.ControlState
	outage  outage
	plan    *Plan               // nil until one was made
	failed  error               // why the plan is not wholly true
	echoes  map[key.Public]echo // by peer; never changed in place
	live    *machine            // nil before the interface is up and after it is gone
	over    string              // StateStopped or StateNeedsInvite once Run ends; "" before
	cause   error               // why Run ended; nil when it was told to
}

// outage is a time without the coordinator: attempts to reach it again are part
// of it.
type outage struct {
	since time.Time // the coordinator was last heard, or never and we gave up; zero: there is none
	err   error     // why the last attempt failed
}

// after returns the outage once the connection is in another state. heard is when
// anything last came from the coordinator.
func (o outage) after(s coord.ControlState, heard time.Time) outage {
	switch s.Phase {
	case coord.PhaseConnected:
		return outage{}
	case coord.PhaseLost:
		o.err = s.Err
		if o.since.IsZero() {
			o.since = s.Since
			if !heard.IsZero() && heard.Before(s.Since) {
				o.since = heard
			}
		}
	}
	return o
}

// New checks the options. Nothing is read or changed before Run.
func New(o Options) (*Node, error) {
	o, err := o.filled()
	if err != nil {
		return nil, err
	}
	n := &Node{
		o:       o,
		log:     o.Log,
		guard:   newEnforcer(o.Log),
		flows:   newFlowRecord(o.Log, o.StateDir),
		dir:     stateDir{o.StateDir},
		bootID:  rand.Uint64(),
		changed: make(chan struct{}, 1),
		host:    make(chan struct{}, 1),
		woke:    make(chan time.Duration, 1),
		moved:   make(chan struct{}),
		unsaved: make(chan struct{}, 1),
	}
	n.ways = &ways{n: n}
	n.outer, n.uid = hostOuter(), os.Geteuid()
	if o.Userspace {
		n.flows.seen = n.outside
	}
	return n, n.setProxy(o.Proxy)
}

// Run joins the network if need be, makes this machine match its map until ctx
// ends or the local API is asked to stop, and leaves the machine as it was.
func (n *Node) Run(ctx context.Context) (err error) {
	defer func() { n.end(err) }()
	if !n.o.Userspace {
		if err := preflight(n.o.Role == coord.RoleGateway, sudo+", or without root with --userspace"); err != nil {
			return err
		}
	}
	unlock, err := n.dir.open()
	if err != nil {
		return err
	}
	defer unlock()
	return n.runLocked(ctx)
}

// runLocked is Run for a caller that has looked at the machine and holds the
// state directory.
func (n *Node) runLocked(ctx context.Context) (err error) {
	if err := n.ways.load(); err != nil {
		n.log.Error("proxy and forwards are off", "err", err)
	}
	if err := n.inside.load(n.dir); err != nil {
		n.log.Error("the proxy connects to nothing outside", "err", err)
	}
	if n.id, err = n.joiner().join(ctx); err != nil {
		return err
	}
	n.dir.forget(endFile)
	if n.coord, err = n.client(n.id); err != nil {
		return err
	}
	cached, err := n.dir.cachedMap()
	if err != nil {
		return err
	}
	n.id.promote(cached)
	n.keys = newOwnKeys(n.log, n.dir, n.id)
	if cached != nil {
		n.hold(cached, time.Now(), func(*view) {})
	}
	n.update(func(v *view) { v.joined = true })
	host, err := n.openHost()
	if err != nil {
		return err
	}
	ctx, quit := context.WithCancel(ctx)
	n.mu.Lock()
	n.quit = quit
	n.mu.Unlock()
	api, err := n.listenLocal(ctx)
	if err != nil {
		quit()
		return err
	}
	defer api.close() // last, so that `overlayd down` sees the socket go when all is done
	defer quit()

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		<-ctx.Done()
		n.end(nil) // follow knows better
		return nil
	})
	g.Go(func() error { return n.follow(ctx, cached) })
	g.Go(func() error { return n.askRelays(ctx) })
	g.Go(func() error { return n.watchKey(ctx) })
	g.Go(func() error { return n.watchExpiry(ctx) })
	g.Go(func() error { return n.reconcile(ctx, host) })
	g.Go(func() error { return n.watchFlows(ctx) })
	g.Go(func() error { return routing.Watch(ctx, func() { wake(n.host) }) })
	g.Go(func() error { return n.watchEchoes(ctx) })
	g.Go(func() error { return n.watchDevices(ctx) })
	g.Go(func() error { return n.serveNames(ctx) })
	g.Go(func() error { return n.ways.run(ctx) })
	g.Go(func() error {
		return watchSleep(ctx, func(d time.Duration) {
			select {
			case n.woke <- d:
			case <-ctx.Done():
			}
		})
	})
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		n.dir.ended(n.o.Socket, err, time.Now())
		return err
	}
	return nil
}

// end takes note that Run ends, and why. The first who says that this node is no
// member is right.
func (n *Node) end(why error) {
	n.update(func(v *view) {
		if v.over != StateNeedsInvite {
			v.over, v.cause = overState(why), why
		}
	})
}

// overState is the state of a node whose Run ends for a reason.
func overState(why error) string {
	if why == nil {
		return StateStopped
	}
	if p, ok := coord.AsProblem(why); ok && p.Kind == coord.KindDenied || AsFault(why).Code == ExitNotJoined {
		return StateNeedsInvite
	}
	return StateStopped
}

// watchFlows records what the filter sees until ctx ends, its last words
// included.
func (n *Node) watchFlows(ctx context.Context) error {
	writing, stop := context.WithCancel(context.WithoutCancel(ctx))
	var g errgroup.Group
	g.Go(func() error { return n.flows.run(writing) })
	err := n.guard.run(ctx, n.flows.note)
	stop()
	return errors.Join(err, g.Wait())
}

// Stop makes Run return.
func (n *Node) Stop() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.quit != nil {
		n.quit()
	}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // somebody has already said so
	}
}

func (n *Node) update(f func(*view)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f(&n.view)
	close(n.moved)
	n.moved = make(chan struct{})
}

func (n *Node) look() view {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.view
}

// lookMoved also returns a channel that is closed when that is true no more.
func (n *Node) lookMoved() (view, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.view, n.moved
}

// outerDialer makes TCP connections to coordinator and relays.
func (n *Node) outerDialer() *net.Dialer { return markedDialer(!n.o.Userspace) }

// joiner makes this node a member, or finds that it is one.
func (n *Node) joiner() joiner {
	return joiner{o: n.o, log: n.log, dir: n.dir, offer: n.offer, client: n.client}
}

func (n *Node) client(id *identity) (*coord.Client, error) {
	return coord.NewClient(coord.ClientOptions{
		Endpoint: id.Endpoint, Pin: id.Pin, Machine: id.Machine, Dialer: n.outerDialer(), Proxy: n.proxy, Log: n.log,
	})
}

// follow keeps the map fresh and saves it. It returns an error only when the
// coordinator says that this node is a member no more.
func (n *Node) follow(ctx context.Context, cached *coord.Map) error {
	g, ctx := errgroup.WithContext(ctx)
	var advertise func() []netip.Prefix // nil: what the invite said
	if offered := n.id.Advertise; offered != nil {
		advertise = func() []netip.Prefix { return offered }
	}
	g.Go(func() error { return n.keepMap(ctx) })
	g.Go(func() error {
		err := n.coord.Follow(ctx, coord.FollowOptions{
			Have:      cached,
			BootID:    n.bootID,
			Advertise: advertise,
			Relay:     n.offer,
			Attached:  n.attached,
			Applied:   n.guard.tells,
			Key:       n.keys.wished,
			Keyed:     n.keys.told,
			Report:    n.guard.report,
			OnMap: func(m *coord.Map) {
				n.take(m, func(v *view) { v.fresh = true })
			},
			OnState: func(s coord.ControlState) {
				n.update(func(v *view) { v.control, v.outage = s, v.outage.after(s, n.coord.Heard()) })
				wake(n.changed)
			},
		})
		if _, final := coord.AsProblem(err); final {
			n.log.Error("the coordinator refuses this node", "err", err)
			n.end(err)
			n.guard.end(time.Now())
			return err
		}
		return ctx.Err()
	})
	err := g.Wait()
	if _, final := coord.AsProblem(err); final {
		n.dir.forget(mapFile) // it is true no more; see joinAgain
	}
	return err
}

// keepMap saves the last map for a start without the coordinator.
func (n *Node) keepMap(ctx context.Context) error {
	save := func() {
		if m := n.look().whole; m != nil {
			if err := n.dir.saveMap(m); err != nil {
				n.log.Warn("the last map is not saved", "err", err)
			}
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.unsaved:
			save()
		}
		select {
		case <-ctx.Done():
			save()
			return nil
		case <-time.After(cacheEvery):
		}
	}
}

// take puts a map in the place of the last one. Its rules are in force first.
func (n *Node) take(m *coord.Map, also func(*view)) {
	n.taking.Lock()
	defer n.taking.Unlock()
	n.replace(m, also)
}

// replace is take for a caller that holds taking.
func (n *Node) replace(m *coord.Map, also func(*view)) {
	n.hold(recall(m, n.look().m), time.Now(), also)
	wake(n.unsaved)
}

// heed puts a map's rules into force, and lets a relay on this machine take note
// of it.
func (n *Node) heed(m *coord.Map) {
	n.guard.heed(m, time.Now())
	if err := n.inside.learn(n.dir, m); err != nil {
		n.log.Warn("what is inside the network is not saved", "err", err)
	}
	if n.hub != nil {
		n.hub.heed(m)
	}
}

// attached says at which relays this node can be reached.
func (n *Node) attached() []coord.Attachment {
	v := n.look()
	if v.live == nil {
		return nil
	}
	return attachments(v.live.bind.Relays())
}

// attachments says to which relays there is a session. What one costs is told
// where there is another to choose: every change is news for all nodes.
func attachments(relays []underlay.RelayStatus) (all []coord.Attachment) {
	for _, r := range relays {
		if !r.Attached {
			continue
		}
		a := coord.Attachment{Relay: r.ID}
		if len(relays) > 1 {
			a.Cost = r.Cost
		}
		all = append(all, a)
	}
	return all
}

// ownPort is the in-process way to the relay on a relay's own machine.
func (n *Node) ownPort(m *coord.Map) *relay.Port {
	if n.hub == nil {
		return nil
	}
	return n.hub.relay.Attach(relay.Network(m.Network), relay.Label(m.Self.Label))
}
