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
// does not merge datagrams, each is a message of its own.
const readSlots = 16

// receiver gives WireGuard what comes in at one socket. WireGuard calls it from
// one goroutine.
type receiver struct {
	b      *Bind
	line   *line
	reader *udp.Reader
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
			return 0, net.ErrClosed
		}
		r.trains = trains
	}
}

// fill moves datagrams from the trains to bufs until either has no more. It
// uses a slot only for what is WireGuard's.
func (r *receiver) fill(bufs [][]byte, sizes []int, eps []conn.Endpoint) (n int) {
	t := r.b.table.Load()
	for ; len(r.trains) > 0; r.trains = r.trains[1:] {
		train := &r.trains[0]
		l := t.legs[train.Src]
		if l == nil {
			r.b.count.add(dropUnknownSource, (len(train.Buf)+train.Size-1)/train.Size)
			continue
		}
		l.note(heardMark)
		var last relay.Label
		var to *peer // whom last belongs to
		for len(train.Buf) > 0 {
			if n == len(bufs) {
				return n
			}
			p := train.Buf[:min(train.Size, len(train.Buf))]
			train.Buf = train.Buf[len(p):]
			switch classify(p) {
			case toWireGuard:
				if label := labelOf(p); to == nil || label != last {
					last, to = label, t.peers[label]
				}
				if to == nil {
					r.b.count.add(dropUnknownLabel, 1)
					continue
				}
				sizes[n] = copy(bufs[n], p)
				stamp(bufs[n], 0)
				eps[n] = to
				n++
			case toSession:
				r.control(l, train.Src, p)
			case toProbes:
				r.b.count.add(dropProbe, 1)
			default:
				r.b.count.add(dropMalformed, 1)
			}
		}
	}
	return n
}

func (r *receiver) control(l *leg, src netip.AddrPort, p []byte) {
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
			r.b.count.add(dropProbe, 1)
		default:
			r.b.count.add(dropMalformed, 1)
		}
		sizes[i] = 0
		eps[i] = nil
	}
	return used
}
