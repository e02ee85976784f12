package underlay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"golang.zx2c4.com/wireguard/conn"

	"overlayd/overlay/key"
	"overlayd/overlay/relay"
	"overlayd/overlay/udp"
)

// Options say how New makes a Bind. The zero value works.
type Options struct {
	Log  *slog.Logger // nil: none
	Port uint16       // UDP port; 0: any
	Mark uint32       // SO_MARK of the sockets; 0: none

	// Key is this node's WireGuard key, which also seals what peers tell each
	// other about direct paths. The zero value: no direct paths.
	Key key.Private

	// Own is set on a relay's machine: peers are reached through it, or by the
	// other relays. The Bind closes it at the end.
	Own *relay.Port
	// OwnID is the ID of the relay that Own belongs to; "": the first of
	// SetRelays.
	OwnID string

	// Dial makes a TLS connection to a relay, for when UDP does not get there;
	// nil: there is only UDP.
	Dial func(context.Context, Relay) (*relay.Stream, error)

	// Moved is told by Run that the sockets are on another port now. nil: nobody.
	Moved func(port uint16)
}

// Bind is WireGuard's conn.Bind: by the relays, and directly where that works.
type Bind struct {
	o       Options // set by New, then read-only
	direct  bool    // direct paths are looked for
	sealing bool    // there is a key to seal probes with
	log     *slog.Logger
	poke    chan struct{} // makes Run look; holds one token, never closed
	inbox   chan *inlet   // what came by TLS; never closed
	count   counters
	limit   *limiter // of peer probes, by source

	table atomic.Pointer[table]                 // what receiving looks up; never nil
	lines atomic.Pointer[lines]                 // the open sockets; never nil
	roads atomic.Pointer[roads]                 // the ways by relays; never nil
	homes homes                                 // where peers were found
	mover mover                                 // Run's alone
	hush  atomic.Bool                           // a peer that is reached directly fell silent: see legs' check
	fits  atomic.Pointer[func(key.Public, int)] // see OnPathMTU; nil: nobody asks
	own   atomic.Pointer[ownKey]                // see SetKey; nil: there is no key

	forecast forecast
	checking sync.Mutex // held while a Check runs, before all others

	// The locks are taken in this order: mu, a peer's, a leg's or that of homes.
	mu      sync.Mutex // guards the rest
	local   Local
	mapped  netip.AddrPort // what a router maps to port; the zero value: none
	here    *locality      // follows from local, the port and the relays; never nil
	open    bool
	shut    chan struct{} // closed when open ends; nil: not open
	ended   bool          // Own is closed
	port    uint16        // the last one, tried again when reopened: NATs remember it
	closed  udp.Counters
	peers   map[key.Public]*peer
	configs map[key.Public]Peer
	retired map[key.Public]weak.Pointer[peer] // no longer in the map, perhaps still with WireGuard
	legs    []*leg                            // in order of preference
	keeper  keeper
	closely bool // see Watch
}

var _ conn.Bind = (*Bind)(nil)

// table is what receiving looks up. It is immutable, and swapped whole.
type table struct {
	legs  map[netip.AddrPort]*leg
	peers map[relay.Label]*peer
}

// New returns a Bind without peers and relays.
func New(o Options) *Bind {
	b := &Bind{
		o:       o,
		log:     o.Log,
		poke:    make(chan struct{}, 1),
		inbox:   make(chan *inlet),
		peers:   map[key.Public]*peer{},
		configs: map[key.Public]Peer{},
		retired: map[key.Public]weak.Pointer[peer]{},
		sealing: !o.Key.Equal(key.Private{}),
		limit:   newLimiter(),
		here:    &locality{},
	}
	if b.sealing {
		b.own.Store(&ownKey{o.Key, o.Key.Public()})
	}
	b.direct = b.sealing && o.Own == nil
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	if o.Own != nil {
		b.legs = []*leg{{id: o.OwnID, wake: b.wake, count: &b.count, port: o.Own}}
	}
	b.table.Store(&table{})
	b.lines.Store(&lines{})
	b.roads.Store(&roads{})
	return b
}

// Open opens the sockets and returns a function per source of datagrams. Only
// WireGuard calls it.
func (b *Bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.open:
		return nil, 0, conn.ErrBindAlreadyOpen
	case b.ended:
		return nil, 0, errors.New("the relay's port was closed")
	}
	if port == 0 {
		port = b.o.Port
	}
	var fns []conn.ReceiveFunc
	if b.o.Own != nil {
		fns = append(fns, newPortReceiver(b, b.o.Own).receive, newGuestReceiver(b, b.o.Own).receive)
	}
	ls, got, err := openLines(port, b.port, b.o.Mark)
	if err != nil {
		return nil, 0, err
	}
	b.lines.Store(ls)
	b.port = got
	for _, l := range ls.all() {
		fns = append(fns, newReceiver(b, l).receive)
	}
	b.shut = make(chan struct{})
	if b.o.Dial != nil {
		fns = append(fns, newStreamReceiver(b, b.shut).receive)
	}
	b.open = true
	b.locate()
	b.rebuild()
	b.wake()
	return fns, b.port, nil
}

// Close closes the sockets; peers, relays and their sessions are kept for the
// next Open. Only WireGuard calls it, also before the first Open.
func (b *Bind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.open {
		return nil
	}
	b.open = false
	close(b.shut)
	hangUpAll(b.legs)
	if b.o.Own != nil {
		b.ended = true
		b.o.Own.Close()
	}
	ls := b.lines.Swap(&lines{})
	for _, l := range ls.all() {
		b.closed = sum(b.closed, l.sock.Counters())
	}
	b.rebuild()
	return ls.close()
}

func sum(a, b udp.Counters) udp.Counters {
	return udp.Counters{
		SendDrops:    a.SendDrops + b.SendDrops,
		SendErrors:   a.SendErrors + b.SendErrors,
		GSOFallbacks: a.GSOFallbacks + b.GSOFallbacks,
		Truncated:    a.Truncated + b.Truncated,
		RecvErrors:   a.RecvErrors + b.RecvErrors,
		QueueDrops:   a.QueueDrops + b.QueueDrops,
	}
}

// SetMark refuses any mark but that of Options, which the sockets have from
// their first moment on.
func (b *Bind) SetMark(mark uint32) error {
	if mark != b.o.Mark {
		return fmt.Errorf("set mark %#x: the sockets have %#x", mark, b.o.Mark)
	}
	return nil
}

// batchSize is the most that one receive returns: a train of 64 KiB holds 45
// datagrams of full size. WireGuard keeps a buffer of 64 KiB for each, per
// receive function, so more than is of use is megabytes.
const batchSize = 64

// BatchSize is the most that one receive returns. Send takes any number.
func (b *Bind) BatchSize() int { return batchSize }

// ParseEndpoint takes a string that Endpoint returned. The peer need not be in
// the map yet. On a relay's own machine it also takes the address of a stock
// WireGuard.
func (b *Bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	if at, err := netip.ParseAddrPort(s); err == nil && b.o.Own != nil {
		return newGuest(at), nil
	}
	k, err := key.ParsePublicHex(s)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if p := b.peers[k]; p != nil {
		return p, nil
	}
	p := b.revive(k)
	b.retired[k] = weak.Make(p)
	return p, nil
}

// revive returns the peer object somebody may still hold, or a new one; the
// caller holds mu.
func (b *Bind) revive(k key.Public) *peer {
	if p := b.retired[k].Value(); p != nil {
		return p
	}
	return newPeer(k)
}

// Send sends a batch to a peer. It never blocks, but for a moment where a stream is full.
func (b *Bind) Send(bufs [][]byte, ep conn.Endpoint) error {
	p, ok := ep.(*peer)
	if !ok {
		return b.sendGuest(bufs, ep)
	}
	w := p.way.Load()
	if !p.talks.Load() {
		b.talk(p)
	}
	if !p.big.Load() {
		p.markBig(bufs)
	}
	if w.carrier == nil {
		b.hold(p, bufs)
		return nil
	}
	b.count.add(dropUnsent, p.send(w, bufs))
	return nil
}

// hold keeps what has no way. One may have come up since the caller looked, and
// then nobody else would come by to send it.
func (b *Bind) hold(p *peer, bufs [][]byte) {
	now := time.Now()
	b.count.add(dropHeld, p.hold(now, bufs))
	b.count.add(dropUnsent, p.flush(now))
}

// SetPeers says who the peers are. Those that stay are not disturbed.
func (b *Bind) SetPeers(peers []Peer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rekey(peers)
	configs := make(map[key.Public]Peer, len(peers))
	for _, c := range peers {
		configs[c.Key] = c
		if b.peers[c.Key] == nil {
			b.peers[c.Key] = b.revive(c.Key)
			delete(b.retired, c.Key)
		}
	}
	for k, p := range b.peers {
		if _, stays := configs[k]; !stays {
			b.retire(p)
			delete(b.peers, k)
			b.retired[k] = weak.Make(p)
		}
	}
	for k, p := range b.retired {
		if p.Value() == nil {
			delete(b.retired, k)
		}
	}
	b.configs = configs
	b.rebuild()
}

// rekey lets those who come with another key stay who they are; the caller holds
// mu.
func (b *Bind) rekey(peers []Peer) {
	had := make(map[string]key.Public, len(b.configs))
	for k, c := range b.configs {
		if c.ID != "" {
			had[c.ID] = k
		}
	}
	for _, c := range peers {
		k, known := had[c.ID]
		if p := b.peers[k]; known && k != c.Key && p != nil && b.peers[c.Key] == nil {
			delete(b.peers, k)
			delete(b.retired, c.Key)
			p.rekey(c.Key)
			b.peers[c.Key] = p
		}
	}
}

// ownKey is this node's key, with the public half, which takes a while to make.
type ownKey struct {
	private key.Private
	public  key.Public
}

// SetKey says that this node's WireGuard key is another now.
func (b *Bind) SetKey(k key.Private) {
	b.own.Store(&ownKey{k, k.Public()})
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.peers {
		p.mu.Lock()
		p.seal = nil
		p.mu.Unlock()
	}
}

// SetRelays says which relays there are, in order of preference. Sessions with
// those that stay are kept; a new ticket renews them.
func (b *Bind) SetRelays(relays []Relay) {
	b.mu.Lock()
	defer b.mu.Unlock()
	have := make(map[string]*leg, len(b.legs))
	for _, l := range b.legs {
		have[l.id] = l
	}
	var legs []*leg
	if b.o.Own != nil {
		legs = append(legs, b.ownLeg(relays))
	}
	for _, r := range relays {
		l := have[r.ID]
		switch {
		case len(legs) > 0 && legs[0].port != nil && legs[0].id == r.ID:
			legs[0].label = r.Label
			legs[0].set(r)
			continue
		case l == nil || l.port != nil:
			l = &leg{id: r.ID, wake: b.wake, count: &b.count, noTLS: b.o.Dial == nil}
		}
		l.label = r.Label
		l.set(r)
		legs = append(legs, l)
	}
	for _, old := range b.legs {
		if !slices.Contains(legs, old) {
			old.close()
		}
	}
	b.legs = legs
	b.watch()
	b.rebuild()
	b.wake()
}

// ownLeg returns the leg that goes through Own.
func (b *Bind) ownLeg(relays []Relay) *leg {
	if len(b.legs) > 0 && b.legs[0].port != nil && b.o.OwnID != "" {
		return b.legs[0]
	}
	id := b.o.OwnID
	if id == "" && len(relays) > 0 {
		id = relays[0].ID
	}
	return &leg{id: id, wake: b.wake, count: &b.count, port: b.o.Own}
}

// rebuild makes the table and the ways anew, and sends what was held for a peer
// that has a way now; the caller holds mu.
func (b *Bind) rebuild() {
	t := &table{legs: map[netip.AddrPort]*leg{}, peers: make(map[relay.Label]*peer, len(b.peers))}
	ls := b.lines.Load()
	for _, l := range b.legs {
		for _, addr := range l.addresses() {
			t.legs[addr] = l
		}
	}
	for k, c := range b.configs {
		t.peers[c.Label] = b.peers[k]
	}
	b.table.Store(t)
	now := time.Now()
	r, _, _ := b.survey(now)
	b.roads.Store(r)
	for k, c := range b.configs {
		p := b.peers[k]
		b.arrange(now, p, c, r, ls)
		b.count.add(dropUnsent, p.flush(now))
	}
}

// wake makes Run look at the legs.
func (b *Bind) wake() {
	select {
	case b.poke <- struct{}{}:
	default:
	}
}

// Kick makes every session and direct path prove itself now: the network has changed, or
// something else went silent.
func (b *Bind) Kick() {
	now := time.Now()
	for _, l := range b.snapshot() {
		l.kick(now)
	}
	b.mu.Lock()
	b.keeper.again = now // other relays may be near now
	b.mu.Unlock()
	b.kickPeers(now)
	b.wake()
}

// Watch says whether the sessions are to be looked after closely: while there is
// no other sign of life from the relays, whose restart a node that only waits
// for others to send would not notice.
func (b *Bind) Watch(closely bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closely != closely {
		b.closely = closely
		b.watch()
		b.wake()
	}
}

// watch tells the legs; the caller holds mu.
func (b *Bind) watch() {
	now := time.Now()
	for _, l := range b.legs {
		l.watch(now, b.closely, len(b.legs) > 1)
	}
}

// Relays returns the relays in order of preference.
func (b *Bind) Relays() []RelayStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := make([]RelayStatus, 0, len(b.legs))
	for _, l := range b.legs {
		s := l.status()
		s.Attached, s.Cost = l.standing.up, l.standing.cost
		s.Nearest = s.Attached && len(b.keeper.home) > 0 && b.keeper.home[0] == l.id
		all = append(all, s)
	}
	return all
}

func (b *Bind) snapshot() []*leg {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.legs // never changed in place
}

// Run drives the sessions until ctx ends.
func (b *Bind) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var calls sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer calls.Wait()
	defer func() { hangUpAll(b.snapshot()) }()
	defer cancel()
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-b.poke:
		}
		if rest := shortestNap - time.Since(last); rest > 0 { // whoever pokes how often
			timer.Reset(rest)
			select {
			case <-ctx.Done():
				return nil
			case <-timer.C:
			}
		}
		now := time.Now()
		last = now
		next, dials := b.tick(now)
		for _, l := range dials {
			calls.Go(func() { b.call(ctx, l) })
		}
		timer.Reset(next.Sub(now))
	}
}

// idleNap is how long Run sleeps when no leg has anything to do.
const idleNap = time.Hour

// tick gives every leg its turn and returns when the first wants another, and
// the legs for which a TLS connection is to be made.
func (b *Bind) tick(now time.Time) (next time.Time, dials []*leg) {
	next = now.Add(idleNap)
	down := false
	if at := b.escape(now); !at.IsZero() {
		next = earlier(next, at)
	}
	hush := b.hush.Swap(false)
	ls := b.lines.Load()
	for _, l := range b.snapshot() {
		if hush {
			l.check(now)
		}
		t := l.tick(now, ls)
		if t.changed {
			b.relayChanged(l)
		}
		if t.dial {
			dials = append(dials, l)
		}
		if !t.next.IsZero() {
			next = earlier(next, t.next)
			down = down || !l.isUp()
		}
	}
	if down {
		b.expireHeld(now)
	}
	if at := b.resurvey(now); !at.IsZero() {
		next = earlier(next, at)
	}
	if b.direct {
		b.relocate()
	}
	if b.sealing {
		next = earlier(next, b.drivePeers(now, next))
	}
	next = earlier(next, b.routePeers(now, next)) // who sends was seen just now
	return next, dials
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// expireHeld lets go of what waits in vain.
func (b *Bind) expireHeld(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.peers {
		b.count.add(dropHeld, p.expire(now))
	}
}

// relayChanged is called when a session has come up or gone down.
func (b *Bind) relayChanged(l *leg) {
	s := l.status()
	b.log.Info("relay session changed", "relay", s.Name, "addr", s.Endpoint, "state", s.State, "transport", s.Transport)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rebuild()
}
