package overlay

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"overlayd/overlay/coord"
	"overlayd/overlay/filter"
	"overlayd/overlay/key"
	"overlayd/overlay/relay"
	"overlayd/overlay/tunnel"
	"overlayd/overlay/underlay"
)

var testNow = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func testSnapshot() snapshot {
	gw := testNode("lab", 200, coord.RoleGateway, true, approved("192.168.1.0/24"))
	m := testMap(testNode("laptop", 11, coord.RoleMember, true), gw)
	return snapshot{
		view: view{
			m: m, plan: testPlan(m, testHost("10.0.0.5/24")), live: &machine{},
			control: coord.ControlState{Phase: coord.PhaseConnected, Since: testNow.Add(-time.Minute)},
		},
		options: Options{Version: "1.2.3", Interface: "ovl0", Role: coord.RoleMember},
		name:    "laptop", endpoint: "203.0.113.10:443", now: testNow,
		relays: []underlay.RelayStatus{{
			ID: "1", Name: "vps", Endpoint: "203.0.113.10:443",
			State: relay.Up.String(), Transport: "udp", RTT: 12345 * time.Microsecond,
		}},
		paths: map[key.Public]underlay.Path{gw.WireGuard: {Kind: "relay", Transport: "udp", RelayID: "1"}},
		stats: map[key.Public]tunnel.Stat{gw.WireGuard: {RxBytes: 10, TxBytes: 20, LastHandshake: testNow.Add(-time.Second)}},
	}
}

// TestStatusJSON: the fields that scripts rely on are there, with null for what
// is not known.
func TestStatusJSON(t *testing.T) {
	tests := []struct {
		name string
		s    snapshot
	}{
		{"ready", testSnapshot()},
		{"before the first map", snapshot{options: Options{Version: "1.2.3"}, now: testNow}},
	}
	fields := map[string]string{
		"": "schema version state node network relays peers routes health counters port_mapping", "node": "name ips role public_key",
		"network": "overlay map_version map_age_ms control", "network.control": "state endpoint",
		"relays": "name endpoint state transport rtt_ms",
		"peers":  "name ips role online path rtt_ms rx_bytes tx_bytes last_handshake_at",
		"routes": "prefix via state reason",
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b, err := json.Marshal(tt.s.status())
			if err != nil {
				t.Fatal(err)
			}
			var root map[string]any
			if err := json.Unmarshal(b, &root); err != nil {
				t.Fatal(err)
			}
			for path, names := range fields {
				objects := []any{root}
				for step := range strings.SplitSeq(path, ".") {
					if step == "" {
						continue
					}
					var next []any
					for _, o := range objects {
						v := o.(map[string]any)[step]
						if list, ok := v.([]any); ok {
							next = append(next, list...)
						} else {
							next = append(next, v)
						}
					}
					objects = next
				}
				for _, o := range objects {
					for _, name := range strings.Fields(names) {
						if _, ok := o.(map[string]any)[name]; !ok {
							t.Errorf("%s.%s is missing", path, name)
						}
					}
				}
			}
			if strings.Contains(string(b), "[null") || strings.Contains(string(b), `"relays":null`) {
				t.Errorf("an empty list is not []: %s", b)
			}
		})
	}
}

func TestState(t *testing.T) {
	tests := []struct {
		name   string
		change func(*snapshot)
		want   string
		health string // id of an item; "": none
	}{
		{"all is well", func(*snapshot) {}, StateReady, ""},
		{"no map yet", func(s *snapshot) { s.m = nil }, StateStarting, ""},
		{"interface not up yet", func(s *snapshot) { s.live = nil }, StateStarting, ""},
		{"coordinator lost", func(s *snapshot) { s.outage.since = testNow.Add(-time.Minute) }, StateDegraded, "coordinator_unreachable"},
		{"relay lost", func(s *snapshot) { s.relays[0].State = relay.Lost.String() }, StateDegraded, "relay_unreachable"},
		{"one relay of two lost", func(s *snapshot) {
			s.relays = append(s.relays, underlay.RelayStatus{ID: "n2", Name: "vps2", State: relay.Lost.String()})
		}, StateReady, "relay_unreachable"},
		{"no relay", func(s *snapshot) { s.relays = nil }, StateDegraded, "relay_unreachable"},
		{"own relay", func(s *snapshot) { s.relays[0].Transport = underlay.TransportLocal }, StateReady, ""},
		{"not applied", func(s *snapshot) { s.failed = errors.New("route add: denied") }, StateDegraded, "host_not_applied"},
		{"refused by a policy", func(s *snapshot) {
			s.guard.refused = []filter.Refusal{{Proto: protoTCP, Remote: netip.MustParseAddrPort("192.168.1.201:80"), At: testNow.Add(-3 * time.Second)}}
		}, StateReady, HealthRefused},
		{"gateway waits", func(s *snapshot) {
			s.m = testMap(testNode("lab", 200, coord.RoleGateway, true, pending("192.168.1.0/24")))
			s.plan = testPlan(s.m, testHost("192.168.1.200/24"))
		}, StateNeedsApproval, "route_pending"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := testSnapshot()
			tt.change(&s)
			got := s.status()
			if got.State != tt.want {
				t.Errorf("state %s, want %s", got.State, tt.want)
			}
			found := tt.health == "" && len(got.Health) == 0
			for _, h := range got.Health {
				found = found || h.ID == tt.health
				if h.Title == "" || h.Fix == "" {
					t.Errorf("%s lacks words: %+v", h.ID, h)
				}
			}
			if !found {
				t.Errorf("health %v, want %q", got.Health, tt.health)
			}
		})
	}
}

func TestStatusPeer(t *testing.T) {
	got := testSnapshot().status()
	p := got.Peers[0]
	if p.RxBytes != 10 || p.TxBytes != 20 || p.LastHandshakeAt == nil || p.RTTMS != nil || p.Path.Kind != "relay" {
		t.Errorf("peer %+v", p)
	}
	if r := got.Relays[0]; r.RTTMS == nil || *r.RTTMS != 12.345 {
		t.Errorf("relay %+v, want 12.345 ms", r)
	}
}

// TestStatusReason: a machine that is away is peer_offline; one that answers is
// not, although the coordinator may not see it.
func TestStatusReason(t *testing.T) {
	for _, c := range []struct {
		name    string
		online  bool
		heard   time.Duration // ago
		kind    string
		reason  string // the path's own
		want    string
		wantRTT bool
	}{
		{"there", true, time.Second, underlay.KindRelay, "mtu", "mtu", true},
		{"away", false, time.Hour, underlay.KindRelay, "mtu", "peer_offline", false},
		{"away, no path", false, time.Hour, underlay.KindNone, "relay_down", "peer_offline", false},
		{"away, and directly nobody knows yet", false, time.Hour, underlay.KindDirect, "", "", true},
		{"the coordinator does not see it, but it answers", false, time.Second, underlay.KindRelay, "symmetric_nat_both", "symmetric_nat_both", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := testSnapshot()
			gw := &s.m.Peers[0]
			gw.Online = c.online
			s.paths[gw.WireGuard] = underlay.Path{Kind: c.kind, Reason: c.reason, RTT: time.Millisecond}
			s.stats[gw.WireGuard] = tunnel.Stat{LastHandshake: testNow.Add(-c.heard)}
			p := s.status().Peers[0]
			if p.Path.Reason != c.want || (p.RTTMS != nil) != c.wantRTT {
				t.Errorf("%+v, round trip known %v; want %q", p.Path, p.RTTMS != nil, c.want)
			}
		})
	}
}

// TestOutage: attempts to connect again do not end an outage, nor start it anew.
func TestOutage(t *testing.T) {
	var o outage
	at := testNow
	for _, p := range []coord.Phase{coord.PhaseConnecting, coord.PhaseLost, coord.PhaseConnecting, coord.PhaseLost} {
		o = o.after(coord.ControlState{Phase: p, Since: at, Err: errors.New(at.String())}, time.Time{})
		at = at.Add(time.Second)
	}
	if first, last := testNow.Add(time.Second), testNow.Add(3*time.Second); o.since != first || o.err.Error() != last.String() {
		t.Errorf("since %s for %v, want since %s for %s", o.since, o.err, first, last)
	}
	if o = o.after(coord.ControlState{Phase: coord.PhaseConnected, Since: at}, at); !o.since.IsZero() {
		t.Errorf("it goes on although the coordinator is back: %v", o)
	}
	// Its silence is noticed when it has lasted for a while, and counts from its start.
	for _, heard := range []time.Time{at.Add(-15 * time.Second), at, at.Add(time.Second)} {
		o = outage{}.after(coord.ControlState{Phase: coord.PhaseLost, Since: at}, heard)
		want := at
		if heard.Before(at) {
			want = heard
		}
		if o.since != want {
			t.Errorf("last heard at %s: since %s", heard, o.since)
		}
	}
}

// A program that has a node in it may ask before Run has joined a network.
func TestStatusBeforeRun(t *testing.T) {
	n, err := New(Options{StateDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if s := n.Status(); s.State != StateStarting || s.Node.Name != "" || s.Network.Control.State != string(coord.PhaseConnecting) {
		t.Errorf("%+v", s)
	}
}

// TestStatusRefusals: status says what was refused, by whom, and how to ask for it.
func TestStatusRefusals(t *testing.T) {
	s := testSnapshot()
	for _, r := range []struct {
		proto  uint8
		remote string
	}{{protoUDP, "192.168.1.201:53"}, {protoTCP, "192.168.1.201:80"}, {protoICMP, "192.168.1.201:0"}, {protoTCP, "198.51.100.1:80"}} {
		s.guard.refused = append(s.guard.refused, filter.Refusal{Proto: r.proto, Remote: netip.MustParseAddrPort(r.remote), At: testNow.Add(-3 * time.Second)})
	}
	s.plan.Closed = []netip.Prefix{prefix("10.77.0.0/16")}
	for _, remote := range []string{"10.77.0.1:80", "10.78.0.1:80"} { // the second may be nobody's at all
		s.guard.refused = append(s.guard.refused, filter.Refusal{Proto: protoTCP, Remote: netip.MustParseAddrPort(remote), At: testNow.Add(-4 * time.Second), Nowhere: true})
	}
	got := s.status()
	var list []string
	for _, r := range got.Refusals {
		list = append(list, r.Target+" "+r.By)
	}
	want := []string{"192.168.1.201:53/udp lab", "192.168.1.201:80 lab", "192.168.1.201/icmp lab", "198.51.100.1:80 ", "10.77.0.1:80 "}
	if !slices.Equal(list, want) {
		t.Errorf("got %q, want %q", list, want)
	}
	h := got.Health[len(got.Health)-1]
	if h.ID != HealthRefused || h.Severity != SeverityInfo || h.Fix != "ask for access: overlayd request 192.168.1.201:53/udp" ||
		h.Title != "192.168.1.201:53/udp was refused by the policy that lab enforces, 3s ago; and 4 more of late: overlayd status --json" {
		t.Errorf("%+v", h)
	}
}

// TestBarred: who takes no part is told so, with the code for it, and not that
// some address is unknown.
func TestBarred(t *testing.T) {
	for state, want := range map[coord.NodeState]struct {
		code int
		says string
	}{
		coord.NodeExpired:  {ExitDenied, "the key of this machine expired"},
		coord.NodeDisabled: {ExitDenied, "an admin disabled"},
		coord.NodePending:  {ExitNotJoined, "this machine waits until an admin"},
	} {
		m := testSnapshot().m
		m.Self.State = state
		p := barred(m)
		if p == nil {
			t.Errorf("%s: takes part", state)
			continue
		}
		f := (&DialError{Reason: ReasonBarred, Target: "nas:80", barred: p}).fault()
		if f.Code != want.code || !strings.HasPrefix(f.Message, "connect to nas:80: "+want.says) || f.Hint == "" {
			t.Errorf("%s: %+v", state, f)
		}
	}
	n := dialingNode(t, &fakeSockets{})
	n.look().m.Self.State = coord.NodeExpired
	_, err := n.DialContext(t.Context(), "tcp", "192.168.1.10:80")
	if d, ok := errors.AsType[*DialError](err); !ok || d.Reason != ReasonBarred {
		t.Errorf("a connection from there: %v", err)
	}
	if p := barred(testSnapshot().m); p != nil {
		t.Errorf("an active node: %v", p)
	}
}

// TestPingClosed: who is told that nothing of a network is for this machine is
// told so by ping, too, and how to ask for it.
func TestPingClosed(t *testing.T) {
	m := testMap(testNode("laptop", 11, coord.RoleMember, true))
	m.Closed = []netip.Prefix{prefix(lan)}
	v := view{m: m, plan: testPlan(m, testHost("10.0.0.5/24"))}
	_, err := v.pathTo(netip.MustParseAddr("192.168.1.201"))
	if f := AsFault(err); f.Code != ExitDenied || !strings.Contains(f.Message, "refused by the policy") || !strings.HasSuffix(f.Hint, "overlayd request 192.168.1.201/icmp") {
		t.Errorf("%+v", f)
	}
}

// TestPingOutside: who may reach nothing behind a gateway does not know the
// gateway, and is told where to ask why.
func TestPingOutside(t *testing.T) {
	m := testMap(testNode("laptop", 11, coord.RoleMember, true))
	v := view{m: m, plan: testPlan(m, testHost("10.0.0.5/24"))}
	_, err := v.pathTo(netip.MustParseAddr("192.168.1.201"))
	if f := AsFault(err); f.Code != ExitUnreachable || !strings.Contains(f.Hint, "overlayd explain 192.168.1.201/icmp") {
		t.Errorf("%+v", f)
	}
}
