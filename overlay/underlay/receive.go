package underlay

import (
	"net"
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"overlayd/overlay/relay"
	"overlayd/overlay/udp"
)

// First bytes of datagrams.
const (
	typeInitiation = 0x01 // WireGuard's
	typeResponse   = 0x02
	typeCookie     = 0x03
	typeData       = 0x04
	typeControl    = 0x08 // between a node and a relay
	typeProbe      = 0x09 // between peers
)

// headerSize is what every datagram has: a type and a label.
const headerSize = 4

// readSlots is how many messages one receive call takes. Where the network card
// does not merge datagrams, each is a message of its own, and with 64 of them a
// gateway needs a tenth less processor time than with 16. Their memory is touched
// only as far as it is used.
const readSlots = 64

// receiver gives WireGuard what comes in at one socket. WireGuard calls it from
// one goroutine.
type receiver struct {
	b      *Bind
	line   *line // nil: leg's stream
	reader *udp.Reader
	leg    *leg        // nil: the trains' sources tell
	trains []udp.Train // read, but not all given away yet
}

func newReceiver(b *Bind, l *line) *receiver {
	return &receiver{b: b, line: l, reader: l.sock.NewReader(readSlots)}
}

// receive is a conn.ReceiveFunc. Its only error is net.ErrClosed, since
// WireGuard ends for good on most others.
func (r *receiver) receive(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	for {
		if n := r.fill(bufs, sizes, eps); n > 0 {
			return n, nil
		}
		trains, err := r.reader.Read()
		if err != nil {
			if r.follow() {
				continue
			}
			return 0, net.ErrClosed
		}
		r.trains = trains
	}
}

// follow goes on with the socket that has taken the place of a closed one.
func (r *receiver) follow() bool {
	next := r.b.lines.Load().to(r.line.sock.LocalAddr().Addr())
	if next == nil || next == r.line {
		return false
	}
	r.line, r.reader = next, next.sock.NewReader(readSlots)
	return true
}

// fill moves datagrams from the trains to bufs until either has no more. It
// uses a slot only for what is WireGuard's.
func (r *receiver) fill(bufs [][]byte, sizes []int, eps []conn.Endpoint) (n int) {
	t := r.b.table.Load()
	homes := r.b.homes.load()
	for ; len(r.trains) > 0; r.trains = r.trains[1:] {
		train := &r.trains[0]
		l := r.leg
		if l == nil {
			l = t.legs[train.Src]
		}
		if l != nil {
			n = r.fillRelayed(train, l, t, bufs, sizes, eps, n)
		} else if h := homes[train.Src]; h.peer != nil || r.b.direct {
			n = r.fillDirect(train, h, t, bufs, sizes, eps, n)
		} else {
			r.b.count.add(dropUnknownSource, (len(train.Buf)+train.Size-1)/train.Size)
			continue
		}
		if len(train.Buf) > 0 {
			return n
		}
	}
	return n
}

// cut takes the first datagram off a train.
func cut(t *udp.Train) []byte {
	p := t.Buf[:min(t.Size, len(t.Buf))]
	t.Buf = t.Buf[len(p):]
	return p
}

// fillRelayed takes a train of a relay's, of which n slots are filled already.
func (r *receiver) fillRelayed(train *udp.Train, l *leg, t *table, bufs [][]byte, sizes []int, eps []conn.Endpoint, n int) int {
	heard := false // from a peer, which makes it likely to be the relay's
	var last relay.Label
	var to *peer // whom last belongs to
	came := 0    // WireGuard's, of to
	for len(train.Buf) > 0 && n < len(bufs) {
		p := cut(train)
		kind := classify(p)
		if kind == toWireGuard || kind == toProbes && r.b.sealing {
			if label := labelOf(p); to == nil || label != last {
				if came > 0 {
					to.byRelay.got.Add(uint64(came))
				}
				last, to, came = label, t.peers[label], 0
			}
			if to == nil {
				r.b.count.add(dropUnknownLabel, 1)
				continue
			}
			heard = true
			if kind == toWireGuard && to.way.Load().direct().IsValid() {
				r.b.detoured(to)
			}
		}
		switch {
		case kind == toWireGuard:
			if p[0] == typeInitiation {
				r.b.suspect(to)
			}
			sizes[n] = copy(bufs[n], p)
			stamp(bufs[n], 0)
			eps[n] = to
			n++
			came++
		case kind == toSession:
			r.control(l, train.Src, p)
		case kind == toProbes && r.b.sealing:
			r.b.probed(to, netip.AddrPort{}, p)
		case kind == toProbes:
			r.b.count.add(dropProbe, 1)
		default:
			r.b.count.add(dropMalformed, 1)
		}
	}
	if came > 0 {
		to.byRelay.got.Add(uint64(came))
	}
	if heard {
		l.note(heardMark)
	}
	return n
}

// fillDirect takes a train that came from no relay: WireGuard's datagrams only
// if the address is a peer's, whose address h is.
func (r *receiver) fillDirect(train *udp.Train, h home, t *table, bufs [][]byte, sizes []int, eps []conn.Endpoint, n int) int {
	before := n
	for len(train.Buf) > 0 && n < len(bufs) {
		p := cut(train)
		kind := classify(p)
		switch {
		case kind == toProbes && r.b.direct:
			if to := t.peers[labelOf(p)]; to != nil {
				r.b.probed(to, train.Src, p)
			} else {
				r.b.count.add(dropUnknownLabel, 1)
			}
		case h.peer == nil:
			r.b.count.add(dropUnknownSource, 1)
		case kind != toWireGuard:
			r.b.count.add(dropMalformed, 1)
		case labelOf(p) != 0:
			r.b.count.add(dropDirectLabel, 1)
		default:
			sizes[n] = copy(bufs[n], p)
			eps[n] = h.peer
			n++
		}
	}
	if n > before {
		h.tally.got.Add(uint64(n - before))
	}
	return n
}

func (r *receiver) control(l *leg, src netip.AddrPort, p []byte) {
	if r.leg != nil { // its reader has handled it
		return
	}
	if l.handle(time.Now(), src, p, r.line) {
		r.b.relayChanged(l)
	}
}

// destination is whom a datagram is for.
type destination int

const (
	toNobody destination = iota
	toWireGuard
	toSession
	toProbes
)

// classify looks at a datagram's first byte.
func classify(p []byte) destination {
	if len(p) < headerSize {
		return toNobody
	}
	switch p[0] {
	case typeInitiation, typeResponse, typeCookie, typeData:
		return toWireGuard
	case typeControl:
		return toSession
	case typeProbe:
		return toProbes
	}
	return toNobody
}

// portReceiver gives WireGuard what comes through the relay in this process.
type portReceiver struct {
	b    *Bind
	port *relay.Port
	src  []relay.Label
}

func newPortReceiver(b *Bind, p *relay.Port) *portReceiver {
	return &portReceiver{b: b, port: p, src: make([]relay.Label, batchSize)}
}

// receive is a conn.ReceiveFunc. The relay has cleared the labels already.
func (r *portReceiver) receive(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	for {
		n, err := r.port.Receive(bufs, sizes, r.src[:min(len(bufs), len(r.src))])
		if err != nil {
			return 0, net.ErrClosed
		}
		if r.assign(bufs, sizes, eps, n) > 0 {
			return n, nil
		}
	}
}

// assign names the peers of n datagrams and returns how many are for WireGuard;
// the slots of the others become empty.
func (r *portReceiver) assign(bufs [][]byte, sizes []int, eps []conn.Endpoint, n int) (used int) {
	peers := r.b.table.Load().peers
	for i := range n {
		p := peers[r.src[i]]
		switch classify(bufs[i][:sizes[i]]) {
		case toWireGuard:
			if p != nil {
				eps[i] = p
				used++
				continue
			}
			r.b.count.add(dropUnknownLabel, 1)
		case toProbes:
			if p != nil && r.b.sealing {
				r.b.probed(p, netip.AddrPort{}, bufs[i][:sizes[i]])
			} else {
				r.b.count.add(dropProbe, 1)
			}
		default:
			r.b.count.add(dropMalformed, 1)
		}
		sizes[i] = 0
		eps[i] = nil
	}
	return used
}
