package portmap

import (
	"context"
	crand "crypto/rand"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// leaveTime is how long a router has to answer at the end.
const leaveTime = time.Second

// Options say how New makes a Mapper. The zero value works.
type Options struct {
	Log *slog.Logger // nil: none
	// Control prepares every socket before it is used, as in net.Dialer: it
	// gives them the mark. nil: nothing to do.
	Control func(network, address string, c syscall.RawConn) error
	// Changed is told the address to offer peers when that changes, the zero
	// value for none. It is called by Run, never concurrently. nil: nobody.
	Changed func(netip.AddrPort)

	port uint16 // where routers listen; 0: routerPort. Tests have no others than their own
}

func (o *Options) routerPort() uint16 {
	if o.port != 0 {
		return o.port
	}
	return routerPort
}

// Mapper keeps a port mapped at the default gateway. Its methods may be called
// concurrently.
type Mapper struct {
	o     Options // set by New, then read-only
	nonce nonce
	poke  chan struct{} // makes Run look; holds one token, never closed

	found   igd            // Run's alone, as the next two
	offered netip.AddrPort // as Changed was told
	told    Status         // as logged

	mu     sync.Mutex // guards the rest
	keeper *keeper
	stop   context.CancelFunc // ends the task at hand; nil: there is none
}

// New returns a Mapper without a target.
func New(o Options) *Mapper {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Changed == nil {
		o.Changed = func(netip.AddrPort) {}
	}
	m := &Mapper{o: o, poke: make(chan struct{}, 1), keeper: newKeeper(rand.New(anyRandom{}))}
	crand.Read(m.nonce[:]) // others on the link cannot end a mapping whose nonce they do not know
	return m
}

// anyRandom is the process's own generator, safe for concurrent use.
type anyRandom struct{}

func (anyRandom) Uint64() uint64 { return rand.Uint64() }

// SetTarget says whom to ask from now on, and for which port.
func (m *Mapper) SetTarget(t Target) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.setTarget(t)
}

// SetPort says that our UDP port has changed.
func (m *Mapper) SetPort(port uint16) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.keeper.target
	t.Port = port
	m.setTarget(t)
}

// setTarget is SetTarget; the caller holds mu.
func (m *Mapper) setTarget(t Target) {
	if t == m.keeper.target {
		return
	}
	m.keeper.Move(time.Now(), t)
	if m.stop != nil {
		m.stop()
	}
	m.wake()
}

// Kick says that the network has changed in some way.
func (m *Mapper) Kick() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keeper.Kick(time.Now())
	m.wake()
}

func (m *Mapper) wake() {
	select {
	case m.poke <- struct{}{}:
	default:
	}
}

// Status tells how things are.
func (m *Mapper) Status() Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.keeper.Status()
}

// Run keeps the mapping until ctx ends, then releases it.
func (m *Mapper) Run(ctx context.Context) error {
	defer m.leave()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		t, ok, at, taskCtx := m.next(ctx)
		if ok {
			l, err := m.do(taskCtx, t)
			m.done(ctx, t, l, err)
			m.tell()
			continue
		}
		m.tell()
		timer.Stop()
		if !at.IsZero() {
			timer.Reset(time.Until(at))
		}
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-m.poke:
		}
	}
	return nil
}

// next takes the next task, with a context that ends when the target changes.
func (m *Mapper) next(ctx context.Context) (t task, ok bool, at time.Time, taskCtx context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t, ok, at = m.keeper.Next(time.Now()); ok {
		taskCtx, m.stop = context.WithCancel(ctx)
	}
	return t, ok, at, taskCtx
}

// done hands the keeper what came of a task. What was asked for when Run was
// ended may have been granted, without our hearing it.
func (m *Mapper) done(ctx context.Context, t task, l lease, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stop()
	m.stop = nil
	if ctx.Err() == nil || err == nil {
		m.keeper.Done(time.Now(), t, l, err)
		return
	}
	if t.kind == obtain && t.target == m.keeper.target && !m.keeper.held {
		l = lease{protocol: t.protocol, internal: t.target.Port, external: t.lease.external}
		if l.external.Port() == 0 {
			l.external = netip.AddrPortFrom(netip.IPv4Unspecified(), t.target.Port)
		}
		m.keeper.unwanted = append(m.keeper.unwanted, l)
	}
}

// do has a conversation with the router.
func (m *Mapper) do(ctx context.Context, t task) (lease, error) {
	switch t.protocol {
	case PCP:
		return m.o.pcp(ctx, t, m.nonce)
	case NATPMP:
		return m.o.natpmp(ctx, t)
	}
	return m.o.upnp(ctx, t, &m.found)
}

// leave releases what is mapped.
func (m *Mapper) leave() {
	m.mu.Lock()
	tasks := m.keeper.Close()
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), leaveTime)
	defer cancel()
	for _, t := range tasks {
		if t.protocol == UPnP && m.found.wan == nil {
			continue // it was not even found yet
		}
		if _, err := m.do(ctx, t); err != nil {
			m.o.Log.Warn("the router's port mapping is not removed; it expires by itself", "addr", t.lease.external, "err", err)
		}
	}
	if m.offered.IsValid() {
		m.o.Changed(netip.AddrPort{})
	}
}

// tell reports what has changed.
func (m *Mapper) tell() {
	s := m.Status()
	if at := s.Offered(); at != m.offered {
		m.offered = at
		m.o.Changed(at)
	}
	was := m.told
	if s.Reason == ReasonAsking || s.Protocol == was.Protocol && s.External == was.External && s.Reason == was.Reason {
		return
	}
	m.told = s
	if s.Reason == "" {
		m.o.Log.Info("the router maps a port", "addr", s.External, "protocol", s.Protocol, "router", s.Gateway)
	} else {
		m.o.Log.Info("no port mapping", "reason", s.Reason, "detail", s.Detail)
	}
}
