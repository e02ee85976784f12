package relay

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// Port is the place of the relay machine's own node: datagrams for its label,
// and for label 0, arrive here without a socket in between, and apart from them
// those of WireGuard's with label 0 that come from no node: guests'. Its methods
// may be called concurrently.
type Port struct {
	server *Server // set by Attach, then read-only, as all here
	seat   *seat
	ring   *ring[Label]
	guests *ring[netip.AddrPort]
	count  *counters
	outs   sync.Pool // *out
}

// Attach gives the relay machine's own node its port. A node or port that has
// the label already loses it.
func (s *Server) Attach(n Network, l Label) *Port {
	p := &Port{
		server: s, count: &s.count,
		ring: newRing[Label](ringBytes, ringItems), guests: newRing[netip.AddrPort](ringBytes, ringItems),
	}
	p.outs.New = func() any { return s.shards[0].newOut() }
	p.seat = s.table.seatOwn(n, l, p)
	s.table.host.Store(p)
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

// ReceiveGuests is Receive for what comes from no node: src[i] is where bufs[i]
// came from, which nothing has proved.
func (p *Port) ReceiveGuests(bufs [][]byte, sizes []int, src []netip.AddrPort) (n int, err error) {
	n, tooLong, ok := p.guests.take(bufs, sizes, src)
	p.count.add(dropPortTooLong, tooLong)
	if !ok {
		return 0, net.ErrClosed
	}
	return n, nil
}

// SendGuest sends datagrams to an address as they are, or drops them.
func (p *Port) SendGuest(dst netip.AddrPort, bufs [][]byte) {
	o := p.outs.Get().(*out)
	w := o.v6
	if dst.Addr().Is4() {
		w = o.v4
	}
	bytes, n := 0, 0
	for _, b := range bufs {
		if w == nil || len(b) < headerSize || labelOf(b) != 0 || !shaped(b[0], len(b)) {
			p.count.add(dropShape, 1)
			continue
		}
		w.Add(dst, len(b), b)
		bytes += len(b)
		n++
	}
	dropped := o.flush()
	p.outs.Put(o)
	p.count.add(guestSent, n-dropped)
	p.count.add(forwardedBytes, bytes)
	p.count.add(dropSendQueue, dropped)
}

// welcome hands a train from somebody who is no node to the port's reader. Of
// each source, so many handshakes a second are and no more: whatever they cost,
// those of others are served.
func (p *Port) welcome(c *counters, door *door, now time.Time, src netip.AddrPort, train []byte, size int) {
	for len(train) > 0 {
		run := train
		if train[0] == dataInitiation {
			run = train[:min(size, len(train))]
			if !door.greets(now, src) {
				c.add(dropLimited, 1)
				train = train[len(run):]
				continue
			}
		} else {
			for n := 0; n < len(run); n += size {
				if run[n] == dataInitiation {
					run = run[:n]
				}
			}
		}
		c.add(guestCame, (len(run)+size-1)/size)
		c.add(dropPortFull, p.guests.push(src, run, size))
		train = train[len(run):]
	}
}

// Close gives the label up and ends Receive and ReceiveGuests.
func (p *Port) Close() {
	p.server.table.host.CompareAndSwap(p, nil)
	p.server.table.leave(p.seat)
	p.ring.close()
	p.guests.close()
}
