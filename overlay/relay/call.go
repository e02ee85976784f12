package relay

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

const (
	// defaultMaxStreams at some 150 KiB each, 400 KiB when all are slow, is what
	// a small machine can bear; UDP is the rule, and needs none of it.
	defaultMaxStreams = 1024
	// maxStreamsPerSource allows for an office behind one address.
	maxStreamsPerSource = 64
	// attachTime is how long a connection may be without a session: before its
	// ATTACH, and after its node went on to UDP.
	attachTime = 10 * time.Second
)

// StreamPath is where a relay's HTTPS server has to mount its Server.
const StreamPath = "/relay"

// call is a TLS connection as the relay has it. Its node may have no seat yet,
// or no more.
type call struct {
	*Stream         // set before its reader starts
	id       uint64 // set by open, as all below
	addr     netip.AddrPort
	idle     *time.Timer // closes it when it has no seat for that long
	patience time.Duration
}

func (c *call) origin() origin { return origin{addr: c.addr, call: c} }

// origin is where control messages and data come from: an address by UDP, or a
// call. It is comparable.
type origin struct {
	addr netip.AddrPort
	call *call // nil: by UDP
}

// place is where table finds the seat of an origin. Calls go by number: an
// address may have both.
func (o origin) place() (p place) {
	if o.call == nil {
		return placeOf(o.addr)
	}
	binary.LittleEndian.PutUint64(p[:], o.call.id)
	p[placeKind] = placeIsCall
	return p
}

// calls are the connections that are open.
type calls struct {
	most int // set by NewServer, then read-only, as patience
	// patience is attachTime, or what a test can wait for.
	patience time.Duration

	mu      sync.Mutex // guards all below
	shut    bool
	all     map[*call]struct{}
	sources map[netip.Addr]int // how many of them, by who cannot choose another address at will
	last    uint64             // id
	running sync.WaitGroup     // a handler each
}

// open makes room for a connection from addr; nil: there is none.
func (s *calls) open(addr netip.AddrPort) *call {
	s.mu.Lock()
	defer s.mu.Unlock()
	who := source(addr.Addr())
	if s.shut || len(s.all) >= s.most || s.sources[who] >= maxStreamsPerSource {
		return nil
	}
	s.last++
	c := &call{id: s.last, addr: addr, patience: s.patience}
	s.all[c] = struct{}{}
	s.sources[who]++
	s.running.Add(1)
	return c
}

// done gives the room back.
func (s *calls) done(c *call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, c)
	who := source(c.addr.Addr())
	if s.sources[who]--; s.sources[who] <= 0 {
		delete(s.sources, who)
	}
	s.running.Done()
}

// start makes the call's stream, unless all calls are to end.
func (s *calls) start(c *call, st *Stream) (ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.Stream = st
	return !s.shut
}

// end lets every call finish what it has to say, and no new one in.
func (s *calls) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shut = true
	for c := range s.all {
		if c.Stream != nil {
			c.Finish()
		}
	}
}

func (s *calls) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all)
}

// source is an address as far as its owner cannot change it: all of IPv4, the
// first half of IPv6.
func source(a netip.Addr) netip.Addr {
	if a.Is4() {
		return a
	}
	p, err := a.WithZone("").Prefix(64)
	if err != nil {
		return a
	}
	return p.Addr()
}

// ServeHTTP takes a node's connection for the datagrams that cannot come by UDP.
// It belongs at [StreamPath] of an HTTPS server, for HTTP/1.1.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	key, ok := asksUpgrade(r)
	if !ok {
		s.count.add(dropNoUpgrade, 1)
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "websocket")
		w.Header().Set("Sec-WebSocket-Version", "13")
		http.Error(w, "this is the relay of an overlay network: it speaks WebSocket only", http.StatusUpgradeRequired)
		return
	}
	addr, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil { // a server on something else than TCP
		addr = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
	}
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	c := s.calls.open(addr)
	if c == nil {
		s.count.add(streamsRefused, 1)
		w.Header().Set("Retry-After", "30")
		http.Error(w, "the relay has no room for another connection", http.StatusServiceUnavailable)
		return
	}
	defer s.calls.done(c)
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "the server cannot hand over its connection", http.StatusInternalServerError)
		return
	}
	if err := s.upgrade(conn, key); err != nil {
		conn.Close()
		return
	}
	s.serveCall(c, conn, rw.Reader)
}

// upgrade writes the answer to a client's handshake.
func (s *Server) upgrade(conn net.Conn, key string) error {
	if err := conn.SetDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err := fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n", acceptKey(key))
	return errors.Join(err, conn.SetDeadline(time.Time{}))
}

// serveCall moves what comes in by a call until it ends.
func (s *Server) serveCall(c *call, conn net.Conn, r *bufio.Reader) {
	st := newStream(conn, below(conn), r, false)
	defer st.Wait()
	defer st.Close()
	if !s.calls.start(c, st) {
		return
	}
	c.idle = time.AfterFunc(c.patience, func() {
		if s.table.from(c.origin()) == nil {
			s.count.add(streamsIdle, 1)
			c.Close()
		}
	})
	defer c.idle.Stop()
	s.count.add(streamsOpened, 1)
	in := &reader{call: c, table: s.table, door: s.door, out: s.shards[0].newOut(), count: new(counters)}
	s.follow(in)
	defer s.unfollow(in)
	defer s.table.hangUp(c)
	for {
		trains, err := c.Read()
		in.forward(trains)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.count.add(streamsBroken, 1)
			return
		}
	}
}
