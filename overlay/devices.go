package overlay

import (
	"context"
	"slices"
	"time"

	"overlayd/overlay/key"
	"overlayd/overlay/tunnel"
)

const (
	// devicesFile is where devices with a stock WireGuard last were.
	devicesFile = "devices.json"
	// devicesEvery is how often that is looked at. A device that moved less long
	// before a crash asks by itself, when it notices after fifteen seconds.
	devicesEvery = 2 * time.Second
)

// devicesJSON is what a relay's machine keeps of the devices that it carries. A
// stock WireGuard that is not told of our restart goes on with a session that is
// no more.
type devicesJSON struct {
	Schema  int        `json:"schema"`
	Devices []deviceAt `json:"devices"` // by key
}

type deviceAt struct {
	Key key.Public `json:"key"`
	At  string     `json:"at"` // address:port
}

// devicesAt picks the devices among a tunnel's peers, and where they are.
func devicesAt(p *Plan, stats map[key.Public]tunnel.Stat) (list []deviceAt) {
	for _, peer := range p.Peers {
		if at := stats[peer.Key].Endpoint; peer.Device && at != "" {
			list = append(list, deviceAt{peer.Key, at})
		}
	}
	slices.SortFunc(list, func(a, b deviceAt) int { return slices.Compare(a.Key.Bytes(), b.Key.Bytes()) })
	return list
}

// watchDevices keeps where devices are until ctx ends.
func (n *Node) watchDevices(ctx context.Context) error {
	if n.hub == nil {
		return nil
	}
	var saved []deviceAt
	return every(ctx, devicesEvery, func(time.Time) {
		v := n.look()
		if v.live == nil || v.plan == nil || !slices.ContainsFunc(v.plan.Peers, func(p PlanPeer) bool { return p.Device }) {
			return
		}
		stats, err := v.live.dev.Stats()
		if err != nil {
			return // it is being closed, or said elsewhere
		}
		at := devicesAt(v.plan, stats)
		if len(at) == 0 || slices.Equal(at, saved) {
			return
		}
		if err := n.dir.writeJSON(devicesFile, devicesJSON{stateSchema, at}); err != nil {
			n.log.Warn("where devices are is not saved", "err", err)
			return
		}
		saved = at
	})
}

// greetDevices begins new sessions with the devices of a plan, where they were
// before this start.
func (n *Node) greetDevices(p *Plan, dev *tunnel.Device) {
	var j devicesJSON
	if found, err := n.dir.readJSON(devicesFile, &j); err != nil || !found {
		if err != nil {
			n.log.Warn("where devices were is not known", "err", err)
		}
		return
	}
	for _, d := range j.Devices {
		if !slices.ContainsFunc(p.Peers, func(o PlanPeer) bool { return o.Device && o.Key == d.Key }) {
			continue
		}
		n.log.Info("a device is told of this start", "key", d.Key.Short(), "addr", d.At)
		if err := dev.Greet(d.Key, d.At); err != nil {
			n.log.Warn("a device is not greeted", "key", d.Key.Short(), "addr", d.At, "err", err)
		}
	}
}
