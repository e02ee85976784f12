package overlay

import (
	"cmp"
	"slices"
)

// relayPrefix begins the names of what the relay on this machine counts.
const relayPrefix = "relay_"

// filterPrefix begins the names of what the filter counts.
const filterPrefix = "filter_"

// counters lists what the daemon has counted since it started, by name.
func (n *Node) counters(v view) []Counter {
	all := []Counter{}
	if v.live != nil {
		for name, value := range v.live.bind.Counters() {
			all = append(all, Counter{name, value})
		}
	}
	if v.live != nil && v.live.stack != nil {
		for _, c := range v.live.stack.Counters() {
			all = append(all, Counter{stackPrefix + c.Name, c.Value})
		}
	}
	if n.hub != nil && n.hub.relay != nil {
		for name, value := range n.hub.relay.Counters() {
			all = append(all, Counter{relayPrefix + name, value})
		}
	}
	all = append(all, n.guard.counters()...)
	lost, _ := n.flows.status()
	all = append(all, Counter{"record_lines_lost", lost})
	slices.SortFunc(all, func(a, b Counter) int { return cmp.Compare(a.Name, b.Name) })
	return all
}
