package overlay

import (
	"context"
	"fmt"
	"maps"
	"time"

	"connectrpc.com/connect"

	"overlayd/overlay/coord"
	"overlayd/overlay/key"
	"overlayd/overlay/local"
	"overlayd/overlay/tunnel"
)

const (
	// rotateEvery is how old the WireGuard key of a gateway or relay becomes.
	rotateEvery = 30 * 24 * time.Hour
	// rotateBy is when a peer that is cut off from the coordinator is waited for
	// no more: it loses this node until it hears from there.
	rotateBy = rotateEvery + 7*24*time.Hour
	// rotateCheck is how often it is seen whether a new key is due.
	rotateCheck = time.Minute
	// rotateTime bounds how long a caller waits for a new key: one report, with
	// the gap that the coordinator wants between two keys.
	rotateTime = 20 * time.Second
	// talking is how long ago a handshake was at most with a peer that packets may
	// be on the way to.
	talking = 3 * time.Minute
)

// rotationDue reports whether a node is to make a new WireGuard key: a gateway or
// relay because of the old one's age, and a person's machine after a renewal.
func rotationDue(self coord.Node, now time.Time) bool {
	switch {
	case self.State != coord.NodeActive || self.Keyed.IsZero(): // or a coordinator that takes none
		return false
	case self.Role == coord.RoleMember:
		return self.Renewed.After(self.Keyed)
	}
	return now.Sub(self.Keyed) >= rotateEvery
}

// carriesDevices reports whether this node carries stock WireGuards, which have
// its key in their files: it keeps the key then. Those of somebody who is
// disabled, and on no map, count too: their files are to work again afterwards.
func carriesDevices(m *coord.Map) bool { return m.Self.Devices > 0 }

// strands lists the peers that would not hear of a new key: they talk to this
// node, and not to the coordinator.
func strands(peers []coord.Node, stats map[key.Public]tunnel.Stat, now time.Time) (names []string) {
	for _, p := range peers {
		if !p.Online && now.Sub(stats[p.WireGuard].LastHandshake) < talking {
			names = append(names, p.Name)
		}
	}
	return names
}

// watchKey replaces the WireGuard key when that is due, until ctx ends.
func (n *Node) watchKey(ctx context.Context) error {
	return every(ctx, rotateCheck, func(now time.Time) {
		v := n.look()
		if v.m == nil || v.live == nil || v.control.Phase != coord.PhaseConnected || !rotationDue(v.m.Self, now) || carriesDevices(v.m) {
			return
		}
		stats, err := v.live.dev.Stats()
		if err != nil {
			n.log.Warn("tunnel statistics cannot be read", "err", err)
			return
		}
		if cut := strands(v.m.Peers, stats, now); len(cut) > 0 && now.Sub(v.m.Self.Keyed) < rotateBy {
			n.log.Debug("the WireGuard key is kept for peers without the coordinator", "peers", cut)
			return
		}
		if err := n.beginRotation(); err != nil {
			n.log.Error("no new WireGuard key", "err", err)
		}
	})
}

// beginRotation makes a new key, which the next report tells the coordinator.
func (n *Node) beginRotation() error {
	if err := n.keys.renew(); err != nil {
		return err
	}
	wake(n.guard.report)
	return nil
}

// keyring remembers the key of each peer, by id.
type keyring map[string]key.Public

// rotated lists the peers that are there and have another key than before, and
// remembers those of all.
func (r keyring) rotated(peers []coord.Node) (list []coord.Node) {
	old := maps.Clone(r)
	clear(r)
	for _, p := range peers {
		r[p.ID] = p.WireGuard
		if k, known := old[p.ID]; known && k != p.WireGuard && p.Online {
			list = append(list, p)
		}
	}
	return list
}

// promote makes a new key the one in use at a start, if the last map says that
// the peers have it.
func (i *identity) promote(m *coord.Map) {
	if m != nil && i.rotates() && i.Next.Public() == m.Self.WireGuard {
		i.WireGuard, i.Next = i.Next, key.Private{}
	}
}

// rotate replaces the key now, and returns the new one when it is in use.
func (n *Node) rotate(ctx context.Context) (key.Public, error) {
	ctx, cancel := context.WithTimeout(ctx, rotateTime)
	defer cancel()
	if n.look().control.Phase != coord.PhaseConnected {
		return key.Public{}, &coord.Problem{Kind: coord.KindUnreachable, Message: "the coordinator cannot be reached, and has to tell the peers", Hint: "try again when overlayd status says connected"}
	}
	if v := n.look(); v.m != nil && carriesDevices(v.m) {
		return key.Public{}, &coord.Problem{Kind: coord.KindConflict, Message: "phones have this machine's key in their WireGuard files", Hint: "remove them first: overlayd wg; each needs a new file afterwards"}
	}
	old := n.keys.current()
	if err := n.beginRotation(); err != nil {
		return key.Public{}, err
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if k := n.keys.current(); !k.Equal(old) {
			return k.Public(), nil
		}
		select {
		case <-ctx.Done():
			return key.Public{}, &coord.Problem{Kind: coord.KindUnreachable, Message: "the coordinator has not taken the new key yet", Hint: "it is used as soon as it does; look at overlayd status"}
		case <-tick.C:
		}
	}
}

// Rotate replaces this machine's WireGuard key and returns the new one.
func (l *Local) Rotate(ctx context.Context) (key.Public, error) {
	resp, err := l.api.Rotate(ctx, connect.NewRequest(&local.RotateRequest{}))
	if err != nil {
		return key.Public{}, l.fault(err)
	}
	k, err := key.ParsePublic(resp.Msg.PublicKey)
	if err != nil {
		return key.Public{}, fmt.Errorf("read answer: %w", err)
	}
	return k, nil
}

func (s localService) Rotate(ctx context.Context, _ *connect.Request[local.RotateRequest]) (*connect.Response[local.RotateResponse], error) {
	k, err := s.n.rotate(ctx)
	if err != nil {
		return nil, coord.Refusal(err)
	}
	return connect.NewResponse(&local.RotateResponse{PublicKey: k.String()}), nil
}
