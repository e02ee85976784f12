//go:build linux

package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestRatiosAreOfNeighbours(t *testing.T) {
	// The machine slows down to a third between the rounds; the ratio does not.
	r := newReport(settings{rounds: 3, seconds: 1})
	for i, slow := range []float64{1, 2, 3} {
		r.Samples = append(r.Samples,
			sample{"overlayd", true, i + 1, map[string]float64{"one_mbps": 3000 / slow, "one_relay_cpu_s_per_gb": 0.5 * slow, "start_ms": 100}},
			sample{"hub", true, i + 1, map[string]float64{"one_mbps": 1500 / slow, "one_relay_cpu_s_per_gb": 4 * slow}})
	}
	r.finish()
	want := map[string]struct {
		value float64
		met   bool
	}{
		"relay CPU per GB, of the hub's": {0.125, false},
		"throughput, one, of the hub's":  {2, true},
		"start to first echo, ms":        {100, true},
	}
	if len(r.Targets) != len(want) {
		t.Errorf("%d targets are judged, want %d: %+v", len(r.Targets), len(want), r.Targets)
	}
	for _, v := range r.Targets {
		if w := want[v.Name]; v.Value != w.value || v.Met != w.met {
			t.Errorf("%s: %v %v, want %v", v.Name, v.Value, v.Met, w)
		}
	}
	text := r.text()
	for _, line := range []string{"met      throughput, one, of the hub's", "MISSED   relay CPU per GB", "overlayd   on         1500         -      -"} {
		if !strings.Contains(text, line) {
			t.Errorf("no %q in\n%s", line, text)
		}
	}
	dir := t.TempDir()
	file, err := r.save(dir, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	if err != nil || file != filepath.Join(dir, "2026-01-02T030405Z.json") {
		t.Fatalf("save: %s, %v", file, err)
	}
	if b, err := os.ReadFile(file); err != nil || !strings.Contains(string(b), `"schema": "overlayd.bench/v1"`) {
		t.Errorf("the JSON: %v\n%s", err, b)
	}
}

func TestTargetsOfEverySection(t *testing.T) {
	r := newReport(settings{})
	for _, of := range []string{"overlayd-direct", "wireguard-go", "overlayd-tls", "overlayd-udp", oneRule, noFilter} {
		slow := 1.0
		if of == "overlayd-tls" || of == "wireguard-go" || of == oneRule {
			slow = 0.6
		}
		r.Samples = append(r.Samples, sample{of, false, 1, map[string]float64{"four_mbps": 1000 * slow, "four_ends_cpu_s_per_gb": 1 + slow}})
	}
	text := r.text()
	narrow := strings.Join(strings.Fields(text), " ")
	for _, line := range []string{
		"met direct throughput, four, of wireguard-go's offloads off 1.667 at least 1.05",
		"MISSED direct CPU per GB, four, of wireguard-go's offloads off 1.250 at most 0.93",
		"met throughput by TLS, four, of that by UDP offloads off 0.600 at least 0.5",
		"MISSED throughput, four, 1 rule, of no filter offloads off 0.600 at least 0.97",
	} {
		if !strings.Contains(narrow, line) {
			t.Errorf("no %q in\n%s", line, text)
		}
	}
}

func TestParse(t *testing.T) {
	s, err := parse([]string{"-only", "tls,direct", "-probes", "one", "-offloads", "off"})
	if err != nil || !slices.Equal(s.only, []string{"tls", "direct"}) {
		t.Fatalf("parse: %+v, %v", s, err)
	}
	for _, c := range []struct {
		section string
		probes  []string
		want    []string
	}{
		{"direct", s.probes, []string{"start", "one"}},
		{"direct", nil, []string{"start", "idle", "one", "four", "reverse", "load"}},
		{"filter", nil, []string{"start", "one", "four", "reverse", "inforce"}},
	} {
		sec, err := sectionOf(c.section)
		if err != nil {
			t.Fatal(err)
		}
		s.probes = c.probes
		var names []string
		for _, p := range probesOf(s, sec) {
			names = append(names, p.name)
		}
		if !slices.Equal(names, c.want) {
			t.Errorf("the probes of %s: %v, want %v", c.section, names, c.want)
		}
	}
	for _, bad := range [][]string{{"-only", "hub"}, {"-probes", "two"}, {"-offloads", "yes"}, {"-rounds", "0"}} {
		if _, err := parse(bad); err == nil {
			t.Errorf("parse(%v) accepted", bad)
		}
	}
}

func TestMedianAndPercentile(t *testing.T) {
	if m := median([]float64{9, 1, 5}); m != 5 {
		t.Errorf("median of three: %v", m)
	}
	if m := median([]float64{4, 1, 2, 3}); m != 2.5 {
		t.Errorf("median of four: %v", m)
	}
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(i + 1)
	}
	if p50, p99 := percentile(hundred, 50), percentile(hundred, 99); p50 != 50 || p99 != 99 {
		t.Errorf("percentiles %v and %v", p50, p99)
	}
	if p := percentile([]float64{7}, 99); p != 7 {
		t.Errorf("percentile of one: %v", p)
	}
}

func TestParsePing(t *testing.T) {
	out := `PING 192.168.1.201 (192.168.1.201) 56(84) bytes of data.
64 bytes from 192.168.1.201: icmp_seq=1 ttl=62 time=0.432 ms
64 bytes from 192.168.1.201: icmp_seq=3 ttl=62 time=0.1 ms
64 bytes from 192.168.1.201: icmp_seq=3 ttl=62 time=0.9 ms (DUP!)

3 packets transmitted, 2 received, 33% packet loss, time 20ms
`
	if got := parsePing(out); !slices.Equal(got, []float64{0.1, 0.432}) {
		t.Errorf("parsePing = %v", got)
	}
}

func TestParseIperf(t *testing.T) {
	r, err := parseIperf([]byte(`{"end":{"sum_received":{"bytes":1000,"bits_per_second":2e9}}}`))
	if err != nil || r != (result{mbps: 2000, bytes: 1000}) {
		t.Errorf("parseIperf = %+v, %v", r, err)
	}
	for _, bad := range []string{`{"error":"unable to connect"}`, `{}`, `{`} {
		if _, err := parseIperf([]byte(bad)); err == nil {
			t.Errorf("parseIperf(%s) accepted", bad)
		}
	}
}

func TestParseStat(t *testing.T) {
	d, err := parseStat("cpu  100 1 50 1000 7 3 6 9\ncpu0 1 1\n")
	if want := 1600 * time.Millisecond; err != nil || d != want {
		t.Errorf("parseStat = %v, %v, want %v", d, err, want)
	}
	if _, err := parseStat("intr 1"); err == nil {
		t.Error("a foreign line was accepted")
	}
}
