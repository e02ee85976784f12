package resolver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// mostQuestions bounds the look-ups at once.
	mostQuestions = 32
	// lookupWithin bounds one: who asks gives up at about that time.
	lookupWithin = 3 * time.Second
)

// Server answers for a LAN.
type Server struct {
	// Lookup asks the host's resolver; nil: the system's, for both families.
	Lookup func(ctx context.Context, name string) ([]netip.Addr, error)
	// Allowed are the prefixes whose addresses are told.
	Allowed func() []netip.Prefix
	// May says whether who asks may know of a host; nil: everybody may.
	May func(asker, host netip.Addr) bool
	// Domains are the LAN's own; may be nil.
	Domains func() []string
	Log     *slog.Logger // nil: none

	answered, dropped atomic.Uint64
}

// Serve answers what comes to a socket until ctx ends or the socket fails. It
// closes it.
func (s *Server) Serve(ctx context.Context, c net.PacketConn) error {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	defer c.Close()
	places := make(chan struct{}, mostQuestions)
	buf := make([]byte, longest)
	for {
		n, from, err := c.ReadFrom(buf)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("answer for the lan: %w", err)
		}
		if err != nil {
			continue // an error about one answer, as when who asked has gone
		}
		q, err := parseQuestion(buf[:n])
		if err != nil {
			s.dropped.Add(1)
			continue
		}
		select {
		case places <- struct{}{}:
		default:
			s.dropped.Add(1)
			continue
		}
		running.Go(func() {
			defer func() { <-places }()
			s.answer(ctx, c, from, q)
		})
	}
}

// Counters returns how many questions were answered, and how many dropped.
func (s *Server) Counters() (answered, dropped uint64) { return s.answered.Load(), s.dropped.Load() }

func (s *Server) answer(ctx context.Context, c net.PacketConn, from net.Addr, q question) {
	asker, _ := netip.ParseAddrPort(from.String())
	a := s.find(ctx, asker.Addr().Unmap(), q)
	b, err := appendMessage(make([]byte, 0, longest), q, &a)
	if err != nil || len(b) > longest {
		s.dropped.Add(1)
		return
	}
	if _, err := c.WriteTo(b, from); err == nil {
		s.answered.Add(1)
	}
}

// find looks a question up for who asks.
func (s *Server) find(ctx context.Context, asker netip.Addr, q question) answer {
	if q.kind == dnsmessage.TypeTXT && q.name == domainsName {
		if s.Domains == nil {
			return answer{}
		}
		return answer{domains: s.Domains()}
	}
	if q.kind != dnsmessage.TypeA && q.kind != dnsmessage.TypeAAAA {
		return answer{code: dnsmessage.RCodeNotImplemented}
	}
	if !hostname(q.name) {
		return answer{code: dnsmessage.RCodeNameError}
	}
	ctx, stop := context.WithTimeout(ctx, lookupWithin)
	defer stop()
	addrs, err := s.lookup(ctx, q.name[:len(q.name)-1]) // without the dot, so that the host's search domains hold
	if missing, ok := errors.AsType[*net.DNSError](err); ok && missing.IsNotFound {
		return answer{code: dnsmessage.RCodeNameError}
	}
	if err != nil {
		if s.Log != nil {
			s.Log.Debug("name not looked up", "name", q.name, "err", err)
		}
		return answer{code: dnsmessage.RCodeServerFailure}
	}
	told := s.told(asker, addrs)
	if len(told) == 0 {
		return answer{code: dnsmessage.RCodeNameError}
	}
	return answer{addrs: slices.DeleteFunc(told, func(a netip.Addr) bool { return a.Is4() != (q.kind == dnsmessage.TypeA) })}
}

func (s *Server) lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	if s.Lookup != nil {
		return s.Lookup(ctx, name)
	}
	return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
}

// told are the addresses that may be told to who asks.
func (s *Server) told(asker netip.Addr, addrs []netip.Addr) (list []netip.Addr) {
	allowed := s.Allowed()
	for _, a := range addrs {
		a = a.Unmap()
		if !slices.ContainsFunc(allowed, func(p netip.Prefix) bool { return p.Contains(a) }) || s.May != nil && !s.May(asker, a) {
			continue
		}
		if !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	return list
}
