package relay

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	"overlayd/overlay/key"
	"overlayd/overlay/udp"
)

// sweepEvery is how often sessions are looked through for ended leases.
const sweepEvery = 5 * time.Second

// ServerOptions says what a relay serves.
type ServerOptions struct {
	Listen netip.AddrPort // unspecified: IPv4 and, where there is one, IPv6
	Secret key.Secret     // what session keys are derived from; the coordinator has it too
	Log    *slog.Logger   // nil: slog.Default
	Shards int            // sockets per address family; 0: GOMAXPROCS, at most 16

	MaxSessions           int // 0: 65,536
	MaxSessionsPerNetwork int // 0: 16,384
	MaxStreams            int // TLS connections; 0: 1,024
}

// Server is a relay. It serves any number of networks.
type Server struct {
	log    *slog.Logger // set by NewServer, then read-only, as all down to calls
	table  *table
	door   *door
	shards []*shard
	calls  *calls
	count  counters

	mu    sync.Mutex // guards reads and ended
	reads []*reader
	ended counters // of readers of calls that are over
}

// maxShards is where more sockets stop helping.
const maxShards = 16

// NewServer binds the sockets. Run serves them; Close gives them back if Run is
// never called.
func NewServer(o ServerOptions) (*Server, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Shards <= 0 {
		o.Shards = min((runtime.GOMAXPROCS(0)+1)/2, maxShards)
	}
	if runtime.GOOS != "linux" {
		o.Shards = 1 // several sockets on one port need Linux
	}
	if o.MaxSessions <= 0 {
		o.MaxSessions = defaultMaxSessions
	}
	if o.MaxSessionsPerNetwork <= 0 {
		o.MaxSessionsPerNetwork = defaultMaxSessionsPerNetwork
	}
	if o.MaxStreams <= 0 {
		o.MaxStreams = defaultMaxStreams
	}
	t := newTable(o.MaxSessions, o.MaxSessionsPerNetwork)
	s := &Server{log: o.Log, table: t, door: newDoor(o.Secret, time.Now(), t)}
	s.calls = &calls{
		most: o.MaxStreams, patience: attachTime,
		all: map[*call]struct{}{}, sources: map[netip.Addr]int{},
	}
	if err := s.bind(o.Listen, o.Shards); err != nil {
		s.Close()
		return nil, err
	}
	for _, h := range s.shards {
		for _, k := range h.sockets() {
			s.reads = append(s.reads, &reader{socket: k, table: t, door: s.door, out: h.newOut(), count: new(counters)})
		}
	}
	return s, nil
}

// bind opens the sockets of all shards.
func (s *Server) bind(listen netip.AddrPort, shards int) error {
	// SO_REUSEPORT would share the port with any other program of the same
	// user. So the port is first taken without it, which fails if it is in use.
	probe, err := udp.Listen(listen, udp.Options{})
	if err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	port := probe.LocalAddr().Port()
	probe.Close()
	listen = netip.AddrPortFrom(listen.Addr().Unmap(), port)
	o := udp.Options{ReusePort: shards > 1, Moderate: true}
	s.shards = make([]*shard, shards)
	for i := range s.shards {
		h := &shard{}
		s.shards[i] = h
		k, err := udp.Listen(listen, o)
		if err != nil {
			return fmt.Errorf("relay: %w", err)
		}
		first, other, any := &h.v4, &h.v6, netip.IPv6Unspecified()
		if listen.Addr().Is6() {
			first, other, any = &h.v6, &h.v4, netip.IPv4Unspecified()
		}
		*first = k
		if !listen.Addr().IsUnspecified() {
			continue
		}
		if *other, err = udp.Listen(netip.AddrPortFrom(any, port), o); err != nil {
			*other = nil
			if i == 0 {
				s.log.Info("relay serves one address family", "addr", listen, "err", err)
			}
		}
	}
	return nil
}

// Run serves until ctx ends, says goodbye to all nodes, and returns when
// everything it started has ended.
func (s *Server) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, r := range s.sockets() {
		slots := slots4
		if r.socket.LocalAddr().Addr().Is6() {
			slots = slots6
		}
		wg.Go(func() { r.run(slots) })
	}
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case now := <-tick.C:
			silent, out := s.table.sweep(now.Sub(s.door.start), now)
			s.count.add(expired, silent+len(out))
			s.say(out)
		}
	}
	s.say(s.table.endAll(ReasonStopping))
	s.Close()
	wg.Wait()
	s.calls.running.Wait()
	return nil
}

// Close closes the sockets and the connections; Run then returns when its
// context ends.
func (s *Server) Close() {
	s.calls.end()
	for _, h := range s.shards {
		if h == nil {
			continue
		}
		for _, k := range h.sockets() {
			k.Close()
		}
	}
}

// say sends farewells. What is lost is found by the nodes themselves.
func (s *Server) say(out []farewell) {
	for _, f := range out {
		if c := f.dst.call; c != nil {
			c.SendControl(f.frame)
			c.Finish()
		} else if k := s.shards[0].socket(f.dst.addr); k != nil {
			_ = k.Send(f.dst.addr, f.frame)
		}
	}
}

// LocalAddr returns the address of the first socket.
func (s *Server) LocalAddr() netip.AddrPort { return s.shards[0].sockets()[0].LocalAddr() }

// Sessions returns how many nodes are attached, the relay's own not counted.
func (s *Server) Sessions() int { return s.table.places.len() }

// Disconnect refuses a removed node's tickets, whose serials go up to last, and
// ends the session that it made with one. It may be called before Run.
func (s *Server) Disconnect(n Network, l Label, last uint64) {
	if f, ok := s.table.revoke(n, l, last); ok {
		s.count.add(removed, 1)
		s.say([]farewell{f})
	}
}

// Counters returns all totals since the start, by name.
func (s *Server) Counters() map[string]uint64 {
	totals := map[string]uint64{"sessions": uint64(s.Sessions()), "streams": uint64(s.calls.len())}
	s.count.addTo(totals)
	s.mu.Lock()
	s.ended.addTo(totals)
	for _, r := range s.reads {
		r.count.addTo(totals)
	}
	s.mu.Unlock()
	for _, h := range s.shards {
		for _, k := range h.sockets() {
			c := k.Counters()
			totals["socket_send_drops"] += c.SendDrops
			totals["socket_send_errors"] += c.SendErrors
			totals["socket_gso_fallbacks"] += c.GSOFallbacks
			totals["socket_truncated"] += c.Truncated
			totals["socket_recv_errors"] += c.RecvErrors
			totals["socket_queue_drops"] += c.QueueDrops
		}
	}
	return totals
}

// sockets returns the readers of sockets, which are there from the start.
func (s *Server) sockets() (all []*reader) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.reads {
		if r.socket != nil {
			all = append(all, r)
		}
	}
	return all
}

// follow counts what a call's reader counts, unfollow keeps that.
func (s *Server) follow(r *reader) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads = append(s.reads, r)
}

func (s *Server) unfollow(r *reader) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads = slices.DeleteFunc(s.reads, func(other *reader) bool { return other == r })
	s.ended.take(r.count)
}
