//go:build linux

package main

import (
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// sample is what one system did in one round.
type sample struct {
	System  string             `json:"system"`
	Offload bool               `json:"offload"`
	Round   int                `json:"round"`
	Figures map[string]float64 `json:"figures"` // by name; the name ends in the unit
}

// report is the JSON of a run, and what the tables are made of.
type report struct {
	Schema string    `json:"schema"`
	Time   time.Time `json:"time"`
	machine
	Hub     string  `json:"wireguard_go"` // version of the binary
	Busy    float64 `json:"busy_before"`  // share of the machine that others used before the run
	Seconds int     `json:"seconds"`
	Rounds  int     `json:"rounds"`

	Samples []sample  `json:"samples"`
	Medians []sample  `json:"medians"` // round 0
	Targets []verdict `json:"targets"`
}

// machine is what figures were taken on.
type machine struct {
	Kernel string `json:"kernel"`
	CPUs   int    `json:"cpus"`
	Go     string `json:"go"`
}

func thisMachine() machine {
	m := machine{CPUs: runtime.NumCPU(), Go: runtime.Version()}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	return m
}

func newReport(s settings) *report {
	r := &report{Schema: "overlayd.bench/v1", machine: thisMachine(), Seconds: s.seconds, Rounds: s.rounds}
	if b, err := buildinfo.ReadFile(s.wireguard); err == nil {
		r.Hub = b.Main.Version
	}
	return r
}

// values returns a figure of a system, round by round.
func (r *report) values(system string, offload bool, figure string) []float64 {
	var all []float64
	for _, s := range r.Samples {
		if v, ok := s.Figures[figure]; ok && s.System == system && s.Offload == offload {
			all = append(all, v)
		}
	}
	return all
}

// ratios returns a figure of one system over that of another, each pair from
// the same round.
func (r *report) ratios(system, over string, offload bool, figure string) []float64 {
	a, b := r.values(system, offload, figure), r.values(over, offload, figure)
	if len(a) != len(b) {
		return nil
	}
	all := make([]float64, 0, len(a))
	for i := range a {
		if b[i] != 0 {
			all = append(all, a[i]/b[i])
		}
	}
	return all
}

// median of any list that is not empty.
func median(list []float64) float64 {
	s := slices.Sorted(slices.Values(list))
	n := len(s)
	if n%2 == 1 {
		return s[n/2]
	}
	return (s[n/2-1] + s[n/2]) / 2
}

// finish computes what follows from the samples.
func (r *report) finish() {
	r.Medians, r.Targets = nil, nil
	for _, offload := range []bool{true, false} {
		for _, system := range r.systems() {
			m := sample{System: system, Offload: offload, Figures: map[string]float64{}}
			for _, s := range r.Samples {
				for name := range s.Figures {
					if all := r.values(system, offload, name); len(all) > 0 {
						m.Figures[name] = median(all)
					}
				}
			}
			if len(m.Figures) > 0 {
				r.Medians = append(r.Medians, m)
			}
		}
		for _, t := range targets {
			if v, ok := t.judge(r, offload); ok {
				r.Targets = append(r.Targets, v)
			}
		}
	}
}

// systems returns the names in the order they were measured.
func (r *report) systems() []string {
	var names []string
	for _, s := range r.Samples {
		if !slices.Contains(names, s.System) {
			names = append(names, s.System)
		}
	}
	return names
}

// save writes the report as JSON and returns the file's name.
func (r *report) save(dir string, now time.Time) (string, error) {
	r.Time = now.UTC()
	r.finish()
	return save(dir, "", r.Time, r)
}

// save writes a report as JSON into a file that is named for its time, and
// returns the file's name.
func save(dir, kind string, at time.Time, report any) (string, error) {
	b, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return "", fmt.Errorf("write the report: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("write the report: %w", err)
	}
	file := filepath.Join(dir, kind+at.Format("2006-01-02T150405Z")+".json")
	if err := os.WriteFile(file, append(b, '\n'), 0o644); err != nil {
		return "", fmt.Errorf("write the report: %w", err)
	}
	return file, nil
}

// table is one of the report's tables: a row per system and offload setting.
type table struct {
	title string
	cols  []column
}

// column joins the figures of one cell with slashes.
type column struct {
	head, format string
	figures      []string
}

// ofRoles names a figure of each daemon.
func ofRoles(before, after string) []string {
	var names []string
	for _, r := range roles {
		names = append(names, before+r+after)
	}
	return names
}

var tables = []table{
	{"TCP, Mbit/s", []column{
		{"one stream", "%.0f", []string{"one_mbps"}},
		{"four", "%.0f", []string{"four_mbps"}},
		{"reversed", "%.0f", []string{"reverse_mbps"}},
	}},
	{"CPU-seconds per GB: client / relay / gateway", []column{
		{"one stream", "%.2f", ofRoles("one_", "_cpu_s_per_gb")},
		{"four", "%.2f", ofRoles("four_", "_cpu_s_per_gb")},
		{"reversed", "%.2f", ofRoles("reverse_", "_cpu_s_per_gb")},
		{"whole machine, one", "%.2f", []string{"one_machine_cpu_s_per_gb"}},
	}},
	{"CPU-seconds per GB: client and gateway together", []column{
		{"one stream", "%.2f", []string{"one_ends_cpu_s_per_gb"}},
		{"four", "%.2f", []string{"four_ends_cpu_s_per_gb"}},
		{"reversed", "%.2f", []string{"reverse_ends_cpu_s_per_gb"}},
	}},
	{"Round trip, ms: p50 / p99", []column{
		{"idle", "%.2f", []string{"rtt_idle_p50_ms", "rtt_idle_p99_ms"}},
		{"under load", "%.2f", []string{"rtt_load_p50_ms", "rtt_load_p99_ms"}},
		{"lost under load, %", "%.1f", []string{"rtt_load_lost_percent"}},
	}},
	{"Memory, MB: client / relay / gateway, and start to first echo", []column{
		{"idle", "%.0f", ofRoles("rss_idle_", "_mb")},
		{"after load", "%.0f", ofRoles("rss_load_", "_mb")},
		{"start, ms", "%.0f", []string{"start_ms"}},
	}},
	{"In force by the filter: client / gateway", []column{
		{"rules", "%.0f", []string{"client_rules", "gateway_rules"}},
		{"established flows", "%.0f", []string{"client_flows", "gateway_flows"}},
	}},
}

// text renders tables and verdicts.
func (r *report) text() string {
	r.finish()
	var b strings.Builder
	fmt.Fprintf(&b, "Linux %s, %d CPUs, %s, wireguard-go %s; medians of %d rounds of %d s\n",
		r.Kernel, r.CPUs, r.Go, r.Hub, r.Rounds, r.Seconds)
	for _, t := range tables {
		if !slices.ContainsFunc(r.Medians, t.has) {
			continue
		}
		fmt.Fprintf(&b, "\n%s\n", t.title)
		w := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
		fmt.Fprint(w, "  system\toffloads")
		for _, c := range t.cols {
			fmt.Fprint(w, "\t", c.head)
		}
		fmt.Fprintln(w)
		for _, m := range r.Medians {
			fmt.Fprintf(w, "  %s\t%s", m.System, onOff(m.Offload))
			for _, c := range t.cols {
				fmt.Fprint(w, "\t", c.cell(m.Figures))
			}
			fmt.Fprintln(w)
		}
		w.Flush()
	}
	if len(r.Targets) > 0 {
		fmt.Fprint(&b, "\nTargets (ratios are medians of the ratios of neighbours)\n")
		w := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
		for _, v := range r.Targets {
			fmt.Fprintf(w, "  %s\t%s\toffloads %s\t%.3f\t%s\n", v.word(), v.Name, onOff(v.Offload), v.Value, v.Want)
		}
		w.Flush()
	}
	return b.String()
}

// has reports whether any of the table's figures was taken of a system.
func (t table) has(m sample) bool {
	return slices.ContainsFunc(t.cols, func(c column) bool { return c.cell(m.Figures) != "-" })
}

func (c column) cell(f map[string]float64) string {
	var parts []string
	for _, name := range c.figures {
		if v, ok := f[name]; ok {
			parts = append(parts, fmt.Sprintf(c.format, v))
		}
	}
	if len(parts) == 0 {
		return "-"
	}
	return strings.Join(parts, " / ")
}
