package underlay

import (
	"crypto/hmac"
	"crypto/sha256"
	"math/rand/v2"
	"net/netip"
	"time"

	"overlayd/overlay/key"
	"overlayd/overlay/netsim"
	"overlayd/overlay/relay"
)

func (n *landNode) mac(b []byte) []byte {
	h := hmac.New(sha256.New, n.key.Expose())
	h.Write(b)
	return append(b, h.Sum(nil)[:16]...)
}

// landNode is a node: one leg, and a finder per peer.
type landNode struct {
	land   *land
	index  int
	label  relay.Label
	public netip.Addr
	inner  netip.Addr
	nat    *netsim.NAT
	ticket []byte
	key    key.Secret
	random *rand.Rand
	source *rand.ChaCha8

	running       bool
	since         time.Time // it runs, or does not
	life          int       // how manieth start
	conn          *netsim.Conn
	race          race
	session       *relay.Session
	up            bool
	stream        *landStream
	streamSession *relay.Session
	dialing, gone bool
	relayUp       bool
	nextLeg       time.Time
	forecast      forecast
	here          *locality
	peers         []*landPeer // by index; nil: itself
	redials       int
}

func (n *landNode) newSession() *relay.Session {
	return relay.NewSession(relay.SessionOptions{Ticket: n.ticket, Key: n.key, Rand: n.source})
}

func (n *landNode) start() {
	n.running, n.since, n.nextLeg = true, n.land.w.Now(), time.Time{}
	n.life++
	n.conn = n.nat.Host(n.inner).Listen(uint16(4000+n.life%1000), func(src netip.AddrPort, b []byte) { n.handle(src, nil, b) })
	n.race, n.session, n.up = race{}, n.newSession(), false
	n.stream, n.streamSession, n.dialing, n.relayUp = nil, nil, false, false
	n.forecast = forecast{}
	n.here = &locality{}
	n.peers = make([]*landPeer, len(n.land.nodes))
	for j, other := range n.land.nodes {
		if j != n.index {
			n.peers[j] = n.meet(other)
		}
	}
	if len(n.land.nodes) > 1 {
		life := n.life
		n.land.w.After(0, func() { n.meetAll(life) })
	}
	n.wake()
}

// meetAll makes the peers that did not exist when this node was made.
func (n *landNode) meetAll(life int) {
	if n.life != life {
		return
	}
	if len(n.peers) < len(n.land.nodes) {
		n.peers = append(n.peers, make([]*landPeer, len(n.land.nodes)-len(n.peers))...)
	}
	for j, other := range n.land.nodes {
		if j == n.index {
			continue
		}
		if n.peers[j] == nil {
			n.peers[j] = n.meet(other)
		}
		n.peers[j].talk(life)
	}
}

func (n *landNode) meet(other *landNode) *landPeer {
	p := &landPeer{node: n, other: other, every: landEvery, talking: n.land.w.Now(), pings: map[netip.AddrPort]*landPings{}}
	p.finder = newFinder(n.random, n.here)
	p.finder.descends = n.index < other.index
	p.finder.Relay(n.land.w.Now(), n.relayUp)
	return p
}

func (n *landNode) stop() {
	n.running, n.since = false, n.land.w.Now()
	n.life++
	if n.stream != nil {
		s := n.stream
		n.stream = nil
		s.closed = true
	}
	n.conn.Close()
}

// tick is leg.tick.
func (n *landNode) tick() {
	now := n.land.w.Now()
	n.nextLeg = time.Time{}
	st := n.session.Status()
	f := facts{udp: n.up, doubted: st.Doubted, rtt: st.RTT, dialing: n.dialing, gone: n.gone, stream: n.stream != nil, up: n.tlsUp()}
	v := n.race.step(now, f, func(d time.Duration) time.Duration { return time.Duration(n.random.Int64N(int64(d))) })
	if v.hangUp && n.stream != nil {
		n.stream.closed = true
		n.stream, n.streamSession = nil, nil
	}
	if v.fresh {
		n.session, n.up = n.newSession(), false
	}
	next := v.next
	if v.udp {
		frame, at := n.session.Tick(now)
		next = sooner(next, at)
		n.up = n.session.Status().State == relay.Up
		if frame != nil {
			n.send(simRelay, frame)
		}
	}
	if v.attach && n.stream != nil {
		frame, at := n.streamSession.Tick(now)
		next = sooner(next, at)
		if frame != nil {
			n.stream.toRelay(frame)
		}
	}
	if v.dial {
		n.dial()
	}
	n.look(now)
	if next.IsZero() {
		return
	}
	if floor := now.Add(shortestNap); next.Before(floor) {
		next = floor
	}
	n.at(next)
}

func (n *landNode) at(t time.Time) {
	if !n.nextLeg.IsZero() && !t.Before(n.nextLeg) {
		return
	}
	n.nextLeg = t
	life := n.life
	n.land.w.After(t.Sub(n.land.w.Now()), func() {
		if n.life == life && n.nextLeg.Equal(t) {
			n.tick()
		}
	})
}

func (n *landNode) wake() { n.at(n.land.w.Now()) }

func (n *landNode) tlsUp() bool {
	return n.stream != nil && n.streamSession.Status().State == relay.Up
}

func (n *landNode) dial() {
	n.dialing = true
	n.redials++
	l, life := n.land, n.life
	takes := dialTakes * 2 * l.w.Latency
	works := l.relay.running && !l.weather.tcp[n.index]
	if l.weather.tcp[n.index] {
		takes = dialPatience
	}
	l.w.After(takes, func() {
		if n.life != life {
			return
		}
		n.dialing, n.gone = false, true
		if works && l.relay.running && !l.weather.tcp[n.index] {
			n.stream, n.streamSession, n.gone = &landStream{node: n}, n.newSession(), false
		}
		n.tick()
	})
}

// active is leg.active.
func (n *landNode) active() *relay.Session {
	if n.race.tls && n.stream != nil {
		return n.streamSession
	}
	return n.session
}

// look tells the finders what has changed about the relay.
func (n *landNode) look(now time.Time) {
	up := n.up
	if n.race.tls {
		up = n.tlsUp()
	}
	here := &locality{}
	if !n.race.tls && n.up {
		if us := n.session.Status().Observed; us.IsValid() {
			here.candidates = append(here.candidates, us)
			n.forecast.Sent(now, simRelay)
			n.forecast.Seen(simRelay, us)
		}
	}
	here.candidates = append(here.candidates, n.conn.LocalAddr())
	moved := len(here.candidates) != len(n.here.candidates) || here.candidates[0] != n.here.candidates[0]
	if moved {
		n.here = here
	}
	if up == n.relayUp && !moved {
		return
	}
	n.relayUp = up
	for _, p := range n.peers {
		if p == nil {
			continue
		}
		p.finder.Relay(now, up)
		if moved {
			p.finder.Move(now, n.here)
		}
		p.tick()
	}
}

// send sends by UDP.
func (n *landNode) send(to netip.AddrPort, b []byte) { n.conn.Send(to, b) }

// byRelay sends to another node by the relay, if there is a way.
func (n *landNode) byRelay(other *landNode, b []byte) {
	if !n.relayUp {
		return
	}
	stamp(b, other.label)
	if n.race.tls {
		n.streamSession.Sent(n.land.w.Now())
		n.stream.toRelay(b)
		return
	}
	n.session.Sent(n.land.w.Now())
	n.send(simRelay, b)
}

// handle takes what came from an address, or by the stream.
func (n *landNode) handle(src netip.AddrPort, from *landStream, b []byte) {
	if !n.running {
		return
	}
	now := n.land.w.Now()
	if src == simRelay {
		session := n.session
		if from != nil {
			session = n.streamSession
		}
		if b[0] == typeControl {
			if reply := session.Handle(now, b); reply != nil && from != nil {
				from.toRelay(reply)
			} else if reply != nil {
				n.send(simRelay, reply)
			}
			n.up = n.session.Status().State == relay.Up
			n.tick()
			return
		}
		if n.race.tls == (from != nil) {
			session.Heard(now)
		}
		if p := n.peer(labelOf(b)); p != nil {
			p.handle(netip.AddrPort{}, b)
		}
		return
	}
	if b[0] == typeProbe {
		if p := n.peer(labelOf(b)); p != nil {
			p.handle(src, b)
		}
		return
	}
	for _, p := range n.peers {
		if p != nil {
			if s := p.finder.find(src); s != nil && s.proved() {
				s.tally.got.Add(1)
				p.data(b)
				return
			}
		}
	}
}

func (n *landNode) peer(label relay.Label) *landPeer {
	if i := int(label) - 1; i >= 0 && i < len(n.peers) {
		return n.peers[i]
	}
	return nil
}
