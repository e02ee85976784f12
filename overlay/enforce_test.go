package overlay

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"overlayd/overlay/coord"
	"overlayd/overlay/filter"
	"overlayd/overlay/policy"
)

var (
	aliceAddr = netip.MustParseAddr("172.18.0.11")
	nasAddr   = netip.MustParseAddr("192.168.1.201")
	selfAddr  = netip.MustParseAddr("172.18.0.200")
)

// gatewayMap is a gateway's map in which alice may reach the nas by so many
// rules, each for a port from 22 on.
func gatewayMap(version uint64, rules ...policy.NodeRule) *coord.Map {
	self := testNode("gw", 200, coord.RoleGateway, true, approved("192.168.1.0/24"))
	m := testMap(self, testNode("laptop", 11, coord.RoleMember, true))
	m.Version = version
	m.Ruleset = &policy.Ruleset{
		Node: "gw", Self: []netip.Addr{selfAddr}, Routes: []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24")},
		Sources: []policy.Source{{Address: aliceAddr, Node: "laptop", User: "alice"}},
		From:    []policy.Set{{ID: "user:alice", Prefixes: []netip.Prefix{netip.PrefixFrom(aliceAddr, 32)}}},
		To:      []policy.Set{{ID: "nas", Prefixes: []netip.Prefix{netip.PrefixFrom(nasAddr, 32)}}},
		Rules:   rules,
	}
	return m
}

func allowPort(port uint16, when *policy.Schedule) policy.NodeRule {
	return policy.NodeRule{ID: "r", Name: "r", From: []string{"user:alice"}, To: []string{"nas"}, When: when,
		Services: []policy.Service{{Proto: policy.ProtoTCP, First: port, Last: port}}}
}

// asks sends alice's SYN to a port of the nas, and returns what the filter says.
func asks(e *enforcer, now time.Time, port uint16) filter.Verdict {
	var b filter.Batch
	e.filter.In(now, [][]byte{firstPacket(aliceAddr, nasAddr, protoTCP, port)}, &b)
	return b.Verdicts[0]
}

// TestEnforcerAcknowledges: the coordinator hears of a map when its rules are in
// force and its peers are right, with the flows that ended on the way, and not
// of one whose rules cannot be used.
func TestEnforcerAcknowledges(t *testing.T) {
	now := testNow
	e := newEnforcer(slog.New(slog.DiscardHandler))
	reported := func() bool {
		select {
		case <-e.report:
			return true
		default:
			return false
		}
	}
	e.heed(gatewayMap(3, allowPort(22, nil)), now)
	if reported() {
		t.Error("reported before the peers are right")
	}
	e.peered(3)
	if got := e.tells(); !reported() || got != (coord.Applied{MapVersion: 3}) {
		t.Errorf("told %+v", got)
	}
	e.peered(3)
	if reported() {
		t.Error("reported again though nothing changed")
	}
	if v := asks(e, now, 22); v != filter.Pass {
		t.Fatalf("port 22: %s", v)
	}

	e.heed(gatewayMap(4, allowPort(23, nil)), now)
	e.peered(3) // of the map before, which was being applied
	if reported() {
		t.Error("reported an older map's peers")
	}
	e.peered(4)
	if got := e.tells(); !reported() || got != (coord.Applied{MapVersion: 4, FlowsCut: 1}) {
		t.Errorf("told %+v", got)
	}
	if v := asks(e, now, 22); v != filter.DropDenied {
		t.Errorf("port 22 after it was taken away: %s", v)
	}

	broken := gatewayMap(5, allowPort(24, nil))
	broken.Ruleset.To = nil
	e.heed(broken, now)
	e.peered(5)
	if got := e.tells(); reported() || got.MapVersion != 4 {
		t.Errorf("told %+v of rules that cannot be used", got)
	}
	if s := e.status(broken, now); s.failed == nil || len(s.health()) != 1 || s.health()[0].ID != "policy_not_applied" {
		t.Errorf("status %+v", s.health())
	}
	if v := asks(e, now, 23); v != filter.Pass {
		t.Errorf("the old rules do not hold any more: %s", v)
	}
	e.heed(gatewayMap(6), now)
	if s := e.status(broken, now); s.failed != nil {
		t.Error("the failure stays")
	}
}

// TestEnforcerWithoutPolicy: no ruleset is a warning, and the first that cannot
// be used lets nobody in.
func TestEnforcerWithoutPolicy(t *testing.T) {
	e := newEnforcer(slog.New(slog.DiscardHandler))
	m := gatewayMap(1)
	m.Ruleset = nil
	e.heed(m, testNow)
	if s := e.status(m, testNow); e.filter != nil || !s.absent || s.health()[0].ID != "policy_absent" {
		t.Errorf("%+v", s)
	}
	m = gatewayMap(2, allowPort(22, nil))
	m.Ruleset.From = nil
	e.heed(m, testNow)
	if e.failed == nil || asks(e, testNow, 22) == filter.Pass {
		t.Error("rules that cannot be used let somebody in")
	}
}

// TestGrantsEndByThisClock: a rule's end cuts its flows without any map.
func TestGrantsEndByThisClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEnforcer(slog.New(slog.DiscardHandler))
		began := time.Now()
		e.heed(gatewayMap(1, allowPort(22, &policy.Schedule{Until: began.Add(5 * time.Second)})), began)
		ctx, cancel := context.WithCancel(t.Context())
		var events []filter.Event
		done := make(chan error)
		go func() { done <- e.run(ctx, func(ev *filter.Event) { events = append(events, *ev) }) }()
		if v := asks(e, time.Now(), 22); v != filter.Pass {
			t.Fatalf("during the grant: %s", v)
		}
		time.Sleep(4900 * time.Millisecond)
		if n := len(e.flows(time.Now(), func(filter.Flow) bool { return true })); n != 1 {
			t.Errorf("%d flows before the deadline", n)
		}
		time.Sleep(100*time.Millisecond + tickEvery + settle)
		if n := len(e.flows(time.Now(), func(filter.Flow) bool { return true })); n != 0 {
			t.Errorf("%d flows after the deadline", n)
		}
		if v := asks(e, time.Now(), 22); v != filter.DropDenied {
			t.Errorf("after the deadline: %s", v)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if len(events) != 3 || events[0].Kind != filter.FlowBegan || events[1].Why != filter.WhyCut || events[2].Kind != filter.FlowDenied {
			t.Errorf("told of %+v", events)
		}
	})
}

// TestFlowsToLostPeers: what this side began ends when nobody carries its other
// end any more, and only then.
func TestFlowsToLostPeers(t *testing.T) {
	e := newEnforcer(slog.New(slog.DiscardHandler))
	gw := testNode("gw", 200, coord.RoleGateway, true, approved("192.168.1.0/24"))
	other := testNode("other", 12, coord.RoleMember, true)
	with := testMap(testNode("laptop", 11, coord.RoleMember, true), other, gw)
	with.Ruleset = &policy.Ruleset{Node: "laptop", Self: []netip.Addr{aliceAddr}}
	e.heed(with, testNow)
	var b filter.Batch
	e.filter.Out(testNow, [][]byte{firstPacket(aliceAddr, nasAddr, protoTCP, 22), firstPacket(aliceAddr, other.Addrs[0], protoTCP, 22)}, &b)
	count := func() int { return len(e.flows(testNow, func(filter.Flow) bool { return true })) }
	if count() != 2 {
		t.Fatalf("%d flows", count())
	}
	e.heed(with, testNow)
	if count() != 2 {
		t.Errorf("%d flows after the same map", count())
	}
	without := testMap(with.Self, other)
	without.Ruleset = with.Ruleset
	e.heed(without, testNow)
	if count() != 1 {
		t.Errorf("%d flows without the gateway", count())
	}
	e.end(testNow)
	if count() != 0 {
		t.Errorf("%d flows at the end", count())
	}
}

// TestPeersWithoutRules: what this side begins goes to the peers of the newest map,
// also when its rules cannot be used.
func TestPeersWithoutRules(t *testing.T) {
	e := newEnforcer(slog.New(slog.DiscardHandler))
	other := testNode("other", 12, coord.RoleMember, true)
	e.heed(gatewayMap(1, allowPort(22, nil)), testNow)
	newer := gatewayMap(2, allowPort(22, nil))
	newer.Peers, newer.Ruleset.To = []coord.Node{other}, nil
	e.heed(newer, testNow)
	var b filter.Batch
	e.filter.Out(testNow, [][]byte{firstPacket(selfAddr, other.Addrs[0], protoTCP, 22), firstPacket(selfAddr, aliceAddr, protoTCP, 22)}, &b)
	if e.failed == nil || b.Verdicts[0] != filter.Pass || b.Verdicts[1] != filter.DropNowhere {
		t.Errorf("to a peer: %s; to one that left: %s (%v)", b.Verdicts[0], b.Verdicts[1], e.failed)
	}
}

// TestAskFirst: who lets others in waits for the coordinator, but not for long,
// and only for the relays when it is known to be away.
func TestAskFirst(t *testing.T) {
	serves := gatewayMap(1, allowPort(22, nil))
	closed := gatewayMap(1)
	old := gatewayMap(1)
	old.Ruleset = nil
	for _, tt := range []struct {
		name  string
		v     view
		since time.Duration
		want  time.Duration
	}{
		{"cached", view{m: serves}, 0, askWithin},
		{"waited a while", view{m: serves}, 400 * time.Millisecond, 600 * time.Millisecond},
		{"waited enough", view{m: serves}, 2 * time.Second, -time.Second},
		{"answered", view{m: serves, fresh: true}, 0, 0},
		{"away", view{m: serves, control: coord.ControlState{Phase: coord.PhaseLost}}, 0, askWithin},
		{"away, and the relays were asked", view{m: serves, asked: true, control: coord.ControlState{Phase: coord.PhaseLost}}, 0, 0},
		{"the relays were asked first", view{m: serves, asked: true}, 0, askWithin},
		{"runs already", view{m: serves, live: &machine{}}, 0, 0},
		{"lets nobody in", view{m: closed}, 0, 0},
		{"a gateway without a policy", view{m: old}, 0, askWithin},
	} {
		if got := askFirst(tt.v, tt.since); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
