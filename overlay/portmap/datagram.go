package portmap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// routerPort is where routers listen for PCP and NAT-PMP.
const routerPort = 5351

// pauses are those after each time a question is sent: RFC 6886 and 6887 begin
// with 250 ms and 3 s and go on for minutes, but a router that is on our own
// network and does not answer within 1.75 s has no answer.
var pauses = []time.Duration{250 * time.Millisecond, 500 * time.Millisecond, time.Second}

// ask puts a question to the router until it answers. The socket is connected,
// so that nobody else can. accept reads an answer; one that it refuses with
// errWire, or that answers something else, is passed over.
func (o *Options) ask(ctx context.Context, t Target, question []byte, accept func([]byte) (answer, error)) (answer, error) {
	d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(t.Local, 0)), Control: o.Control}
	conn, err := d.DialContext(ctx, "udp4", netip.AddrPortFrom(t.Gateway, o.routerPort()).String())
	if err != nil {
		return answer{}, fmt.Errorf("ask router %s: %w", t.Gateway, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	buf := make([]byte, pcpMost+1)
	for _, pause := range pauses {
		until := time.Now().Add(pause)
		if _, err := conn.Write(question); err != nil {
			return answer{}, noAnswer(ctx, t, err)
		}
		for {
			conn.SetReadDeadline(until)
			if ctx.Err() != nil { // its deadline came before ours was set
				return answer{}, ctx.Err()
			}
			n, err := conn.Read(buf)
			if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() && ctx.Err() == nil {
				break
			}
			if err != nil {
				return answer{}, noAnswer(ctx, t, err)
			}
			a, err := accept(buf[:n])
			if !errors.Is(err, errWire) {
				return a, err
			}
		}
	}
	return answer{}, noAnswer(ctx, t, nil)
}

// noAnswer is the error of a question without an answer. That the router's port
// is closed says the same.
func noAnswer(ctx context.Context, t Target, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil || errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%w at %s", errSilent, t.Gateway)
	}
	return fmt.Errorf("ask router %s: %w", t.Gateway, err)
}

// pcp has a conversation by PCP.
func (o *Options) pcp(ctx context.Context, t task, own nonce) (lease, error) {
	var m *pcpMap
	if t.kind != check {
		m = &pcpMap{nonce: own, internal: t.target.Port, external: t.lease.external, lifetime: lifetime}
		if m.external.Port() == 0 {
			m.external = netip.AddrPortFrom(m.external.Addr(), t.target.Port)
		}
		if t.kind == release {
			m.internal, m.external, m.lifetime = t.lease.internal, netip.AddrPort{}, 0
		}
	}
	a, err := o.ask(ctx, t.target, appendPCP(nil, t.target.Local, m), func(b []byte) (answer, error) {
		if old, err := parseNATPMP(b); err == nil && old.result != 0 {
			return old, refused(PCP, resultVersion)
		}
		a, err := parsePCP(b)
		switch {
		case err != nil:
			return a, err
		case m == nil && a.op == opAnnounce, m != nil && a.op == opMap && a.nonce == own && a.internal == m.internal:
			return a, refused(PCP, a.result)
		}
		return a, errWire
	})
	l := lease{protocol: PCP, internal: t.target.Port, external: a.external, lifetime: a.lifetime, epoch: epoch{a.epoch, time.Now()}}
	if err == nil && t.kind == obtain && (!a.external.Addr().Is4() || a.external.Port() == 0 || a.lifetime == 0) {
		return l, fmt.Errorf("%s: %w", PCP, errWire)
	}
	return l, err
}

// natpmp has a conversation by NAT-PMP.
func (o *Options) natpmp(ctx context.Context, t task) (lease, error) {
	put := func(question []byte, op byte, internal uint16) (answer, error) {
		return o.ask(ctx, t.target, question, func(b []byte) (answer, error) {
			a, err := parseNATPMP(b)
			switch {
			case err != nil:
				return a, err
			case a.result != 0, a.op == op && a.internal == internal:
				return a, refused(NATPMP, a.result)
			}
			return a, errWire
		})
	}
	if t.kind == release {
		_, err := put(appendNATPMP(nil, t.lease.internal, 0, 0), opMap, t.lease.internal)
		return lease{}, err
	}
	where, err := put([]byte{versionNATPMP, opAddress}, opAddress, 0)
	if err != nil {
		return lease{}, err
	}
	l := lease{protocol: NATPMP, internal: t.target.Port, epoch: epoch{where.epoch, time.Now()}}
	if t.kind == check {
		l.external = netip.AddrPortFrom(where.external.Addr(), t.lease.external.Port())
		return l, nil
	}
	wish := t.lease.external.Port()
	if wish == 0 {
		wish = t.target.Port
	}
	a, err := put(appendNATPMP(nil, t.target.Port, wish, lifetime), opMap, t.target.Port)
	if err != nil {
		return lease{}, err
	}
	if a.external.Port() == 0 || a.lifetime == 0 {
		return lease{}, fmt.Errorf("%s: %w", NATPMP, errWire)
	}
	l.external, l.lifetime = netip.AddrPortFrom(where.external.Addr(), a.external.Port()), a.lifetime
	return l, nil
}
