package underlay

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

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
