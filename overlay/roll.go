package overlay

import (
	"context"
	"sync"
	"time"

	"overlayd/overlay/coord"
)

const (
	// rollEvery is how often the relays are asked while the coordinator cannot be:
	// one of them may have heard of it since.
	rollEvery = 5 * time.Second
	// rollTime bounds one question: a connection, TLS and an answer.
	rollTime = 3 * time.Second
)

// askRelays keeps the map to what the relays know of the coordinator's newest
// word, while the coordinator itself cannot be asked. It works until ctx ends.
func (n *Node) askRelays(ctx context.Context) error {
	tick := time.NewTicker(rollEvery)
	defer tick.Stop()
	for {
		if v := n.look(); v.m != nil && v.control.Phase != coord.PhaseConnected {
			n.askAll(ctx, v.m)
		}
		if v := n.look(); !v.asked {
			n.update(func(v *view) { v.asked = true })
			wake(n.changed)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// askAll asks all relays of a map but this machine's own, and returns when each
// has answered or not.
func (n *Node) askAll(ctx context.Context, m *coord.Map) {
	ctx, cancel := context.WithTimeout(ctx, rollTime)
	defer cancel()
	var asking sync.WaitGroup
	for _, r := range othersRelays(m) {
		asking.Go(func() {
			roll, err := n.coord.Roll(ctx, r)
			if err == nil {
				err = n.narrow(roll, r.Name)
			}
			if err != nil {
				n.log.Debug("no roll from a relay", "relay", r.Name, "err", err)
			}
		})
	}
	asking.Wait()
}

// narrow takes what a roll does not have any more off the map. Once the
// coordinator is back, its word counts.
func (n *Node) narrow(signed coord.SignedRoll, from string) error {
	n.taking.Lock()
	defer n.taking.Unlock()
	v := n.look()
	if v.control.Phase == coord.PhaseConnected {
		return nil
	}
	roll, err := signed.Open(v.m.Signer, v.m.Network)
	if err != nil {
		return err
	}
	next := v.whole.Narrow(roll)
	if next != v.whole {
		n.log.Warn("the coordinator has taken access away meanwhile, as a relay knows", "relay", from, "peers", len(v.whole.Peers)-len(next.Peers))
	}
	if next = next.HandOn(signed); next != v.whole {
		n.replace(next, func(*view) {})
	}
	return nil
}
