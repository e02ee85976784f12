package relay

import (
	"net/netip"
	"time"

	"overlayd/overlay/udp"
)

const (
	// slots4 and slots6 are messages per receive call. Where the network card
	// merges nothing, a slot holds one datagram, so there must be many; their
	// memory is touched only as far as it is used.
	slots4, slots6 = 64, 32
)

// shard is one socket per address family, and the goroutines that read them.
// The kernel spreads the nodes over the shards. Any shard sends to any node.
type shard struct {
	v4, v6 *udp.Socket // nil: not bound in this family
}

func (s *shard) sockets() (all []*udp.Socket) {
	for _, k := range []*udp.Socket{s.v4, s.v6} {
		if k != nil {
			all = append(all, k)
		}
	}
	return all
}

// socket returns the socket that sends to dst, or nil.
func (s *shard) socket(dst netip.AddrPort) *udp.Socket {
	if dst.Addr().Is4() {
		return s.v4
	}
	return s.v6
}

// out gathers what goes out by either family. It belongs to one goroutine.
type out struct {
	shard  *shard
	v4, v6 *udp.Writer
}

func (s *shard) newOut() *out {
	o := &out{shard: s}
	if s.v4 != nil {
		o.v4 = s.v4.NewWriter()
	}
	if s.v6 != nil {
		o.v6 = s.v6.NewWriter()
	}
	return o
}

// add queues a train, which is borrowed until flush.
func (o *out) add(l *leg, size int, train []byte) {
	w := o.v6
	if l.addr.Addr().Is4() {
		w = o.v4
	}
	if w != nil { // a node cannot have attached by a family that is not bound
		w.Add(l.addr, size, train)
	}
}

// flush sends what is queued and returns how many datagrams were dropped.
func (o *out) flush() (dropped int) {
	if o.v4 != nil {
		dropped += o.v4.Flush()
	}
	if o.v6 != nil {
		dropped += o.v6.Flush()
	}
	return dropped
}

// reader moves what one socket receives, or one call. It belongs to one
// goroutine.
type reader struct {
	socket *udp.Socket // nil: call
	call   *call
	table  *table
	door   *door
	out    *out
	count  *counters
	reply  []byte
}

// run forwards until the socket is closed.
func (r *reader) run(slots int) {
	in := r.socket.NewReader(slots)
	for {
		trains, err := in.Read()
		if err != nil {
			return
		}
		r.forward(trains)
	}
}

// forward moves a batch. Trains are stamped and sent where they lie.
func (r *reader) forward(trains []udp.Train) {
	bytes, n := 0, 0
	for i := range trains {
		if r.call != nil {
			trains[i].Src = r.call.addr
		}
		b, k := r.train(&trains[i])
		bytes += b
		n += k
	}
	dropped := r.out.flush()
	r.count.add(forwarded, n-dropped)
	r.count.add(forwardedBytes, bytes)
	if dropped > 0 {
		r.count.add(dropSendQueue, dropped)
	}
}

// train queues what is to be forwarded of one train, and returns how much it was.
func (r *reader) train(t *udp.Train) (bytes, datagrams int) {
	src := origin{t.Src, r.call}
	from := r.table.from(src)
	for rest := t.Buf; len(rest) > 0; {
		n, d := cut(from, rest, t.Size)
		run := rest[:n]
		rest = rest[n:]
		switch {
		case d.control:
			r.control(src, run)
			from = r.table.from(src) // it may have attached
		case d.guest && r.guest(src, run, t.Size):
		case d.leg == nil:
			r.count.add(d.why, (n+t.Size-1)/t.Size)
			if d.why == dropNoSession {
				r.unknown(src)
			}
		case d.leg.port != nil:
			d.leg.port.deliver(r.count, from.label, run, t.Size)
		case d.leg.call != nil:
			slow := d.leg.call.Send(run, t.Size)
			r.count.add(dropSlow, slow)
			bytes += n
			datagrams += (n+t.Size-1)/t.Size - slow
		case d.probe && min(t.Size, n) > longProbe:
			sent := r.sendWhole(src, d.leg, run, t.Size)
			bytes += n
			datagrams += sent
		default:
			r.out.add(d.leg, t.Size, run)
			bytes += n
			datagrams += (n + t.Size - 1) / t.Size
		}
	}
	return bytes, datagrams
}

// guest hands a run from no node to this machine's own device, if there is one.
func (r *reader) guest(src origin, run []byte, size int) bool {
	host := r.table.host.Load()
	if host == nil || src.call != nil {
		return false
	}
	host.welcome(r.count, r.door, time.Now(), src.addr, run, size)
	return true
}

// control answers a control message by the socket it came by.
func (r *reader) control(src origin, frame []byte) {
	reply, what := r.door.control(r.reply[:0], time.Now(), src, frame)
	r.answer(src, reply, what)
}

// unknown tells a sender that it has no session, unless it was told just now.
func (r *reader) unknown(src origin) {
	reply, what := r.door.unknown(r.reply[:0], time.Now(), src)
	if what == unknownSent {
		r.answer(src, reply, what)
	}
}

func (r *reader) answer(src origin, reply []byte, what event) {
	r.count.add(what, 1)
	r.reply = reply
	switch {
	case len(reply) == 0:
	case r.call != nil:
		r.call.SendControl(reply)
	default:
		_ = r.socket.Send(src.addr, reply) // counted there; nodes repeat themselves
	}
}
