//go:build linux

package main

import "fmt"

// target is what a figure of overlayd is to reach: as a ratio to another
// system's in the same rounds, or, with no system to compare, by itself.
type target struct {
	name    string
	figure  string
	over    string // the other system; empty: none
	atLeast bool   // or else at most
	on, off float64
}

// targets are those of the relayed path.
var targets = func() []target {
	list := []target{{name: "relay CPU per GB, of the hub's", figure: "one_relay_cpu_s_per_gb", over: "hub", on: 1.0 / 9, off: 1 / 3.5}}
	for _, t := range transfers {
		list = append(list, target{name: "throughput, " + t.name + ", of the hub's", figure: t.name + "_mbps", over: "hub", atLeast: true, on: 1.5, off: 1.5})
	}
	list = append(list, target{name: "idle RTT p50, of the hub's", figure: "rtt_idle_p50_ms", over: "hub", on: 1, off: 1})
	for _, r := range []string{"client", "gateway"} {
		list = append(list, target{name: r + " CPU per GB, of the hub's", figure: "one_" + r + "_cpu_s_per_gb", over: "hub", on: 1, off: 1})
	}
	for _, r := range roles {
		list = append(list,
			target{name: r + " memory idle, MB", figure: "rss_idle_" + r + "_mb", on: 25, off: 25},
			target{name: r + " memory after load, MB", figure: "rss_load_" + r + "_mb", on: 100, off: 100})
	}
	return append(list, target{name: "start to first echo, ms", figure: "start_ms", on: 200, off: 200})
}()

// verdict is a target after a run.
type verdict struct {
	Name    string  `json:"name"`
	Figure  string  `json:"figure"`
	Over    string  `json:"over,omitempty"`
	Offload bool    `json:"offload"`
	Value   float64 `json:"value"`
	Want    string  `json:"want"`
	Met     bool    `json:"met"`
}

// judge compares; it says nothing about a figure that was not taken.
func (t target) judge(r *report, offload bool) (verdict, bool) {
	all := r.values("overlayd", offload, t.figure)
	if t.over != "" {
		all = r.ratios("overlayd", t.over, offload, t.figure)
	}
	if len(all) == 0 {
		return verdict{}, false
	}
	limit := t.off
	if offload {
		limit = t.on
	}
	v := verdict{Name: t.name, Figure: t.figure, Over: t.over, Offload: offload, Value: median(all)}
	if t.atLeast {
		v.Met, v.Want = v.Value >= limit, fmt.Sprintf("at least %.3g", limit)
	} else {
		v.Met, v.Want = v.Value <= limit, fmt.Sprintf("at most %.3g", limit)
	}
	return v, true
}

func (v verdict) word() string {
	if v.Met {
		return "met"
	}
	return "MISSED"
}
