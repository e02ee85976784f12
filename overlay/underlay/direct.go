package underlay

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"overlayd/overlay/relay"
)

// Local is what direct paths must know of this machine.
type Local struct {
	Label     relay.Label      // this node's own
	MTU       int              // of the tunnel's interface; 0: 1420
	Addrs     []netip.Addr     // at which a peer may reach the sockets, the likeliest first
	Endpoints []netip.AddrPort // that the operator forwards to the sockets
	LANs      []netip.Prefix   // networks this machine is on
	Refuse    []netip.Prefix   // the overlay's: no path may lead through itself
	Behind    []netip.Prefix   // that gateways offer: not taken but on one of LANs
}

// SetLocal says what this machine is like now.
func (b *Bind) SetLocal(l Local) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.local = l
	b.settleHere()
}

// SetMapped says which address the router maps to the port of the sockets; the
// zero value: none.
func (b *Bind) SetMapped(a netip.AddrPort) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mapped = a
	b.settleHere()
}

// Port returns the UDP port of the sockets, 0 while there are none.
func (b *Bind) Port() uint16 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.open {
		return 0
	}
	return b.port
}

// locate makes here anew and reports whether it changed; the caller holds mu.
func (b *Bind) locate() (changed bool) {
	here := &locality{mtu: b.local.MTU, lans: b.local.LANs, refuse: b.local.Refuse, behind: b.local.Behind}
	add := func(a netip.AddrPort) {
		if a.IsValid() && a.Port() != 0 && len(here.candidates) < mostCandidates && !slices.Contains(here.candidates, a) {
			here.candidates = append(here.candidates, a)
			here.loopback = here.loopback || a.Addr().IsLoopback()
		}
	}
	now := time.Now()
	for _, l := range b.legs {
		dst, us := l.observed()
		if dst.IsValid() {
			b.forecast.Sent(now, dst)
			b.forecast.Seen(dst, us)
		}
		add(us)
	}
	// A NAT may well have given us the very port that is forwarded: what is known
	// already stays what it is.
	for _, a := range append([]netip.AddrPort{b.mapped}, b.local.Endpoints...) {
		before := len(here.candidates)
		if add(a); len(here.candidates) > before {
			here.mapped |= 1 << before
		}
	}
	for _, a := range b.local.Addrs {
		add(netip.AddrPortFrom(a, b.port))
	}
	if here.equal(b.here) {
		return false
	}
	b.here = here
	return true
}

// settleHere tells the finders where this machine is; the caller holds mu.
func (b *Bind) settleHere() {
	if !b.locate() {
		return
	}
	now := time.Now()
	for _, p := range b.peers {
		p.mu.Lock()
		if p.finder != nil {
			p.finder.Move(now, b.here)
			p.next = now
		}
		b.resize(now, p)
		p.mu.Unlock()
	}
	b.wake()
}

// relocate is settleHere for what the relays see.
func (b *Bind) relocate() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.settleHere()
}

// observed returns the relay's address and this node's UDP address as the relay
// sees it; zero: that is not known.
func (l *leg) observed() (dst, us netip.AddrPort) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.up || l.race.tls || l.session == nil {
		return netip.AddrPort{}, netip.AddrPort{}
	}
	return l.addr(), l.session.Status().Observed
}

// anyRandom is the process's own generator, safe for concurrent use.
type anyRandom struct{}

func (anyRandom) Uint64() uint64 { return rand.Uint64() }

// arrange gives a peer its way by the relays, and a finder if it needs one. The
// caller holds the Bind's mu.
func (b *Bind) arrange(now time.Time, p *peer, c Peer, r *roads, ls *lines) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.label != c.Label {
		p.label, p.roads = c.Label, nil
	}
	p.find(c.At)
	p.choose(now, r)
	b.resize(now, p)
	switch {
	case !b.direct || c.AtRelay:
		b.dismiss(p)
	case p.finder == nil:
		p.finder = newFinder(rand.New(anyRandom{}), b.here)
		p.finder.relay.tally = &p.byRelay
	}
	if p.finder != nil {
		p.finder.descends = string(b.own.Load().public.Bytes()) < string(p.key.Bytes())
		p.finder.Relay(now, p.relayed.carrier != nil)
	}
	b.settle(now, p, ls)
}

// retire takes a peer's ways from it.
func (b *Bind) retire(p *peer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b.dismiss(p)
	p.relayGauge, p.mtu = relayGauge{}, 0
	p.relayed, p.roads = &way{reason: reasonUnknownPeer}, nil
	p.presence, p.mapped, p.teller = nil, nil, teller{}
	p.way.Store(p.relayed)
}

// dismiss ends the search for direct paths; the caller holds the peer's mu.
func (b *Bind) dismiss(p *peer) {
	if p.finder != nil {
		p.finder = nil
		b.homes.publish(p, nil)
	}
	p.proofs = 0
}

// settle makes the peer's way what its finder has chosen; the caller holds the
// peer's mu.
func (b *Bind) settle(now time.Time, p *peer, ls *lines) {
	f := p.finder
	if f == nil {
		p.way.Store(p.relayed)
		return
	}
	if f.proofs != p.proofs {
		p.proofs = f.proofs
		b.homes.publish(p, f.spots)
	}
	old := p.way.Load()
	w := combine(p.relayed, f.choice(), ls, old)
	if w == old {
		return
	}
	p.way.Store(w)
	if was, is := old.direct(), w.direct(); was != is {
		b.log.Info("path changed", "peer", p.key.Short(), "from", pathWords(was), "to", pathWords(is), "reason", p.reason(now))
	}
}

// combine returns the way that a choice makes of the relayed one: old, if that
// is the same.
func combine(relayed *way, c choice, ls *lines, old *way) *way {
	var l *line
	if c.spot != nil {
		l = ls.to(c.spot.addr.Addr())
	}
	if l == nil {
		return relayed
	}
	d := &directCarrier{line: l, dst: c.spot.addr, tally: c.spot.tally}
	w := *relayed
	w.relayed = relayed
	w.spot = c.spot
	w.both = c.both && relayed.carrier != nil
	w.carrier = d
	if w.both {
		w.carrier = &doubleCarrier{relayed.carrier, d}
	}
	if old.relayed == w.relayed && old.spot == w.spot && old.both == w.both && old.label == w.label && old.line == l {
		return old
	}
	w.line = l
	return &w
}

func pathWords(a netip.AddrPort) string {
	if a.IsValid() {
		return KindDirect + " " + a.String()
	}
	return KindRelay
}

// path says how packets go.
func (p *peer) path(now time.Time) Path {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.way.Load()
	if a := w.direct(); a.IsValid() {
		return Path{Kind: KindDirect, Transport: TransportUDP, Endpoint: a.String(), RTT: w.spot.rtt, MTU: p.pathMTU(), LastEcho: w.spot.provedAt}
	}
	path := w.path
	path.MTU = p.pathMTU()
	if p.finder != nil {
		path.RTT = p.finder.relayRTT(now)
	}
	if w.carrier == nil {
		path.Kind, path.Reason = KindNone, w.reason
		return path
	}
	// That the relay's leg had to be TLS comes before, unless the peer answers at its
	// own address all the same, or nowhere.
	if r := p.reason(now); path.Reason == "" || r == ReasonPeerSilent || p.finder != nil && p.finder.use != nil {
		path.Reason = r
	}
	return path
}

// reason says why the peer's path is not direct; the caller holds mu.
func (p *peer) reason(now time.Time) string {
	if p.finder == nil || p.way.Load().direct().IsValid() {
		return ""
	}
	return p.finder.reason(now)
}

// talk is called when data is sent to a peer for the first time since its
// finder's last turn.
func (b *Bind) talk(p *peer) {
	p.talks.Store(true)
	if p.asleep.Load() {
		b.wake()
	}
}

// drivePeers gives every finder its turn, and returns when the first wants
// another, or next if that is earlier.
func (b *Bind) drivePeers(now time.Time, next time.Time) time.Time {
	for _, p := range b.table.Load().peers {
		if at := b.drive(now, p); !at.IsZero() {
			next = earlier(next, at)
		}
	}
	if floor := now.Add(shortestNap); next.Before(floor) {
		return floor
	}
	return next
}

func (b *Bind) drive(now time.Time, p *peer) (next time.Time) {
	p.mu.Lock()
	if !b.sealing {
		p.mu.Unlock()
		return time.Time{}
	}
	early := p.next.IsZero() || now.Before(p.next)
	if early && !(p.asleep.Load() && p.talks.Load()) {
		defer p.mu.Unlock()
		return p.next
	}
	out := b.turn(now, p)
	next = p.next
	b.unlockAndPost(p, out)
	return next
}

// turn is the finder's; the caller holds the peer's mu.
func (b *Bind) turn(now time.Time, p *peer) []send {
	p.asleep.Store(false)
	p.detour.Store(false)
	talks, big := p.talks.Swap(false), p.big.Swap(false)
	if talks {
		p.talkedAt = now
	}
	var out []send
	var next time.Time
	if p.finder != nil {
		out, next = p.finder.Tick(now, talks)
	}
	more, at := b.measure(now, p, talks, big)
	out = append(out, more...)
	next = sooner(next, at)
	p.next = next
	// A finder that is not active only looks when its proofs end: data does not
	// wait for that.
	if next.IsZero() || p.finder != nil && !p.finder.active(now) {
		p.asleep.Store(true)
		if p.talks.Load() { // sent just now, by somebody who saw it awake
			p.next = now
		}
	}
	if p.finder != nil && p.finder.Hushed() {
		b.hush.Store(true)
		b.wake()
	}
	b.settle(now, p, b.lines.Load())
	b.fit(p)
	return out
}

// unlockAndPost gives the peer's mu back and sends what a finder wants sent.
func (b *Bind) unlockAndPost(p *peer, out []send) {
	s, relayed := p.sealed(b), p.relayed
	p.mu.Unlock()
	now := time.Now()
	if s == nil || len(out) == 0 {
		return
	}
	b.mu.Lock()
	label := b.local.Label
	b.mu.Unlock()
	ls := b.lines.Load()
	for _, o := range out {
		if o.m.kind == probeCallMe {
			o.m.next, o.m.step = b.forecast.Next()
			o.m.noUDP = b.onlyTLS()
		}
		d := s.close(0, o.m)
		if !o.to.IsValid() {
			postRelayed(relayed, o.m, d)
			continue
		}
		stamp(d, label)
		postDirect(ls, o.to, o.m, d)
		b.forecast.Sent(now, o.to)
	}
}

// sealed returns the peer's seal, nil when there is none; the caller holds the
// peer's mu.
func (p *peer) sealed(b *Bind) *seal {
	if p.seal == nil && b.sealing {
		s, err := newSeal(b.own.Load().private, p.key)
		if err != nil { // the peer's key is none
			return nil
		}
		p.seal = s
	}
	return p.seal
}

// probed takes a probe that a peer is said to have sent: from an address, or by
// the relay when that is the zero value.
func (b *Bind) probed(p *peer, from netip.AddrPort, d []byte) {
	source := p.addr
	if from.IsValid() {
		source = from.Addr()
	}
	now := time.Now()
	if !b.limit.allow(source, now) {
		b.count.add(dropProbeLimit, 1)
		return
	}
	p.mu.Lock()
	s := p.sealed(b)
	p.mu.Unlock()
	if s == nil {
		b.count.add(dropProbe, 1)
		return
	}
	m, err := s.open(d)
	if err != nil {
		b.count.add(dropProbeForged, 1)
		return
	}
	p.mu.Lock()
	if m.kind == probeNotice && !from.IsValid() {
		b.told(now, p, m)
		return
	}
	var out []send
	taken, ok := false, false
	if !from.IsValid() {
		out, taken, ok = p.relayProbed(now, m)
	}
	if !taken && p.finder != nil {
		out, ok = p.finder.Handle(now, from, m)
	}
	out = append(out, b.turn(now, p)...)
	b.unlockAndPost(p, out)
	b.wake() // the finder may want a turn sooner, whatever the probe was worth
	if !ok {
		b.count.add(dropProbeStale, 1)
		return
	}
	if m.kind == probePong && from.IsValid() {
		b.forecast.Seen(from, m.observed)
	}
}

// detoured is called when a peer that this node reaches directly sends by the
// relay. Perhaps its direct path has ended, and ours with it.
func (b *Bind) detoured(p *peer) {
	if p.detour.Load() || p.detour.Swap(true) { // mostly it is read only
		return
	}
	now := time.Now()
	p.mu.Lock()
	moved := p.finder != nil && p.finder.Detour(now)
	if moved {
		p.next = now
		b.settle(now, p, b.lines.Load())
	}
	p.mu.Unlock()
	if moved {
		b.wake()
	}
}

// suspectGap is how often the beginning of a handshake, which anybody can make
// up, puts a direct path in doubt: a little less than WireGuard takes to begin
// the next one (its REKEY-TIMEOUT, 5 s).
const suspectGap = 4 * time.Second

// suspect is called when a peer begins a handshake by the relay. If it was
// restarted, our answer must not go to where it was before.
func (b *Bind) suspect(p *peer) {
	if !p.way.Load().direct().IsValid() {
		return
	}
	now := time.Now()
	p.mu.Lock()
	if p.finder == nil || now.Sub(p.suspected) < suspectGap {
		p.mu.Unlock()
		return
	}
	p.suspected = now
	p.finder.Suspect()
	p.next = now
	b.settle(now, p, b.lines.Load())
	p.mu.Unlock()
	b.wake()
}

// kickPeers makes every direct path prove itself.
func (b *Bind) kickPeers(now time.Time) {
	for _, p := range b.table.Load().peers {
		p.mu.Lock()
		p.remeasure()
		p.next = now
		if p.finder != nil {
			p.finder.Kick(now)
			b.settle(now, p, b.lines.Load())
		}
		p.mu.Unlock()
	}
}

// home is an address that is known to be a peer's.
type home struct {
	peer  *peer
	tally *tally
}

// homes are the addresses that peers may send from.
type homes struct {
	byAddr atomic.Pointer[map[netip.AddrPort]home] // immutable, swapped whole

	mu sync.Mutex // held while swapping
}

// load returns them; the map is only to be read.
func (h *homes) load() map[netip.AddrPort]home {
	if m := h.byAddr.Load(); m != nil {
		return *m
	}
	return nil
}

// publish replaces a peer's addresses by those that it proved. One that is
// another peer's stays that peer's.
func (h *homes) publish(p *peer, spots []*spot) {
	h.mu.Lock()
	defer h.mu.Unlock()
	next := maps.Clone(h.load())
	maps.DeleteFunc(next, func(_ netip.AddrPort, o home) bool { return o.peer == p })
	for _, s := range spots {
		if _, taken := next[s.addr]; s.proved() && !taken {
			if next == nil {
				next = map[netip.AddrPort]home{}
			}
			next[s.addr] = home{p, s.tally}
		}
	}
	h.byAddr.Store(&next)
}
