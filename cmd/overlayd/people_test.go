package main

import (
	"bytes"
	"context"
	"log/slog"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"overlayd/overlay/coord"
	"overlayd/overlay/record"
)

// network gives a world a real coordinator, without machines.
func (w *world) network(t *testing.T) func(args ...string) int {
	t.Helper()
	dir := t.TempDir()
	store, err := coord.OpenBolt(filepath.Join(dir, "db"))
	if err != nil {
		t.Fatal(err)
	}
	log, err := record.Open(dir, "control", record.Options{Chain: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- log.Run(ctx) }()
	s, err := coord.NewServer(coord.ServerOptions{
		Store: store, Endpoint: "203.0.113.10:443", Overlay: netip.MustParsePrefix("172.18.0.0/24"),
		Log: slog.New(slog.DiscardHandler), Events: &coord.Events{Dir: dir, Name: "control", Log: log},
	})
	if err != nil {
		t.Fatal(err)
	}
	local := httptest.NewServer(s.AdminHandler())
	t.Cleanup(func() {
		local.Close()
		cancel()
		<-done
		store.Close()
	})
	return func(args ...string) int {
		w.out.Reset()
		w.err.Reset()
		p := w.program()
		p.now = time.Now
		p.engine.coordinator = func(string) coordinator { return coord.NewAdmin(local.Client(), local.URL) }
		return p.main(context.Background(), args)
	}
}

// verbStep is a command line and what comes of it.
type verbStep struct {
	line string
	code int
	says string // on standard output, or standard error when the code is not 0
	file string

	warns string // on standard error
}

const goodPolicy = "hosts: {nas: 192.168.1.201}\nrules:\n  - {name: ssh, src: group:students, dst: nas, ports: tcp/22}\n" +
	"tests:\n  - {who: alice, accept: [nas:22], deny: [nas:80]}\n"

// peopleSteps: users, groups, admins and their invites.
var peopleSteps = []verbStep{
	{line: "users", says: ""},
	{line: "groups add students", says: "students: none\n"},
	{line: "users add alice --group students --tag night", says: "invite --user alice"},
	{line: "users add alice", code: 8, says: "taken by the user alice\nhint: choose another name"},
	{line: "users add 10.0.0.1", code: 2, says: "not a name for a user"},
	{line: "users add bob --group teachers", code: 1, says: "no group \"teachers\""},
	{line: "users add bob", says: "added bob"},
	{line: "groups join students bob", says: "students: alice, bob\n"},
	{line: "groups leave students bob", says: "students: alice\n"},
	{line: "groups", says: "students  active  alice\n"},
	{line: "groups disable students --json", says: `"disabled": true`},
	{line: "groups", says: "students  disabled  alice\n"},
	{line: "groups enable students", says: "enabled students\n"},
	{line: "groups enable studnets", code: 1, says: "no group \"studnets\"\nhint: did you mean students?"},
	{line: "users disable alcie", code: 1, says: "no user \"alcie\"\nhint: did you mean alice?"},
	{line: "groups --json", says: `"schema": "overlayd.groups/v1"`},
	{line: "users", says: "alice  active  students  night  -"},
	{line: "users --json", says: `"tags": [`},
	{line: "admin", says: ""},
	{line: "admin add bob", says: "made admin: bob\n"},
	{line: "admin list", says: "bob\n"},
	{line: "invite --user alice --approve-later --json", says: `"schema": "overlayd.invite/v1"`},
	{line: "invite list --json", says: `"user": "alice"`},
	{line: "nodes add laptop --user alice", says: "ovl://"},
	{line: "nodes add laptop --user alice", code: 8, says: "promised to the invite"},
	{line: "nodes add lap_top", code: 2, says: "NAME"},
	{line: "invite list", says: "laptop"},
	{line: "invite --user alice --gateway 192.168.1.0/24", code: 2, says: "nobody's own machine"},
	{line: "invite --user carol", code: 1, says: "no user \"carol\""},
}

// policySteps: policies.
var policySteps = []verbStep{
	{line: "policy show", says: "members-to-routes"},
	{line: "policy check FILE", file: "rules: [\n", code: 2, says: "line 1"},
	{line: "policy check FILE", file: strings.Replace(goodPolicy, "nas:80", "nas:22", 1), code: 2, says: "must not reach"},
	{line: "policy apply FILE", file: strings.ReplaceAll(goodPolicy, "src: group:students", "src: group:studnets"), code: 2, says: "did you mean students?"},
	{line: "policy diff FILE", file: goodPolicy, says: "+ rule ssh:"},
	{line: "policy test FILE", file: goodPolicy, says: "2 tests passed", warns: "warning: line 3: no gateway carries 192.168.1.201, which is nas,"},
	{line: "policy apply FILE", file: goodPolicy, says: "version 2 is in force; 2 tests passed", warns: "warning: line 3: no gateway carries"},
	{line: "policy test --json", says: `"warnings": [`},
	{line: "policy versions", says: "local"},
	{line: "policy show --version 1 --json", says: `"version": 1`},
	{line: "policy show --version 9", code: 1, says: "no version 9"},
	{line: "policy apply nowhere.yaml", code: 1, says: "nowhere.yaml"},
}

// accessSteps: who may reach what.
var accessSteps = []verbStep{
	{line: "grant alice nas:80", code: 2, says: "--for"},
	{line: "grant alice nas:80 --for 0s", code: 2, says: "not above zero"},
	{line: "grant carol nas:80 --for 4h", code: 1, says: "no user"},
	{line: "grant alice nas:80 --for 4h", says: "alice may reach nas:80 until", warns: "warning: no gateway carries 192.168.1.201, which is nas,"},
	{line: "grants --json", says: `"warning": "no gateway carries`},
	{line: "grants", says: "alice  nas:80"},
	{line: "access nas:80", says: "alice  grant:"},
	{line: "access nas:22", says: "alice  ssh"},
	{line: "access nowhere:22", code: 1, says: "nowhere"},
	{line: "access nas:22 --at 2020-01-01", code: 1, says: "does not reach back"},
	{line: "explain alice nas:443", code: 6, says: "no active node", warns: "hint: overlayd users and overlayd nodes show why"},
	{line: "requests", says: ""},
	{line: "approve r234", code: 1, says: "no request"},
	{line: "requests deny r234", code: 1, says: "no request"},
	{line: "request nas:22", code: 2, says: "coordinator's own"},
}

// endingsSteps: how each of these ends.
var endingsSteps = []verbStep{
	{line: "revoke nobody", code: 1, says: "no user, node, invite, grant or exposure"},
	{line: "revoke alice", says: "revoked user alice: done in 0.0"},
	{line: "users", says: "alice  disabled"},
	{line: "grants", says: ""},
	{line: "users enable alice", says: "enabled alice"},
	{line: "users untag alice night", says: "alice has the tags: none"},
	{line: "users rename bob robert", says: "bob is now called robert"},
	{line: "users remove robert", says: "removed robert"},
	{line: "groups remove students", code: 8, says: "policy names the group"},
	{line: "nodes disable laptop", code: 1, says: "no node"},
	{line: "audit verify", says: "none missing or changed"},
	{line: "audit verify --json", says: `"problems": []`},
}

// TestPeopleVerbs runs a day of an operator against a coordinator.
func TestPeopleVerbs(t *testing.T) {
	w := newWorld(t)
	do := w.network(t)
	file := filepath.Join(t.TempDir(), "policy.yaml")
	for _, step := range slices.Concat(peopleSteps, policySteps, accessSteps, endingsSteps) { // each goes on from those before
		if step.file != "" {
			if err := os.WriteFile(file, []byte(step.file), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		code := do(strings.Fields(strings.Replace(step.line, "FILE", file, 1))...)
		says := w.out.String()
		if step.code != 0 && step.code != 6 {
			says = w.err.String()
		}
		if code != step.code || !strings.Contains(says, step.says) || !strings.Contains(w.err.String(), step.warns) {
			t.Errorf("overlayd %s: code %d, want %d\n%s%s", step.line, code, step.code, &w.out, &w.err)
		}
	}
}

func TestRevokedText(t *testing.T) {
	for _, c := range []struct {
		name  string
		nodes []coord.Ack
		code  int
		says  string
	}{
		{"all", []coord.Ack{{Node: "gw", Online: true, Applied: true, FlowsCut: 5}, {Node: "vps", Online: true, Applied: true}}, 0,
			"revoked user alice: done in 0.7 s, 2 of 2 nodes, 5 flows cut\n"},
		{"one away", []coord.Ack{{Node: "gw"}, {Node: "vps", Online: true, Applied: true}}, 5,
			"1 of 2 nodes, 0 flows cut\noffline, will apply on contact: gw\n"},
		{"one silent", []coord.Ack{{Node: "gw", Online: true}, {Node: "lab"}}, 7,
			"offline, will apply on contact: lab\ndid not answer in time: gw\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			p := &program{stdout: &out, stderr: &errs}
			code := p.report(p.tellRevoked(coord.Revoked{Kind: "user", Name: "alice", Nodes: c.nodes, Took: 700 * time.Millisecond}))
			if code != c.code || !strings.HasSuffix(out.String(), c.says) || errs.Len() > 0 {
				t.Errorf("code %d\n%s%s", code, &out, &errs)
			}
		})
	}
}
