package underlay

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"overlayd/overlay/key"
	"overlayd/overlay/netsim"
	"overlayd/overlay/relay"
)

// land is a relay and some nodes behind NATs, all of which may fail: with the
// real sessions, races and finders, driven as legs and the Bind drive them.
type land struct {
	t       testing.TB
	w       *netsim.World
	relay   *landRelay
	nodes   []*landNode
	weather weather
}

// weather is what is wrong at present.
type weather struct {
	path   map[[2]int]float64 // loss of UDP between two nodes, by direction
	access []float64          // loss of all UDP of a node
	udp    []bool             // UDP is blocked at a node
	tcp    []bool             // TCP to the relay is, too
}

const (
	landEvery = 500 * time.Millisecond // between two datagrams of a pair
	// dialTakes is a TLS handshake's time in round trips; dialPatience how long
	// a dial that nobody answers takes.
	dialTakes    = 3
	dialPatience = 5 * time.Second
)

func newLand(t testing.TB, seed uint64, kinds ...netsim.Kind) *land {
	l := &land{t: t, w: netsim.New(seed)}
	l.weather = weather{path: map[[2]int]float64{}, access: make([]float64, len(kinds)), udp: make([]bool, len(kinds)), tcp: make([]bool, len(kinds))}
	l.w.Loss = l.loss
	l.relay = &landRelay{land: l, keys: map[string]*landNode{}}
	l.relay.conn = l.w.Host(simRelay.Addr()).Listen(simRelay.Port(), l.relay.receive)
	for i, kind := range kinds {
		n := &landNode{land: l, index: i, label: relay.Label(i + 1), public: netip.AddrFrom4([4]byte{198, 51, 100, byte(i + 1)})}
		n.nat = l.w.NAT(kind, n.public)
		n.inner = netip.AddrFrom4([4]byte{10, 0, byte(i), 2})
		n.ticket = relay.Ticket{Network: testNetwork, Label: n.label, NotAfter: l.w.Now().Add(1e6 * time.Hour), Serial: 1}.Append(nil)
		n.key = relay.SessionKey(testSecret, n.ticket)
		n.random = rand.New(rand.NewPCG(seed, uint64(i)))
		n.source = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(i)})
		l.relay.keys[string(n.ticket)] = n
		l.nodes = append(l.nodes, n)
	}
	l.relay.start()
	for _, n := range l.nodes {
		n.start()
	}
	return l
}

// place returns the node behind a public address; -1: it is the relay's.
func (l *land) place(a netip.Addr) int {
	if a == simRelay.Addr() {
		return -1
	}
	return int(a.As4()[3]) - 1
}

func (l *land) loss(from, to netip.Addr) float64 {
	i, j := l.place(from), l.place(to)
	pass := 1.0
	for _, n := range []int{i, j} {
		if n < 0 || n >= len(l.nodes) {
			continue
		}
		if l.weather.udp[n] {
			return 1
		}
		pass *= 1 - l.weather.access[n]
	}
	if i >= 0 && j >= 0 {
		pass *= 1 - l.weather.path[[2]int{i, j}]
	}
	return 1 - pass
}

// landRelay is a relay of few words: control messages as overlay/relay lays
// them out (see its frame.go), one session per node.
type landRelay struct {
	land     *land
	conn     *netsim.Conn
	keys     map[string]*landNode // by ticket
	running  bool
	boot     uint64
	sessions map[relay.Label]*landSession
	byAddr   map[netip.AddrPort]*landSession
}

type landSession struct {
	node   *landNode
	id     [8]byte
	addr   netip.AddrPort
	stream *landStream // nil: UDP
}

func (r *landRelay) start() {
	r.running = true
	r.boot++
	r.sessions, r.byAddr = map[relay.Label]*landSession{}, map[netip.AddrPort]*landSession{}
}

// stop is a crash: nobody is told but the peers of TCP connections.
func (r *landRelay) stop() {
	r.running = false
	for _, n := range r.land.nodes {
		if s := n.stream; s != nil && s.open() {
			s.end()
		}
	}
}

func (r *landRelay) receive(src netip.AddrPort, b []byte) { r.take(src, nil, b) }

// take handles what came from an address or by a stream.
func (r *landRelay) take(src netip.AddrPort, from *landStream, b []byte) {
	if !r.running {
		return
	}
	reply := func(b []byte) {
		if from != nil {
			from.toNode(b)
		} else {
			r.conn.Send(src, b)
		}
	}
	if b[0] != typeControl {
		s := r.byAddr[src]
		if from != nil {
			s = from.session
		}
		if s == nil || r.sessions[s.node.label] != s {
			reply([]byte{typeControl, 6, 1, 0})
			return
		}
		if d := r.sessions[labelOf(b)]; d != nil {
			stamp(b, s.node.label)
			if d.stream != nil {
				d.stream.toNode(b)
			} else {
				r.conn.Send(d.addr, b)
			}
		}
		return
	}
	switch b[1] {
	case 1:
		r.attach(src, from, b, reply)
	case 4:
		for _, s := range r.sessions {
			if s.id == [8]byte(b[4:12]) && s.stream == from && (from != nil || s.addr == src) {
				f := append([]byte{typeControl, 5, 1, 0}, b[4:20]...)
				f = appendProbeAddress(f, src)
				reply(s.node.mac(binary.LittleEndian.AppendUint64(f, r.boot)))
				return
			}
		}
		reply([]byte{typeControl, 6, 1, 0})
	}
}

func (r *landRelay) attach(src netip.AddrPort, from *landStream, b []byte, reply func([]byte)) {
	n := r.keys[string(b[44:80])]
	if n == nil {
		r.land.t.Fatal("an unknown ticket")
	}
	proof := sha256.Sum256(fmt.Append(nil, r.boot, src))
	if string(b[20:44]) != string(proof[:24]) {
		f := append([]byte{typeControl, 2, 1, 0}, b[4:20]...)
		f = append(f, proof[:24]...)
		reply(n.mac(appendProbeAddress(f, src)))
		return
	}
	if old := r.sessions[n.label]; old != nil {
		delete(r.byAddr, old.addr)
	}
	s := &landSession{node: n, id: [8]byte(b[4:12]), addr: src, stream: from}
	r.sessions[n.label] = s
	if from != nil {
		from.session = s
	} else {
		r.byAddr[src] = s
	}
	f := append([]byte{typeControl, 3, 1, 0}, b[4:20]...)
	f = binary.LittleEndian.AppendUint64(f, r.boot)
	f = appendProbeAddress(f, src)
	f = binary.LittleEndian.AppendUint16(f, 120)
	reply(n.mac(binary.LittleEndian.AppendUint16(f, 25)))
}

func (n *landNode) mac(b []byte) []byte {
	h := hmac.New(sha256.New, n.key.Expose())
	h.Write(b)
	return append(b, h.Sum(nil)[:16]...)
}

// landStream is a TLS connection to the relay. Nothing is lost in it, but while
// TCP is blocked, or when the NAT has forgotten it, nothing arrives.
type landStream struct {
	node    *landNode
	session *landSession
	closed  bool
	dead    bool // the NAT has forgotten it
}

func (s *landStream) open() bool { return !s.closed }

func (s *landStream) passes() bool {
	return !s.closed && !s.dead && !s.node.land.weather.tcp[s.node.index] && s.node.land.relay.running
}

func (s *landStream) toNode(b []byte) {
	l := s.node.land
	l.w.After(l.w.Latency, func() {
		if s.passes() && s.node.stream == s {
			s.node.handle(simRelay, s, b)
		}
	})
}

func (s *landStream) toRelay(b []byte) {
	l := s.node.land
	l.w.After(l.w.Latency, func() {
		if s.passes() {
			l.relay.take(netip.AddrPortFrom(s.node.public, 5), s, b)
		}
	})
}

// end closes it from the relay's side, or by a reset.
func (s *landStream) end() {
	reached := s.passes()
	s.closed = true
	if n := s.node; reached && n.stream == s {
		n.stream, n.streamSession = nil, nil
		n.wake()
	}
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
