package relay

import (
	"net"
	"sync"
)

// Port is the place of the relay machine's own node: datagrams for its label,
// and for label 0, arrive here without a socket in between. Its methods may be
// called concurrently.
type Port struct {
	server *Server // set by Attach, then read-only, as all here
	seat   *seat
	ring   *ring
	count  *counters
	outs   sync.Pool // *out
}

// Attach gives the relay machine's own node its port. A node or port that has
// the label already loses it.
func (s *Server) Attach(n Network, l Label) *Port {
	p := &Port{server: s, ring: newRing(ringBytes, ringItems), count: &s.count}
	p.outs.New = func() any { return s.shards[0].newOut() }
	p.seat = s.table.seatOwn(n, l, p)
	return p
}

// Send sends datagrams to dst, or drops them. Bytes 1 to 3 of each are zero on
// entry, hold the own label meanwhile, and are zero on return. It never blocks.
func (p *Port) Send(dst Label, bufs [][]byte) {
	var where *leg
	if s := p.seat.network.labels.get(dst); s != nil && s != p.seat && p.seat.leg.Load() != nil {
		where = s.leg.Load()
	}
	if where == nil {
		p.count.add(dropNoPeer, len(bufs))
		return
	}
	o := p.outs.Get().(*out)
	bytes, n, slow := 0, 0, 0
	for _, b := range bufs {
		if len(b) < headerSize || !shaped(b[0], len(b)) {
			p.count.add(dropShape, 1)
			continue
		}
		stamp(b, p.seat.label)
		bytes += len(b)
		n++
		if where.call != nil {
			slow += where.call.Send(b, len(b))
			continue
		}
		if b[0] == kindProbe && len(b) > longProbe {
			if !p.server.shards[0].sendWhole(where, b) {
				n--
				p.count.add(dropSendQueue, 1)
			}
			continue
		}
		o.add(where, len(b), b)
	}
	dropped := o.flush()
	for _, b := range bufs {
		if len(b) >= headerSize {
			stamp(b, 0)
		}
	}
	p.outs.Put(o)
	p.count.add(forwarded, n-dropped-slow)
	p.count.add(forwardedBytes, bytes)
	p.count.add(dropSendQueue, dropped)
	p.count.add(dropSlow, slow)
}

// deliver hands a train from a node to the port's reader.
func (p *Port) deliver(c *counters, src Label, train []byte, size int) {
	n := (len(train) + size - 1) / size
	c.add(delivered, n)
	c.add(dropPortFull, p.ring.push(src, train, size))
}

// Receive waits for datagrams and copies as many as there are bufs for: bufs[i]
// holds sizes[i] bytes from the node src[i], and its bytes 1 to 3 are zero. It
// returns net.ErrClosed once the port is closed.
func (p *Port) Receive(bufs [][]byte, sizes []int, src []Label) (n int, err error) {
	n, tooLong, ok := p.ring.take(bufs, sizes, src)
	p.count.add(dropPortTooLong, tooLong)
	if !ok {
		return 0, net.ErrClosed
	}
	for i := range n {
		stamp(bufs[i], 0)
	}
	return n, nil
}

// Close gives the label up and ends Receive.
func (p *Port) Close() {
	p.server.table.leave(p.seat)
	p.ring.close()
}
