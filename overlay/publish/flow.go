package publish

import (
	"container/list"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"overlayd/internal/limit"
)

const (
	// maxFlows of one UDP port: each has a socket, a goroutine and a buffer of 64
	// KiB. maxFlowsOf of one source, so that nobody alone keeps the others out.
	maxFlows   = 1024
	maxFlowsOf = maxFlows / 2
	// flowIdle is how long a flow without a datagram stays: two minutes at least,
	// says RFC 4787 section 4.3. A question and its answer, which is all that most
	// flows are, need not as long.
	flowIdle    = 2 * time.Minute
	newFlowIdle = 30 * time.Second
	// maxDatagram is the longest that there is.
	maxDatagram = 65535
	// maxEarly datagrams wait for the connection, of maxDatagram bytes in all.
	maxEarly = 8
)

// flow is what one client says to a UDP port.
type flow struct {
	client netip.AddrPort // these are set by flows.take, then read-only
	stop   context.CancelFunc

	known bool          // guarded by flows.mu, like place: it is in flows.known, not flows.fresh
	place *list.Element // there

	mu       sync.Mutex // guards what follows
	far      net.Conn   // nil: not connected yet
	early    [][]byte   // that wait for it
	waiting  int        // bytes of those
	last     time.Time  // when either side sent something
	answered bool       // the client was sent something
	talks    bool       // and has said something since
	over     bool
}

// take carries a datagram of the client to the target; b is borrowed. It reports
// whether it is the first since the client was answered.
func (f *flow) take(b []byte, now time.Time) (talks bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = now
	talks = f.answered && !f.talks
	f.talks = f.talks || talks
	switch {
	case f.over:
	case f.far != nil:
		f.far.Write(b) // what is lost is lost, as datagrams are
	case len(f.early) < maxEarly && f.waiting+len(b) <= maxDatagram:
		f.early = append(f.early, append([]byte(nil), b...))
		f.waiting += len(b)
	}
	return talks
}

// connected hands over what waited.
func (f *flow) connected(far net.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.far = far
	for _, b := range f.early {
		far.Write(b)
	}
	f.early = nil
}

// heard takes note that the target answers.
func (f *flow) heard(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last, f.answered = now, true
}

func (f *flow) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.over = true
}

// left returns how long the flow may stay without another datagram.
func (f *flow) left(now time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	idle := newFlowIdle
	if f.talks {
		idle = flowIdle
	}
	return f.last.Add(idle).Sub(now)
}

// flows are those of one port.
type flows struct {
	mu    sync.Mutex // guards the rest
	all   map[netip.AddrPort]*flow
	of    map[netip.Prefix]int // how many of them each source has
	fresh *list.List           // of *flow, those first whose client has been silent longest
	known *list.List           // likewise; of clients that went on after an answer, as forged ones seldom do
	over  bool
}

func newFlows() flows {
	return flows{all: map[netip.AddrPort]*flow{}, of: map[netip.Prefix]int{}, fresh: list.New(), known: list.New()}
}

// take returns a client's flow; it is new if there is a context, under which it has
// to work then. When there is no room another goes; a source that has its share gets
// none.
func (s *flows) take(ctx context.Context, client netip.AddrPort) (f *flow, of context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.all[client]; f != nil {
		s.list(f).MoveToBack(f.place)
		return f, nil
	}
	if s.over || s.of[limit.Source(client.Addr())] >= maxFlowsOf {
		return nil, nil
	}
	if len(s.all) >= maxFlows {
		last := s.fresh.Front()
		if last == nil {
			last = s.known.Front()
		}
		victim := last.Value.(*flow)
		victim.stop()
		s.remove(victim)
	}
	f = &flow{client: client}
	of, f.stop = context.WithCancel(ctx)
	s.all[client], f.place = f, s.fresh.PushBack(f)
	s.of[limit.Source(client.Addr())]++
	return f, of
}

// list is where a flow has its place.
func (s *flows) list(f *flow) *list.List {
	if f.known {
		return s.known
	}
	return s.fresh
}

// know takes note that a flow's client seems to hear what it is sent.
func (s *flows) know(f *flow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all[f.client] == f && !f.known {
		s.fresh.Remove(f.place)
		f.known, f.place = true, s.known.PushBack(f)
	}
}

func (s *flows) leave(f *flow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(f)
}

// remove takes a flow out; mu is held.
func (s *flows) remove(f *flow) {
	if s.all[f.client] != f {
		return
	}
	delete(s.all, f.client)
	src := limit.Source(f.client.Addr())
	if s.of[src]--; s.of[src] == 0 {
		delete(s.of, src)
	}
	s.list(f).Remove(f.place)
}

func (s *flows) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all)
}

// close lets no more begin, and returns how many there are.
func (s *flows) close() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	return len(s.all)
}

func (p *port) serveUDP(ctx context.Context) {
	buf := make([]byte, maxDatagram)
	u := p.pc.(*net.UDPConn)
	for {
		n, from, err := u.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP message about an answer
		}
		client := netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		if !p.e.allows(client.Addr()) {
			continue
		}
		f, begins := p.flows.take(ctx, client)
		if f == nil {
			continue
		}
		if f.take(buf[:n], p.s.o.Now()) {
			p.flows.know(f)
		}
		if begins != nil {
			p.s.running.Go(func() { p.answer(begins, f, from) })
		}
	}
}

// answer is the life of a flow: it carries what the target says to the client.
func (p *port) answer(ctx context.Context, f *flow, to netip.AddrPort) {
	defer f.stop()
	defer p.flows.leave(f)
	defer f.end()
	far, err := p.dial(ctx, Guest{User: p.e.User, Client: f.client, Exposure: p.e.ID, Own: true}, "udp")
	if err != nil {
		p.s.o.Log.Debug("published datagrams are refused", "exposure", p.e.ID, "addr", f.client, "err", err)
		return
	}
	defer far.Close()
	stop := context.AfterFunc(ctx, func() { far.Close() })
	defer stop()
	f.connected(far)
	buf := make([]byte, maxDatagram)
	u := p.pc.(*net.UDPConn)
	for {
		far.SetReadDeadline(time.Now().Add(f.left(p.s.o.Now())))
		n, err := far.Read(buf)
		var late net.Error
		switch {
		case err == nil:
			f.heard(p.s.o.Now())
			u.WriteToUDPAddrPort(buf[:n], to)
		case errors.As(err, &late) && late.Timeout():
			if f.left(p.s.o.Now()) <= 0 {
				return
			}
		case errors.Is(err, net.ErrClosed), errors.Is(err, io.EOF):
			return
		}
	}
}
