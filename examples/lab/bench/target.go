//go:build linux

package main

import "fmt"

// target is what a figure is to reach: as a ratio to another
// system's in the same rounds, or, with no system to compare, by itself.
type target struct {
	name    string
	of      string // the system
	figure  string
	over    string // the other system; empty: none
	atLeast bool   // or else at most
	told    bool   // nothing is wanted of it
	on, off float64
}

// targets of all sections.
var targets = func() (list []target) {
	add := func(of, over string, more ...target) {
		for _, t := range more {
			t.of, t.over = of, over
			if t.off == 0 {
				t.off = t.on
			}
			list = append(list, t)
		}
	}
	for _, t := range transfers {
		add("overlayd", "hub", target{name: "throughput, " + t.name + ", of the hub's", figure: t.name + "_mbps", atLeast: true, on: 1.5})
		add("overlayd-direct", "wireguard-go",
			target{name: "direct throughput, " + t.name + ", of wireguard-go's", figure: t.name + "_mbps", atLeast: true, on: 1.05},
			target{name: "direct CPU per GB, " + t.name + ", of wireguard-go's", figure: t.name + "_ends_cpu_s_per_gb", on: 0.93})
		add("overlayd-tls", "overlayd-udp",
			target{name: "throughput by TLS, " + t.name + ", of that by UDP", figure: t.name + "_mbps", atLeast: true, on: 0.5})
	}
	add("overlayd", "hub",
		target{name: "relay CPU per GB, of the hub's", figure: "one_relay_cpu_s_per_gb", on: 1.0 / 9, off: 1 / 3.5},
		target{name: "idle RTT p50, of the hub's", figure: "rtt_idle_p50_ms", on: 1})
	for _, r := range []string{"client", "gateway"} {
		add("overlayd", "hub", target{name: r + " CPU per GB, of the hub's", figure: "one_" + r + "_cpu_s_per_gb", on: 1})
	}
	for _, r := range roles {
		add("overlayd", "",
			target{name: r + " memory idle, MB", figure: "rss_idle_" + r + "_mb", on: 25},
			target{name: r + " memory after load, MB", figure: "rss_load_" + r + "_mb", on: 100})
	}
	add("overlayd", "", target{name: "start to first echo, ms", figure: "start_ms", on: 200})
	for _, f := range []struct {
		with, without string
		least         float64 // what a filter must leave of the throughput
	}{{oneRule, noFilter, 0.97}, {manyRules, noFilterCrowd, 0.90}} {
		for _, t := range transfers {
			add(f.with, f.without,
				target{name: "throughput, " + t.name + ", " + f.with + ", of " + f.without, figure: t.name + "_mbps", atLeast: true, on: f.least},
				target{name: "CPU per GB of both ends, " + t.name + ", " + f.with + ", of " + f.without, figure: t.name + "_ends_cpu_s_per_gb", told: true})
		}
	}
	return list
}()

// verdict is a target after a run.
type verdict struct {
	Name    string  `json:"name"`
	Of      string  `json:"of"`
	Figure  string  `json:"figure"`
	Over    string  `json:"over,omitempty"`
	Offload bool    `json:"offload"`
	Value   float64 `json:"value"`
	Want    string  `json:"want"`
	Met     bool    `json:"met"`
	Told    bool    `json:"told,omitempty"` // nothing is wanted
}

// judge compares; it says nothing about a figure that was not taken.
func (t target) judge(r *report, offload bool) (verdict, bool) {
	all := r.values(t.of, offload, t.figure)
	if t.over != "" {
		all = r.ratios(t.of, t.over, offload, t.figure)
	}
	if len(all) == 0 {
		return verdict{}, false
	}
	limit := t.off
	if offload {
		limit = t.on
	}
	v := verdict{Name: t.name, Of: t.of, Figure: t.figure, Over: t.over, Offload: offload, Value: median(all)}
	switch {
	case t.told:
		v.Met, v.Told = true, true
	case t.atLeast:
		v.Met, v.Want = v.Value >= limit, fmt.Sprintf("at least %.3g", limit)
	default:
		v.Met, v.Want = v.Value <= limit, fmt.Sprintf("at most %.3g", limit)
	}
	return v, true
}

func (v verdict) word() string {
	switch {
	case v.Told:
		return ""
	case v.Met:
		return "met"
	}
	return "MISSED"
}
