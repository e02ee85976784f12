package overlay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"sync"

	"overlayd/nat"
	"overlayd/overlay/key"
	"overlayd/overlay/netstack"
	"overlayd/overlay/portmap"
	"overlayd/overlay/tunnel"
	"overlayd/overlay/underlay"
	"overlayd/routing"
)

// machine is the part of a node that acts: it makes plans true and takes
// everything back at the end. One goroutine uses it, but for bind and stats.
type machine struct {
	log    *slog.Logger
	host   host
	stack  *netstack.Stack // nil where the kernel does its work
	tables *nat.Tables     // nil until a plan needs it
	fenced bool            // the firewall's rules were made true once
	last   *Plan           // what apply made true without an error; nil: nothing
	bind   *underlay.Bind
	mapper *portmap.Mapper // nil: the router is not asked for a port
	dev    *tunnel.Device
	key    key.Private // that dev has; guarded by the node's keys once they are attached
	peered bool        // dev's peers are those of the plan

	sockets sockets // for connections into the overlay

	running sync.WaitGroup // bind.Run and mapper.Run
	stop    context.CancelFunc
	unmap   context.CancelFunc // ends mapper.Run
}

// bringUp makes the interface and the tunnel. Nothing is configured yet. maps
// says that the router is to be asked for a port.
func bringUp(log *slog.Logger, host host, state routing.State, k key.Private, under underlay.Options, maps bool) (*machine, error) {
	m := &machine{log: log, key: k, host: host}
	tun, err := m.open(state)
	if err != nil {
		return nil, err
	}
	if maps {
		m.mapper = portmap.New(portmap.Options{
			Log: log, Control: host.control(), Changed: func(a netip.AddrPort) { m.bind.SetMapped(a) },
		})
		under.Moved = m.mapper.SetPort
	}
	m.bind = underlay.New(under)
	m.dev, err = tunnel.New(tunnel.Options{TUN: tun, Bind: m.bind, Key: k, Log: log})
	if err != nil {
		if under.Port != 0 && isAddrInUse(err) {
			err = fault(ExitConflict, fmt.Sprintf("find it with `ss -lnup sport = :%d` and stop it, or choose another --port", under.Port),
				"udp port %d is in use by another program", under.Port)
		}
		return nil, errors.Join(err, tun.Close())
	}
	m.bind.OnPathMTU(m.dev.SetPathMTU)
	ctx, cancel := context.WithCancel(context.Background())
	m.stop = cancel
	m.running.Go(func() {
		if err := m.bind.Run(ctx); err != nil && ctx.Err() == nil {
			log.Error("underlay stopped", "err", err)
		}
	})
	mapping, cancel := context.WithCancel(context.Background())
	m.unmap = cancel
	if maps {
		m.running.Go(func() { m.mapper.Run(mapping) })
	}
	return m, nil
}

// apply makes a plan true. It goes on after an error, so that one refused rule
// does not keep a machine off its network, and reports all of them. But nothing
// is forwarded before the rules that filter it were there once. The kernel is not
// asked again about what the last plan said already, unless force says that it
// may have changed.
func (m *machine) apply(ctx context.Context, p *Plan, force bool) error {
	m.bind.SetLocal(p.Local)
	m.bind.SetPeers(p.underlayPeers())
	m.bind.SetRelays(p.Relays)
	if m.mapper != nil {
		m.aim(p.Router)
	}
	own := make([]netip.Addr, 0, len(p.Routing.Addrs))
	for _, a := range p.Routing.Addrs {
		own = append(own, a.Addr())
	}
	m.dev.SetOwn(own)
	errs := []error{m.dev.SetPeers(p.tunnelPeers())}
	m.peered = errs[0] == nil
	if m.stack != nil {
		err := errors.Join(append(errs, m.stack.Apply(p.stackState()))...)
		m.last = p
		return err
	}
	if force || m.last == nil || !reflect.DeepEqual(m.last.NAT, p.NAT) {
		err := m.applyNAT(ctx, p.NAT) // before forwarding is turned on
		m.fenced = m.fenced || err == nil && p.NAT != nil
		errs = append(errs, err)
	}
	if force || m.last == nil || !reflect.DeepEqual(m.last.Routing, p.Routing) {
		state := p.Routing
		if !m.fenced {
			state.Forward, state.LANs = false, nil
		}
		errs = append(errs, m.host.kernel.Apply(ctx, state))
	}
	m.last = nil
	err := errors.Join(errs...)
	if err == nil {
		m.last = p
	}
	return err
}

// aim tells the mapper whom to ask. The sockets may move to another port
// meanwhile, which the bind tells it too: the last word must not be the old port.
func (m *machine) aim(router portmap.Target) {
	for {
		router.Port = m.bind.Port()
		m.mapper.SetTarget(router)
		if m.bind.Port() == router.Port {
			return
		}
	}
}

func (m *machine) applyNAT(ctx context.Context, rules *nat.Ruleset) error {
	if rules == nil {
		if m.tables == nil {
			return nil
		}
		m.fenced = false
		return m.tables.Clear(ctx)
	}
	if m.tables == nil {
		tables, err := nat.New(nat.Options{Journal: m.host.notes, Log: m.log})
		if err != nil {
			return err
		}
		m.tables = tables
	}
	return m.tables.Apply(ctx, *rules)
}

// close takes back everything apply did.
func (m *machine) close(ctx context.Context, link string) error {
	m.unmap() // the router has its second to answer while we do the rest
	var errs []error
	if m.host.kernel != nil {
		errs = append(errs, m.host.kernel.Clear(ctx, link))
	}
	m.dev.Close()
	m.stop()
	m.running.Wait()
	if m.tables != nil { // the filters last, when nothing comes in any more
		errs = append(errs, m.tables.Clear(ctx))
	}
	return errors.Join(errs...)
}
