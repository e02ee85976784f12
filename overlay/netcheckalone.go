package overlay

import (
	"context"
	"os"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"overlayd/overlay/coord"
	"overlayd/overlay/relay"
	"overlayd/overlay/underlay"
	"overlayd/routing"
)

// NetcheckAlone measures without a daemon, with sockets of its own and what the
// state directory remembers. Nothing on this machine or at the relays changes.
func NetcheckAlone(ctx context.Context, o Options) (Netcheck, error) {
	o, err := o.filled()
	if err != nil {
		return Netcheck{}, err
	}
	dir := stateDir{o.StateDir}
	id, err := dir.identity()
	if err != nil {
		return Netcheck{}, permissionFault(err, "read %s", dir.path)
	}
	m, err := dir.cachedMap()
	if err != nil {
		return Netcheck{}, permissionFault(err, "read %s", dir.path)
	}
	if id == nil || m == nil || id.Role == coord.RoleRelay {
		return Netcheck{}, fault(ExitNotJoined, "join with `overlayd up LINK` or `overlayd gateway LINK` first",
			"there is nothing in %s to check the network with", dir.path)
	}
	host, err := routing.Look()
	if err != nil {
		return Netcheck{}, err
	}
	addrs := relayAddrs{}
	addrs.resolve(ctx, othersRelays(m), true)
	if os.Geteuid() != 0 {
		o.Userspace = true // or its sockets would want a mark
	}
	p := plan(planInput{Map: m, Host: host, Interface: o.Interface, RelayAddr: addrs, Userspace: o.Userspace})
	n, err := New(o)
	if err != nil {
		return Netcheck{}, err
	}
	n.id = id
	return n.netcheckAlone(ctx, p)
}

func (n *Node) netcheckAlone(ctx context.Context, p *Plan) (Netcheck, error) {
	bind := underlay.New(underlay.Options{Log: n.log})
	bind.SetLocal(p.Local)
	bind.SetRelays(p.Relays)
	fns, _, err := bind.Open(0)
	if err != nil {
		return Netcheck{}, err
	}
	var readers sync.WaitGroup
	for _, fn := range fns {
		readers.Go(func() { drain(fn, bind.BatchSize()) })
	}
	m := measurement{source: n.o.proxySource()}
	m.check, m.tls = measure(ctx, bind, p.Relays, n.tryRelay)
	m.at = time.Now()
	for i, r := range m.check.Relays {
		m.check.Relays[i].State = relay.Lost.String() // there is no session, and none was wanted
		m.proxies = append(m.proxies, n.proxyFor(endpointOf(p.Relays, r)))
	}
	err = bind.Close()
	readers.Wait()
	return m.netcheck(), err
}

// drain reads until the Bind is closed: what matters, the Bind takes out.
func drain(fn conn.ReceiveFunc, batch int) {
	bufs, sizes, eps := make([][]byte, batch), make([]int, batch), make([]conn.Endpoint, batch)
	for i := range bufs {
		bufs[i] = make([]byte, drainBuffer)
	}
	for {
		if _, err := fn(bufs, sizes, eps); err != nil {
			return
		}
	}
}

// drainBuffer takes the largest datagram of a tunnel; nobody sends us any.
const drainBuffer = 2048
