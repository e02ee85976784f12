package overlay

import (
	"context"
	"time"

	"overlayd/overlay/coord"
	"overlayd/overlay/underlay"
	"overlayd/routing"
)

// reconcile makes a plan of every new map and every change of the machine, and
// makes it true. It alone touches the kernel, and takes everything back before
// it returns.
func (n *Node) reconcile(ctx context.Context, host host) (err error) {
	r := reconciler{began: time.Now(), node: n, host: host, boots: boots{}, keys: keyring{}, addrs: relayAddrs{}}
	defer func() {
		if cerr := r.close(); err == nil {
			err = cerr
		}
	}()
	timer := time.NewTimer(0) // a cached map is applied at once
	defer timer.Stop()
	for {
		force := true
		select {
		case <-ctx.Done():
			return nil
		case <-n.changed:
			force = false
		case <-n.host:
		case d := <-n.woke:
			r.woke(d)
		case <-r.ended():
			n.log.Warn("the interface was deleted; making it anew", "interface", n.o.Interface)
			if err := r.close(); err != nil {
				n.log.Warn("not all of the old state is gone", "err", err)
			}
		case <-timer.C:
		}
		v := n.look()
		if v.m == nil {
			continue
		}
		if wait := askFirst(v, time.Since(r.began)); wait > 0 {
			timer.Reset(wait)
			continue
		}
		next, err := r.step(ctx, v, force)
		if err != nil {
			return err
		}
		timer.Reset(next)
	}
}

// reconciler is what the reconcile loop remembers between steps.
type reconciler struct {
	began time.Time
	node  *Node
	host  host

	live    *machine // nil before the first plan
	told    bool     // that the node is ready
	boots   boots
	keys    keyring
	control coord.ControlState
	addrs   relayAddrs
	where   string // this machine was when its paths were last in doubt; see whereabouts
}

// askWithin is how long a node that lets others in waits for the coordinator
// before it works by the map of its last run: somebody may have been revoked
// meanwhile. A connection and an answer take two round trips.
const askWithin = time.Second

// askFirst returns how long to wait for the coordinator, or else the relays,
// before anything is served.
func askFirst(v view, since time.Duration) time.Duration {
	if v.fresh || v.live != nil || v.control.Phase == coord.PhaseLost && v.asked || !letsIn(v.m) {
		return 0
	}
	return askWithin - since
}

// letsIn reports whether others may begin flows to a node, or through it.
func letsIn(m *coord.Map) bool {
	if m.Ruleset == nil {
		return m.Self.Role == coord.RoleGateway
	}
	return len(m.Ruleset.Rules) > 0
}

// step makes one plan and applies it. It returns when to do so again, or an
// error that ends the node.
func (r *reconciler) step(ctx context.Context, v view, force bool) (next time.Duration, err error) {
	n := r.node
	host, err := routing.Look()
	if err != nil { // a machine whose routes change all the time cannot always be listed
		n.log.Warn("this machine's links and routes cannot be read; trying again", "err", err)
		n.update(func(v *view) { v.failed = err })
		return retryApply, nil
	}
	unknown := r.addrs.resolve(ctx, othersRelays(v.m), force)
	for _, rel := range unknown {
		n.log.Warn("relay's address cannot be looked up", "relay", rel.Name, "endpoint", rel.Endpoint)
	}
	p := plan(planInput{
		Map: v.m, Host: host, Interface: n.o.Interface, RelayAddr: r.addrs, Needs: n.needs(v.m),
		Firewall: haveIptables(), Endpoints: n.o.Endpoints, NoPortmap: n.o.NoPortmap,
		Userspace: n.o.Userspace, HostPorts: n.o.HostPorts,
	})
	first := r.live == nil
	if first {
		clear(r.boots) // a new tunnel has no session with anybody
		k := n.keys.current()
		r.live, err = bringUp(n.log, r.host, p.Routing, k, underlay.Options{
			Log: n.log, Port: n.o.Port, Mark: r.host.mark(), Key: k, Own: n.ownPort(v.m), OwnID: ownRelay(v.m), Dial: n.dialRelay,
		}, n.hub == nil && !n.o.NoPortmap)
		if err != nil {
			return 0, err
		}
		n.guard.attach(r.live.dev)
	}
	failed := r.live.apply(ctx, p, force)
	if r.live.peered {
		n.guard.peered(v.m.Version)
	}
	if failed != nil && ctx.Err() == nil {
		n.log.Error("this machine does not match its plan", "err", failed)
	}
	n.update(func(v *view) { v.plan, v.failed, v.live = p, failed, r.live })
	if first {
		n.keys.attach(r.live) // the key may have been replaced meanwhile
	}

	if where := whereabouts(host, n.o.Interface); where != r.where {
		if r.where = where; !first {
			r.moved()
		}
	}

	if lostControl(r.control, v.control) {
		r.live.bind.Kick() // what took the coordinator away may have taken the relay
	}
	// And while it is away, nobody would tell of the relay's next restart.
	r.live.bind.Watch(v.control.Phase != coord.PhaseConnected)
	for _, peer := range r.keys.rotated(v.m.Peers) {
		r.live.dev.Handshake(peer.WireGuard)
	}
	for _, peer := range r.boots.strangers(v.m.Peers) {
		if first {
			r.live.dev.Handshake(peer.WireGuard)
		} else {
			r.live.dev.ExpectHandshake(peer.WireGuard)
		}
	}
	if first && n.hub != nil {
		n.greetDevices(p, r.live.dev)
	}
	r.control = v.control
	if first && !r.told {
		r.told = true
		n.log.Info("ready", "name", v.m.Self.Name, "addr", joinText(v.m.Self.Addrs), n.place())
		n.o.Ready()
	}
	if failed != nil || len(unknown) > 0 {
		return retryApply, nil
	}
	return reassertEvery, nil
}

// boots remembers, by label, the start of each peer that was greeted. It does
// not forget a peer that is away, nor when the coordinator restarts and knows
// nobody for a moment: their sessions live on.
type boots map[uint32]uint64

// strangers lists the peers that have no session with us, and remembers them:
// all that are online when we have just started, and later those that started
// anew.
func (b boots) strangers(peers []coord.Node) []coord.Node {
	var out []coord.Node
	for _, p := range peers {
		if p.Online && b[p.Label] != p.BootID {
			b[p.Label] = p.BootID
			out = append(out, p)
		}
	}
	return out
}

func lostControl(before, now coord.ControlState) bool {
	return before.Phase == coord.PhaseConnected && now.Phase != coord.PhaseConnected
}

// ended is closed when the interface has gone without our doing.
func (r *reconciler) ended() <-chan struct{} {
	if r.live == nil {
		return nil
	}
	return r.live.dev.Done()
}

// moved is called when this machine's place in the world may be another: nothing
// that was proved before counts.
func (r *reconciler) moved() {
	r.node.coord.Kick()
	if r.live != nil {
		r.live.bind.Kick()
		if r.live.mapper != nil {
			r.live.mapper.Kick()
		}
	}
}

// woke is called after this process stood still.
func (r *reconciler) woke(slept time.Duration) {
	r.node.log.Info("awake again", "slept", slept.Round(time.Second))
	r.moved()
	if r.live == nil {
		return
	}
	stats, err := r.live.dev.Stats()
	if err != nil {
		r.node.log.Warn("tunnel statistics cannot be read", "err", err)
	}
	for _, k := range outlived(stats, slept, time.Now()) {
		r.live.dev.Handshake(k)
	}
}

// close takes the machine back to what it was.
func (r *reconciler) close() error {
	if r.live == nil {
		return nil
	}
	live := r.live
	r.live = nil
	r.node.guard.attach(nil)
	r.node.keys.attach(nil)
	r.node.update(func(v *view) { v.live = nil })
	ctx, cancel := context.WithTimeout(context.Background(), clearTimeout)
	defer cancel()
	err := live.close(ctx, r.node.o.Interface)
	r.node.log.Info("stopped", r.node.place())
	return err
}
