package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"overlayd/overlay"
	"overlayd/overlay/record"
)

var (
	lineBegan  = `{"time":"2026-05-01T10:00:00Z","event":"flow_began","user":"alice","node":"laptop","source":"172.18.0.11:40000","target":"192.168.1.201:22","protocol":"tcp","verdict":"allowed","rule":"ssh","began_at":"2026-05-01T10:00:00Z","seen_as":"192.168.1.200:40000"}`
	lineEnded  = `{"time":"2026-05-01T10:00:07Z","event":"flow_ended","user":"alice","node":"laptop","source":"172.18.0.11:40000","target":"192.168.1.201:22","protocol":"tcp","verdict":"allowed","rule":"ssh","why":"cut","began_at":"2026-05-01T10:00:00Z","in_bytes":1200,"out_bytes":10}`
	lineDenied = `{"time":"2026-05-01T10:00:00Z","event":"flow_denied","user":"alice","node":"laptop","source":"172.18.0.11:40001","target":"192.168.1.201:80","protocol":"tcp","verdict":"denied","why":"policy"}`
	lineChange = `{"seq":3,"prev":"00","time":"2026-05-01T10:00:00Z","who":"bob","node":"bob-1","call":"Revoke","request":{"what":"alice"},"refused":"bob is no admin","undo":[{"key":"x"}]}`
)

func TestAudit(t *testing.T) {
	w := newWorld(t)
	const long = `{"time":"2026-05-01T10:00:00Z","who":"user:bob","node":"desk","from":"198.51.100.7","call":"ApplyPolicy","request":{"text":"rules:\n%s"}}`
	w.record = []string{lineBegan, lineEnded, lineDenied, lineChange, fmt.Sprintf(long, strings.Repeat("x", 300))}
	unsourced := strings.NewReplacer(
		`"user":"alice"`, `"user":"carol","client":"203.0.113.1:5","via":"ssh"`, `"node":"laptop"`, `"node":"vps"`,
		`"172.18.0.11:40001"`, `""`, `192.168.1.201:80`, `192.168.1.201:23`).Replace(lineDenied)
	ours := strings.NewReplacer(`"user":"alice"`, `"user":"","client":"203.0.113.2:5","via":"expose e1"`, `"node":"laptop"`, `"node":"vps"`).Replace(lineBegan)
	machines := strings.NewReplacer(`"user":"alice"`, `"user":""`, `"node":"laptop"`, `"node":"vps"`, ":40000", ":40002").Replace(lineBegan)
	w.record = append(w.record, unsourced, ours, machines)
	if code := w.do("audit", "--user", "alice", "--since", "2h", "--denied", "-f", "--host", "192.168.1.0/24"); code != 0 {
		t.Fatalf("exit %d: %s", code, &w.err)
	}
	for _, want := range []string{
		"alice on laptop  172.18.0.11:40000 (there 192.168.1.200:40000) to 192.168.1.201:22 tcp  allowed by ssh, began\n",
		"allowed by ssh, ended after 7.0 s (cut), 1.2 kB in, 10 B out\n",
		"alice on laptop  172.18.0.11:40001 to 192.168.1.201:80 tcp  denied: policy\n",
		"carol on vps from 203.0.113.1:5 by ssh  to 192.168.1.201:23 tcp  denied: policy\n",
		"the relay on vps from 203.0.113.2:5 by expose e1  172.18.0.11:40000 ",
		"  vps  172.18.0.11:40002 ",
		`bob on bob-1  Revoke {"what":"alice"}  refused: bob is no admin` + "\n",
		`user:bob on desk from 198.51.100.7  ApplyPolicy {"text":"rules:\n` + strings.Repeat("x", shownRequest-len(`{"text":"rules:\n`)) + "…\n",
	} {
		if !strings.Contains(w.out.String(), want) {
			t.Errorf("it lacks %q:\n%s", want, &w.out)
		}
	}
	call := w.calls[len(w.calls)-1]
	if want := "audit {Follow:true User:alice Host:192.168.1.0/24 Since:" + testNow.Add(-2*time.Hour).String() + " Denied:true}"; call != want {
		t.Errorf("asked %s, want %s", call, want)
	}
	if w.do("audit", "--json"); w.out.String() != strings.Join(w.record, "\n")+"\n" {
		t.Errorf("--json is not the record:\n%s", &w.out)
	}
	if code := w.do("audit", "--since", "yesterday"); code != overlay.ExitUsage {
		t.Errorf("exit %d of a time that is none", code)
	}
	w.record = []string{"{"}
	if code := w.do("audit"); code != overlay.ExitFailure {
		t.Errorf("exit %d of a line that is none", code)
	}
}

func TestMoment(t *testing.T) {
	for text, want := range map[string]time.Time{
		"2h":                   testNow.Add(-2 * time.Hour),
		"7d":                   testNow.Add(-7 * 24 * time.Hour),
		"2026-05-01T08:00:00Z": testNow.Add(-2 * time.Hour),
		"2026-04-01":           time.Date(2026, 4, 1, 0, 0, 0, 0, time.Local),
		"2026-04-01 12:30":     time.Date(2026, 4, 1, 12, 30, 0, 0, time.Local),
	} {
		var m moment
		if err := m.Set(text); err != nil || !m.before(testNow).Equal(want) {
			t.Errorf("%s: %v, %v", text, m.before(testNow), err)
		}
	}
	if m := (moment{}); !m.before(testNow).IsZero() {
		t.Error("nothing set is not all there is")
	}
}

func TestWhois(t *testing.T) {
	w := newWorld(t)
	if code := w.do("whois", "192.168.1.200:1"); code != overlay.ExitFailure || !strings.Contains(w.err.String(), "nobody was found behind 192.168.1.200:1") {
		t.Errorf("exit %d: %s", code, &w.err)
	}
	w.whois = overlay.Whois{
		Person: &overlay.WhoisPerson{User: "alice", Node: "laptop"},
		Live: []overlay.FlowLine{{BeganAt: testNow, Event: overlay.EventFlowBegan, User: "alice", Node: "laptop",
			Source: "172.18.0.11:40000", Target: "192.168.1.201:22", Protocol: "tcp", Rule: "ssh", InBytes: 5}},
		Recorded: []overlay.FlowLine{{Event: overlay.EventFlowDenied, User: "alice", Node: "laptop", Why: "policy"}},
	}
	if code := w.do("whois", "172.18.0.11"); code != 0 {
		t.Errorf("exit %d: %s", code, &w.err)
	}
	for _, want := range []string{"172.18.0.11 is the node laptop of alice\n", "allowed by ssh, began, 5 B in, 0 B out\n", "denied: policy\n"} {
		if !strings.Contains(w.out.String(), want) {
			t.Errorf("it lacks %q:\n%s", want, &w.out)
		}
	}
}

// TestVerifyCopy: an auditor's copy is checked without any daemon.
func TestVerifyCopy(t *testing.T) {
	dir := t.TempDir()
	log, err := record.Open(dir, "control", record.Options{Chain: true})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		log.Append(map[string]int{"n": i})
	}
	done, stop := context.WithCancel(t.Context())
	stop()
	if err := log.Run(done); err != nil { // what is in the queue
		t.Fatal(err)
	}
	lines, head := filepath.Join(dir, "control.jsonl"), filepath.Join(dir, "control.head")
	w := newWorld(t)
	says := func(code int, out, err string, args ...string) {
		t.Helper()
		got := w.do(append([]string{"audit", "verify"}, args...)...)
		if got != code || !strings.Contains(w.out.String(), out) || !strings.Contains(w.err.String(), err) || len(w.calls) > 0 {
			t.Errorf("%s: code %d, calls %q\n%s%s", args, got, w.calls, &w.out, &w.err)
		}
	}
	says(0, "whole: 5 lines, numbers 1 to 5, none missing or changed\n", "", dir)
	says(0, `"end_known": true`, "", dir, "--json")
	says(0, "numbers 1 to 5", "", lines, "--head", head)
	says(overlay.ExitUsage, "", "there is no PATH", "--head", head)
	says(overlay.ExitFailure, "", "no such file", filepath.Join(dir, "nothing"))
	b, err := os.ReadFile(lines)
	if err != nil {
		t.Fatal(err)
	}
	gone := strings.SplitAfter(string(b), "\n")
	if err := os.WriteFile(lines, []byte(strings.Join(append(gone[:2:2], gone[3:]...), "")), 0o600); err != nil {
		t.Fatal(err)
	}
	says(overlay.ExitFailure, "number 3 is missing\n", "the record of changes is not whole", dir)
	if err := os.WriteFile(lines, []byte(strings.Join(gone[:3], "")), 0o600); err != nil {
		t.Fatal(err)
	}
	says(overlay.ExitFailure, "numbers 4 to 5 are missing at the end\n", "hint: compare it", lines)
	if err := os.Remove(head); err != nil {
		t.Fatal(err)
	}
	says(0, "numbers 1 to 3", "whether lines came after number 3 is not known", lines)
	says(overlay.ExitFailure, "the head is missing\n", "not whole", dir)
}
