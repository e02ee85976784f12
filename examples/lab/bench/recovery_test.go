//go:build linux

package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestOutcomes(t *testing.T) {
	r := recoveryReport{Rounds: 3}
	for _, o := range []outcome{
		{Name: "fast", SecondsOfRounds: []float64{0.3, 0.1, 0.2}, target: time.Second},
		{Name: "one-was-slow", SecondsOfRounds: []float64{0.3, 1.1, 0.2}, target: time.Second},
		{Name: "nothing-lost", SecondsOfRounds: []float64{0, 0, 0}, target: 0},
		{Name: "nothing-promised", SecondsOfRounds: []float64{30, 3, 7}, target: noTarget},
	} {
		r.Events = append(r.Events, o.judged())
	}
	text := r.text()
	for _, line := range []string{
		"met      fast                  0.200   0.300    1.0",
		"MISSED   one-was-slow          0.300   1.100    1.0",
		"met      nothing-lost          0.000   0.000    0.0",
		"nothing-promised      7.000   30.000   -",
	} {
		if !strings.Contains(text, line) {
			t.Errorf("no %q in\n%s", line, text)
		}
	}
	b, err := json.Marshal(r.Events[3])
	if err != nil || !strings.Contains(string(b), `"p50_s":7,"worst_s":30,"target_s":null,"met":null`) {
		t.Errorf("the JSON: %s, %v", b, err)
	}
}

func TestParseRecovery(t *testing.T) {
	t.Setenv("ONLY", "")
	r, err := parseRecovery([]string{"-rounds", "2"})
	if err != nil || len(r.events) != len(events) || r.rounds != 2 || r.sleep != 200*time.Second {
		t.Fatalf("parseRecovery: %+v, %v", r, err)
	}
	t.Setenv("ONLY", "roam,relay-restart")
	if r, err = parseRecovery(nil); err != nil || r.rounds != 10 || len(r.events) < 3 {
		t.Fatalf("parseRecovery: %+v, %v", r, err)
	}
	for _, e := range r.events {
		if !strings.HasPrefix(e.name, "roam") && e.name != "relay-restart" {
			t.Errorf("%s was not asked for", e.name)
		}
	}
	for _, bad := range [][]string{{"-only", "flood"}, {"-rounds", "0"}} {
		if _, err := parseRecovery(bad); err == nil {
			t.Errorf("parseRecovery(%v) accepted", bad)
		}
	}
}

func TestEventNames(t *testing.T) {
	seen := map[string]bool{}
	for _, e := range events {
		if seen[e.name] || e.what == "" || e.on == nil || e.do == nil {
			t.Errorf("event %q is not whole, or there twice", e.name)
		}
		seen[e.name] = true
	}
}
