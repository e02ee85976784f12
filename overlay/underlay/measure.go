package underlay

import (
	"math/rand/v2"
	"net/netip"
	"time"

	"overlayd/overlay/key"
	"overlayd/overlay/relay"
)

// Measure gives the address in use its turn to measure how long a datagram may
// be; big says that long ones left lately. Call it after Tick.
func (f *finder) Measure(now time.Time, big bool) (out []send, next time.Time) {
	for _, s := range f.spots {
		if s.gauge == nil && s == f.use {
			s.gauge = newGauge(f.id, f.here.full())
		}
		if s.gauge == nil {
			continue
		}
		trials, at := s.gauge.Tick(now, s == f.use && f.active(now), big)
		for _, t := range trials {
			out = append(out, send{s.addr, t.ping()})
		}
		next = sooner(next, at)
		f.resume(now, s)
	}
	return out, next
}

// ping is the probe that makes a datagram of the trial's size.
func (t trial) ping() probe {
	return probe{kind: probePing, id: t.id, fill: t.size - sealedProbe}
}

// measured takes a pong that answers a padded ping.
func (s *spot) measured(now time.Time, id probeID) bool {
	return s.gauge != nil && s.gauge.Answered(now, id)
}

// remeasure says that the network has changed, and with it perhaps every width.
func (f *finder) remeasure() {
	for _, s := range f.spots {
		if s.gauge != nil {
			s.gauge.Reset(f.here.full())
		}
	}
}

// proofOfSize is how long a proof that long datagrams pass counts when others
// get lost; pings with counts are a second apart at most.
const proofOfSize = 5 * askAfter / 2

// sized reports whether what is lost at an address is lost whatever its length.
// While that is unknown it is looked at: a path that has become narrow is not
// one that loses.
func (s *spot) sized(now time.Time) bool {
	g := s.gauge
	switch {
	case g == nil, g.deaf:
		return true
	case len(g.rungs) > 0, now.Sub(g.changed) < windowLeast:
		return false
	case now.Sub(g.checked) < proofOfSize:
		return true
	}
	g.Check()
	return false
}

// judge takes back a verdict of losses until it is known whether only what is
// long gets lost, and notes why the address in use is left otherwise.
func (f *finder) judge(now time.Time, s *spot, v verdict) verdict {
	if v != verdictBlocked && v != verdictLossy {
		return v
	}
	if !s.sized(now) {
		s.stayed, s.stayAt = v, now
		return verdictSilent
	}
	if s == f.use && s.gauge != nil && s.gauge.deaf { // short pings are answered, padded ones not
		f.narrow = true
	}
	return v
}

// resume passes the verdict that was taken back, if it still holds: the path is
// as wide as it was.
func (f *finder) resume(now time.Time, s *spot) {
	v := s.stayed
	if v == verdictNone || !s.gauge.changed.After(s.stayAt) && !s.sized(now) {
		return
	}
	s.stayed = verdictNone
	switch {
	case s.gauge.changed.After(s.stayAt): // what was lost was too long
		s.window = window{}
	case s.usable(now):
		f.take(now, s, v)
	}
}

// shrunk reports whether an address carried long datagrams once and answers none
// now. If something short arrives all the same, it is the long ones that vanish,
// and a transfer that stands still for them is too little traffic to count losses.
func (s *spot) shrunk() bool { return s.gauge != nil && s.gauge.proved && s.gauge.deaf }

// settled reports whether an address may be used alone: its width is known, or
// cannot be.
func (s *spot) settled() bool { return s.gauge == nil || s.gauge.settled() }

// full is the longest datagram that WireGuard makes here.
func (l *locality) full() int { return fullSize(l.mtu) }

// relayGauge measures the way to a peer by the relay, all of it: to the relay,
// and from there on. The peer's mu guards it.
type relayGauge struct {
	gauge  *gauge    // nil: nothing was sent yet
	path   Path      // that it measures
	active time.Time // data was last sent
}

// randomID returns an id that nobody can guess.
func randomID() (id probeID) {
	for i := range id {
		id[i] = byte(rand.Uint32())
	}
	return id
}

// measure gives the gauges of a peer's ways their turn; the caller holds its mu.
func (b *Bind) measure(now time.Time, p *peer, talks, big bool) (out []send, next time.Time) {
	if p.finder != nil {
		out, next = p.finder.Measure(now, big)
	}
	r := &p.relayGauge
	if talks || big {
		r.active = now
	}
	w := p.way.Load()
	uses := b.sealing && p.relayed.carrier != nil && (w.spot == nil || w.both)
	if r.gauge == nil {
		if !uses || r.active.IsZero() {
			return out, next
		}
		r.gauge, r.path = newGauge(randomID, p.full), p.relayed.path
	}
	if r.path != p.relayed.path {
		r.path = p.relayed.path
		r.gauge.Reset(p.full)
	}
	trials, at := r.gauge.Tick(now, uses && now.Sub(r.active) <= activeFor, big)
	for _, t := range trials {
		out = append(out, send{m: t.ping()})
	}
	next = sooner(next, at)
	if uses && now.Sub(r.active) <= activeFor { // long datagrams only leave a mark
		next = sooner(next, now.Add(activePoll))
	}
	return out, next
}

// relayProbed takes a probe that came by the relay, if it concerns only how much
// that carries, or there is no finder to take it. It reports whether it did, and
// whether that was of use; the caller holds mu.
func (p *peer) relayProbed(now time.Time, m probe) (out []send, taken, ok bool) {
	switch {
	case m.kind == probePong && p.relayGauge.gauge != nil && p.relayGauge.gauge.Answered(now, m.id):
		return nil, true, true
	case p.finder != nil:
		return nil, false, false
	case m.kind == probePing:
		return []send{{m: probe{kind: probePong, id: m.id, got: uint32(p.byRelay.got.Load())}}}, true, true
	}
	return nil, true, false
}

// resize takes note of the interface's MTU; the caller holds the Bind's mu and the
// peer's.
func (b *Bind) resize(now time.Time, p *peer) {
	full := fullSize(b.local.MTU)
	if full == p.full {
		return
	}
	p.full = full
	p.remeasure()
	if p.finder != nil {
		p.finder.remeasure()
	}
	p.next = now
}

// remeasure measures the way by the relay anew; the caller holds mu.
func (p *peer) remeasure() {
	if p.relayGauge.gauge != nil {
		p.relayGauge.gauge.Reset(p.full)
	}
}

// OnPathMTU sets what is called when the longest packet that the way to a peer
// carries in one piece changes; 0 is whatever the interface takes. It must not
// call the Bind. Set it before there are peers.
func (b *Bind) OnPathMTU(f func(k key.Public, mtu int)) {
	b.fits.Store(&f)
}

// fit tells how long packets to a peer may be; the caller holds the peer's mu.
// While both ways are used, what fits both.
func (b *Bind) fit(p *peer) {
	size := p.pathSize()
	mtu := 0
	if size < p.full {
		mtu = room(size)
	}
	if mtu == p.mtu {
		return
	}
	p.mtu = mtu
	b.log.Info("path MTU changed", "peer", p.key.Short(), "mtu", mtu)
	if f := b.fits.Load(); f != nil {
		(*f)(p.key, mtu)
	}
}

// pathSize is the longest datagram that the peer's ways carry, as far as known;
// the caller holds mu.
func (p *peer) pathSize() int {
	w := p.way.Load()
	size := p.full
	if g := p.relayGauge.gauge; g != nil && w.carrier != nil && (w.spot == nil || w.both) {
		size = min(size, g.size)
	}
	if w.spot != nil && w.spot.gauge != nil {
		size = min(size, w.spot.gauge.size)
	}
	return size
}

// pathMTU is the longest packet that is known to get to the peer in one piece,
// 0 when that is not known; the caller holds mu.
func (p *peer) pathMTU() int {
	w := p.way.Load()
	g := p.relayGauge.gauge
	if w.direct().IsValid() {
		g = w.spot.gauge
	}
	if g == nil || !g.proved || g.deaf {
		return 0
	}
	return min(g.size-sealedBytes, p.full-sealedBytes)
}

// wholeCarrier is a carrier that can send a datagram that arrives in one piece
// or not at all. What carries datagrams in a stream does so anyway.
type wholeCarrier interface {
	sendWhole(label relay.Label, d []byte)
}

func (c *udpCarrier) sendWhole(label relay.Label, d []byte) {
	c.leg.note(sentMark)
	stamp(d, label)
	_ = c.line.sock.SendWhole(c.dst, d) // what is not sent is not answered
}

// postRelayed sends a probe by the relay.
func postRelayed(w *way, m probe, d []byte) {
	if w.carrier == nil {
		return
	}
	if c, ok := w.carrier.(wholeCarrier); ok && m.fill > 0 {
		c.sendWhole(w.label, d)
		return
	}
	w.carrier.send(w.label, [][]byte{d})
}

// postDirect sends a probe to an address; what cannot be sent is not answered,
// and the finder repeats itself.
func postDirect(ls *lines, to netip.AddrPort, m probe, d []byte) {
	l := ls.to(to.Addr())
	switch {
	case l == nil:
	case m.fill > 0:
		_ = l.sock.SendWhole(to, d)
	default:
		_ = l.sock.Send(to, d)
	}
}

// markBig takes note that a long datagram is sent to a peer, once per turn.
func (p *peer) markBig(bufs [][]byte) {
	for _, d := range bufs {
		if len(d) > bigSize {
			p.big.Store(true)
			return
		}
	}
}
