package underlay

import (
	"net/netip"
	"time"
)

// landPeer is another node, seen from this one.
type landPeer struct {
	node    *landNode
	other   *landNode
	finder  *finder
	every   time.Duration // between two datagrams; 0: silent
	talking time.Time     // since when
	heard   bool          // something has come since this node's start
	sent    bool
	nextRun time.Time

	lastAt time.Time // when a datagram of theirs came last
	sentN  int
	gotN   int
	pings  map[netip.AddrPort]*landPings
}

// landPings is what was sent to an address.
type landPings struct {
	at      []time.Time
	knownAt time.Time // when it had answered a ping before
	pinged  time.Time // when it had pinged us
	wrong   bool      // once complained about
}

func (p *landPeer) data(b []byte) {
	p.lastAt, p.heard = p.node.land.w.Now(), true
	p.gotN++
}

func (p *landPeer) handle(from netip.AddrPort, b []byte) {
	now := p.node.land.w.Now()
	if b[0] != typeProbe {
		if b[0] == typeInitiation {
			p.finder.Suspect()
		}
		if p.finder.Detour(now) {
			p.tick()
		}
		p.finder.relay.tally.got.Add(1)
		p.data(b)
		return
	}
	m, err := parseProbe(b[headerSize:])
	if err != nil {
		p.node.land.t.Fatal(err)
	}
	out, ok := p.finder.Handle(now, from, m)
	if ok && m.kind == probePong && from.IsValid() {
		p.node.forecast.Seen(from, m.observed)
	}
	p.post(out)
	p.tick()
}

func (p *landPeer) post(out []send) {
	n := p.node
	for _, s := range out {
		if s.m.kind == probeCallMe {
			s.m.next, s.m.step = n.forecast.Next()
		}
		b := s.m.Append([]byte{typeProbe, 0, 0, 0})
		if !s.to.IsValid() {
			n.byRelay(p.other, b)
			continue
		}
		stamp(b, n.label)
		n.forecast.Sent(n.land.w.Now(), s.to)
		if s.m.kind == probePing {
			p.note(s.to)
		}
		n.send(s.to, b)
	}
}

func (p *landPeer) tick() {
	n := p.node
	now := n.land.w.Now()
	out, next := p.finder.Tick(now, p.sent)
	p.sent = false
	if p.finder.Hushed() {
		n.active().Check(now)
		n.wake()
	}
	p.nextRun = next
	p.post(out)
	if next.IsZero() {
		return
	}
	life := n.life
	n.land.w.After(next.Sub(now), func() {
		if n.life == life && p.nextRun.Equal(next) {
			p.tick()
		}
	})
}

// talk sends a datagram now and then, until the node stops.
func (p *landPeer) talk(life int) {
	if p.node.life != life {
		return
	}
	every := landEvery
	if p.every > 0 {
		every = p.every
		p.send()
	}
	p.node.land.w.After(every, func() { p.talk(life) })
}

func (p *landPeer) send() {
	kind := byte(typeData)
	if !p.heard {
		kind = typeInitiation
	}
	c := p.finder.choice()
	p.sentN++
	if c.spot == nil || c.both {
		p.finder.relay.tally.sent.Add(1)
		p.node.byRelay(p.other, []byte{kind, 0, 0, 0})
	}
	if c.spot != nil {
		c.spot.tally.sent.Add(1)
		p.node.send(c.spot.addr, []byte{kind, 0, 0, 0})
	}
	p.sent = true
	if p.nextRun.IsZero() {
		p.tick()
	}
}

// note checks the documented rate: within any 16 seconds (the pause of 20, less
// the time that five echoes take) five pings to an address that never answered,
// and five echoes if pings come from it; no address at all gets more than ten a second.
func (p *landPeer) note(to netip.AddrPort) {
	now := p.node.land.w.Now()
	g := p.pings[to]
	if g == nil {
		g = &landPings{}
		p.pings[to] = g
	}
	g.at = append(g.at, now)
	for len(g.at) > 0 && now.Sub(g.at[0]) >= 16*time.Second {
		g.at = g.at[1:]
	}
	last := 0
	for i := len(g.at) - 1; i >= 0 && now.Sub(g.at[i]) < time.Second; i-- {
		last++
	}
	s := p.finder.find(to)
	if s != nil && !s.lastAt.IsZero() {
		g.knownAt = now
	}
	if s != nil && s.favour.echoes > 0 {
		g.pinged = now
	}
	most := 10 * 16
	if now.Sub(g.knownAt) > 16*time.Second {
		if most = len(pingGaps); now.Sub(g.pinged) <= 16*time.Second {
			most += mostEchoes
		}
	}
	if (last > 10 || len(g.at) > most) && !g.wrong {
		g.wrong = true
		p.node.land.t.Errorf("%s, %v after its start: %d pings to %s in 16 s, %d in a second", p.node.public, now.Sub(p.node.since), len(g.at), to, last)
	}
	if len(p.pings) > 1000 { // old ones tell nothing
		for a, o := range p.pings {
			if len(o.at) == 0 || now.Sub(o.at[len(o.at)-1]) > time.Minute {
				delete(p.pings, a)
			}
		}
	}
}

// path returns how data goes to a peer, in the words of the table.
func (p *landPeer) path() string {
	switch c := p.finder.choice(); {
	case c.spot != nil && !c.both:
		return "direct"
	case p.node.relayUp && p.node.race.tls:
		return "relay TLS"
	case p.node.relayUp:
		return "relay UDP"
	}
	return "none"
}
