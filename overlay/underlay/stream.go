package underlay

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"overlayd/overlay/relay"
	"overlayd/overlay/udp"
)

// tlsSide is what a leg has of TLS. The leg's mu guards it.
type tlsSide struct {
	dialing  bool
	stream   *relay.Stream  // nil: not connected
	session  *relay.Session // in the stream; nil with it
	obstacle *relay.DialError
}

// random returns a duration from zero to below d.
func random(d time.Duration) time.Duration { return rand.N(d) }

// tick gives the session in the stream its turn.
func (s *tlsSide) tick(now time.Time) (next time.Time) {
	if s.stream == nil {
		return time.Time{}
	}
	frame, next := s.session.Tick(now)
	if frame != nil {
		s.stream.SendControl(frame)
	}
	return next
}

func (s *tlsSide) up() bool { return s.session != nil && s.session.Status().State == relay.Up }

// legState is what others want to know of a leg; when it changes, so do the ways.
type legState struct {
	up, tls bool
	stream  *relay.Stream
}

// state is for the holder of mu, as are all below.
func (l *leg) state() legState {
	if l.race.tls {
		return legState{up: l.tls.up(), tls: true, stream: l.tls.stream}
	}
	return legState{up: l.up}
}

// active returns the session that carries the traffic.
func (l *leg) active() *relay.Session {
	if l.race.tls && l.tls.session != nil {
		return l.tls.session
	}
	return l.session
}

func (l *leg) facts(ls *lines) facts {
	st := l.session.Status()
	o := l.tls.obstacle
	return facts{
		gone:  o != nil && o.Obstacle == relay.ObstacleUnreachable,
		crowd: l.crowd, udp: l.up, doubted: st.Doubted, rtt: st.RTT,
		dialing: l.tls.dialing, stream: l.tls.stream != nil, up: l.tls.up(),
		closed: l.noTLS || len(ls.all()) == 0,
	}
}

// hangUp ends the stream, and what waits in it; its reader notices.
func (l *leg) hangUp() {
	if l.tls.stream != nil {
		l.tls.stream.Close()
		l.tls.stream, l.tls.session = nil, nil
	}
}

// tlsReach is reach while TLS carries the traffic.
func (l *leg) tlsReach() reach {
	r := reach{id: l.id, transport: TransportTLS, endpoint: l.endpoint(), reason: ReasonUDPBlocked}
	if l.tls.up() {
		r.carrier = &streamCarrier{leg: l, stream: l.tls.stream}
	}
	return r
}

func (l *leg) endpoint() string {
	if l.host != "" {
		return l.host
	}
	return l.addr().String()
}

// explain says which transport is used and why it is not a better one.
func (l *leg) explain(s *RelayStatus) {
	switch {
	case l.race.tls:
		s.Transport, s.Endpoint, s.Reason = TransportTLS, l.endpoint(), ReasonUDPBlocked
	case !l.up && l.tls.obstacle != nil:
		s.Reason, s.Detail = string(l.tls.obstacle.Obstacle), l.tls.obstacle.Error()
	}
}

// close ends a leg that is no longer in the map.
func (l *leg) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.session, l.ticket, l.up = nil, nil, false
	l.hangUp()
}

// hangUpAll ends all streams.
func hangUpAll(legs []*leg) {
	for _, l := range legs {
		l.mu.Lock()
		l.hangUp()
		l.mu.Unlock()
	}
}

// target is the leg's relay as it is dialed.
func (l *leg) target() Relay {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Relay{ID: l.id, Name: l.name, Endpoint: l.endpoint(), Pin: l.pin, Addrs: l.addrs}
}

// call makes a leg's TLS connection, and moves what comes by it until it ends.
func (b *Bind) call(ctx context.Context, l *leg) {
	st, err := b.o.Dial(ctx, l.target())
	if err == nil {
		defer st.Wait()
		defer st.Close()
	}
	if !b.called(ctx, l, st, err) {
		return
	}
	in := &inlet{leg: l, done: make(chan struct{}, 1)}
	for {
		trains, err := st.Read()
		if in.trains = b.controls(l, st, trains); len(in.trains) > 0 {
			l.note(heardMark)
			select {
			case b.inbox <- in:
				<-in.done // a receiver that has taken it says so, whatever happens
			case <-ctx.Done():
				return
			case <-b.whenShut():
				return
			}
		}
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				b.count.add(tlsBroken, 1)
			}
			b.streamEnded(l, st)
			return
		}
	}
}

// called takes note of a dial's result; false: no stream is to be read.
func (b *Bind) called(ctx context.Context, l *leg, st *relay.Stream, err error) bool {
	defer b.wake()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tls.dialing = false
	b.count.add(tlsDials, 1)
	if err != nil {
		b.count.add(tlsFailed, 1)
		if e, ok := errors.AsType[*relay.DialError](err); ok {
			if l.tls.obstacle == nil || l.tls.obstacle.Obstacle != e.Obstacle {
				b.log.Warn("relay cannot be reached by TLS", "relay", l.name, "reason", string(e.Obstacle), "err", e)
			}
			l.tls.obstacle = e
		}
		return false
	}
	if l.session == nil || len(b.lines.Load().all()) == 0 || ctx.Err() != nil { // not wanted any more
		return false
	}
	l.tls.obstacle = nil
	l.tls.stream, l.tls.session = st, l.newSession(l.ticket, l.key)
	return true
}

// controls handles the control messages in what came by a stream, and returns
// the rest.
func (b *Bind) controls(l *leg, st *relay.Stream, trains []udp.Train) []udp.Train {
	rest := trains[:0]
	for _, t := range trains {
		if classify(t.Buf[:min(t.Size, len(t.Buf))]) != toSession {
			rest = append(rest, t)
			continue
		}
		for p := t.Buf; len(p) > 0; p = p[min(t.Size, len(p)):] {
			if l.handleStream(time.Now(), st, p[:min(t.Size, len(p))]) {
				b.relayChanged(l)
			}
		}
	}
	return rest
}

// handleStream takes a control message from a stream.
func (l *leg) handleStream(now time.Time, st *relay.Stream, frame []byte) (changed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tls.stream != st {
		return false // late
	}
	before := l.state()
	if reply := l.feed(l.tls.session, now, frame); reply != nil {
		st.SendControl(reply)
	}
	l.wake()
	return l.state() != before
}

// streamEnded takes note of a stream's end.
func (b *Bind) streamEnded(l *leg, st *relay.Stream) {
	l.mu.Lock()
	if l.tls.stream == st {
		l.tls.stream, l.tls.session = nil, nil
	}
	l.mu.Unlock()
	b.wake()
}

// whenShut is closed when the Bind is.
func (b *Bind) whenShut() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.shut
}

// streamCarrier goes by TLS to a relay.
type streamCarrier struct {
	leg    *leg
	stream *relay.Stream
}

// streamPatience is how long a batch waits for room in a stream, and with it the
// TUN's reader: what waits in the kernel slows its senders down without a loss. It
// is shorter than the time after which package tunnel counts as dropped what does
// not leave, and all that a stalled stream can cost other peers.
const streamPatience = 5 * time.Millisecond

func (c *streamCarrier) send(label relay.Label, bufs [][]byte) (dropped int) {
	c.leg.note(sentMark)
	c.stream.Await(bufs, streamPatience)
	for _, p := range bufs {
		stamp(p, label)
	}
	dropped = c.stream.SendEach(bufs)
	for _, p := range bufs {
		stamp(p, 0) // WireGuard may send the same buffer again
	}
	return dropped
}

// inlet is what a stream's reader hands to WireGuard's.
type inlet struct {
	leg    *leg
	trains []udp.Train
	done   chan struct{} // holds one token: the trains were used
}

// streamReceiver gives WireGuard what comes by TLS. WireGuard calls it from one
// goroutine.
type streamReceiver struct {
	receiver
	in   *inlet // nil: none
	shut <-chan struct{}
}

func newStreamReceiver(b *Bind, shut <-chan struct{}) *streamReceiver {
	return &streamReceiver{receiver: receiver{b: b}, shut: shut}
}

// receive is a conn.ReceiveFunc.
func (r *streamReceiver) receive(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	for {
		if n := r.fill(bufs, sizes, eps); n > 0 {
			return n, nil
		}
		if r.in != nil {
			r.in.done <- struct{}{}
			r.in = nil
		}
		select {
		case <-r.shut:
			return 0, net.ErrClosed
		case r.in = <-r.b.inbox:
			r.leg, r.trains = r.in.leg, r.in.trains
		}
	}
}
