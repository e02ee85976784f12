package filter

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// flowsOf lists the flows as rule, remote and local.
func (g *rig) flowsOf() string {
	var list []string
	g.f.Flows(g.now, func(f Flow) bool {
		list = append(list, fmt.Sprintf("%s %s %s", f.Rule, f.Remote, f.Local))
		return true
	})
	return strings.Join(list, "; ")
}

func TestSwapCuts(t *testing.T) {
	g := newRig(t, labRules(), Options{})
	g.connect(alice, nas, 40000, 22)
	g.in(Pass, tcpPacket(alice, nas, 40000, 22, ack|psh, 101, 901, 50))
	g.out(Pass, tcpPacket(nas, alice, 22, 40000, ack|psh, 901, 151, 70))
	g.in(Pass, udpPacket(alice, nas, 5000, 53, 30))
	g.connect(bob, nas, 40000, 22)
	g.connect(alice, nas, 40001, 22)
	g.in(Pass, tcpPacket(alice, nas, 40001, 22, rst|ack, 101, 901, 0)) // over, and nothing to cut
	events := make([]Event, 8)
	g.f.Take(events)
	g.now = g.now.Add(5 * time.Second)
	rules := labRules()
	rules.Rules = rules.Rules[1:] // alice has no rule any more
	c := g.swap(rules)
	for _, e := range events[:g.f.Take(events)] {
		if over := e.Remote.Port() == 40001; over != (e.Why == WhyClosed) || over != (e.Silent == 5*time.Second) || !over && e.Why != WhyCut {
			t.Errorf("%s, after %s of silence: %s", e.Remote, e.Silent, e.Why)
		}
	}
	if c.Flows != 2 || len(c.ToTunnel) != 1 || len(c.ToLocal) != 1 {
		t.Fatalf("%d flows cut, %d and %d resets", c.Flows, len(c.ToTunnel), len(c.ToLocal))
	}
	for i, want := range []string{"rst 22>40000 seq 971 ack 151 flags 14", "rst 40000>22 seq 151 ack 971 flags 14"} {
		b := [][]byte{c.ToTunnel[0], c.ToLocal[0]}[i]
		goodChecksums(t, b)
		if got := describe(b); got != want {
			t.Errorf("the reset is %s, want %s", got, want)
		}
	}
	if got := g.flowsOf(); got != "admin 172.18.0.13:40000 192.168.1.201:22" {
		t.Errorf("left: %s", got)
	}
	// Whatever still comes, from either side, is dropped and reset.
	if got := describe(g.in(DropCut, tcpPacket(alice, nas, 40000, 22, ack, 151, 971, 10))); got != "rst 22>40000 seq 971 ack 0 flags 4" {
		t.Errorf("alice gets %s", got)
	}
	if got := describe(g.out(DropCut, tcpPacket(nas, alice, 22, 40000, ack, 971, 151, 10))); got != "rst 40000>22 seq 151 ack 0 flags 4" {
		t.Errorf("the nas gets %s", got)
	}
	if got := describe(g.in(DropCut, udpPacket(alice, nas, 5000, 53, 30))); got != "icmp 3/13 from "+gateway {
		t.Errorf("alice gets %s", got)
	}
	g.out(DropCut, udpPacket(nas, alice, 53, 5000, 30))
	g.in(DropDenied, tcpPacket(alice, nas, 40000, 22, syn, 1, 0, 0))
	// The rule comes back: so does what is sent from now on.
	g.swap(labRules())
	g.in(Pass, tcpPacket(alice, nas, 40000, 22, syn, 1, 0, 0))
	g.in(Pass, udpPacket(alice, nas, 5000, 53, 30))
	if n := g.counter("flows_cut"); n != 2 {
		t.Errorf("%d cut in all", n)
	}
}

// A flow that another rule allows goes on under that one.
func TestSwapKeeps(t *testing.T) {
	g := newRig(t, labRules(), Options{})
	g.connect(alice, nas, 40000, 22)
	rules := labRules()
	rules.Rules[0].Name = "newer"
	if c := g.swap(rules); c.Flows != 0 || !strings.HasPrefix(g.flowsOf(), "newer ") {
		t.Errorf("%d cut, left: %s", c.Flows, g.flowsOf())
	}
	// The address belongs to somebody else now.
	rules = labRules()
	rules.Sources[0].User, rules.Sources[0].Node = "carol", "carol-1"
	if c := g.swap(rules); c.Flows != 1 {
		t.Errorf("%d cut when the address changes hands", c.Flows)
	}
}

// What this node began ends when the peer is none any more.
func TestSwapCutsOutward(t *testing.T) {
	g := newRig(t, labRules(), Options{})
	g.out(Pass, udpPacket(gateway, alice, 5000, 9, 1))
	g.out(Pass, udpPacket(gateway, "10.9.0.1", 5000, 9, 1)) // behind some peer
	rules := labRules()
	rules.Sources = rules.Sources[1:]
	if c := g.swap(rules); c.Flows != 1 || len(c.ToLocal)+len(c.ToTunnel) != 0 {
		t.Errorf("%+v", c)
	}
	// An answer must not open again what was cut, nor may this side's next packet.
	g.in(DropCut, udpPacket(alice, gateway, 9, 5000, 1))
	g.out(DropCut, udpPacket(gateway, alice, 5000, 9, 1))
}

// A service of this node that keeps sending must not turn a flow that was cut
// into one that this side began.
func TestCutIsNotReopenedFromWithin(t *testing.T) {
	rules := labRules()
	g := newRig(t, rules, Options{})
	g.connect(bob, gateway, 40000, 22)
	g.in(Pass, udpPacket(bob, gateway, 5000, 53, 1))
	g.now = g.now.Add(50 * time.Minute) // the connection was idle for long
	g.in(Pass, udpPacket(bob, gateway, 5000, 53, 1))
	rules.Rules = rules.Rules[:1]
	if c := g.swap(rules); c.Flows != 2 {
		t.Fatalf("%d cut", c.Flows)
	}
	for range 300 {
		g.now = g.now.Add(time.Second)
		g.f.Tick(g.now)
		g.out(DropCut, tcpPacket(gateway, bob, 22, 40000, ack, 901, 101, 10))
		g.out(DropCut, udpPacket(gateway, bob, 53, 5000, 1))
	}
	g.in(DropCut, udpPacket(bob, gateway, 5000, 53, 1))
	g.in(DropCut, tcpPacket(bob, gateway, 40000, 22, ack, 101, 901, 1))
	// Once it is forgotten, TCP is still nothing this side began.
	g.now = g.now.Add(cutIdle)
	for range sweepParts {
		g.f.Tick(g.now)
	}
	g.out(DropNoFlow, tcpPacket(gateway, bob, 22, 40000, ack, 901, 101, 10))
}

func TestDeadline(t *testing.T) {
	rules := labRules()
	until := start.Add(5 * time.Second)
	rules.Rules[0].When = deadline(until)
	g := newRig(t, rules, Options{})
	g.connect(alice, nas, 40000, 22)
	g.now = until.Add(-time.Millisecond)
	if c := g.f.Tick(g.now); c.Flows != 0 {
		t.Fatalf("%d cut before the deadline", c.Flows)
	}
	g.in(Pass, tcpPacket(alice, nas, 40001, 22, syn, 1, 0, 0))
	g.now = until
	// A new flow is refused at once, even before the tick.
	g.in(DropDenied, tcpPacket(alice, nas, 40002, 22, syn, 1, 0, 0))
	c := g.f.Tick(g.now)
	if c.Flows != 2 || len(c.ToTunnel) != 2 || len(c.ToLocal) != 2 {
		t.Errorf("%+v", c)
	}
	if c := g.f.Tick(g.now.Add(time.Second)); c.Flows != 0 {
		t.Errorf("%d cut twice", c.Flows)
	}
	// The clock is set back: the rule holds again.
	g.now = until.Add(-time.Second)
	g.f.Tick(g.now)
	g.in(Pass, tcpPacket(alice, nas, 40003, 22, syn, 1, 0, 0))
}

func TestSwapRefuses(t *testing.T) {
	g := newRig(t, labRules(), Options{})
	rules := labRules()
	rules.Rules[1].To = []string{"nowhere"}
	if _, err := g.f.Swap(g.now, rules); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("error %v", err)
	}
	g.in(Pass, tcpPacket(bob, other, 1, 80, syn, 1, 0, 0)) // the old rules hold
	if _, err := New(Options{}, start).Swap(start, Rules{Rules: []Rule{{Name: "x", From: []string{"y"}, To: []string{"z"}}}}); err == nil {
		t.Error("a rule without its sets is taken")
	}
}

// A route to all of one family is none to the other, and what is no prefix is
// an error and not everything.
func TestFamilies(t *testing.T) {
	rules := labRules()
	rules.To[0].Prefixes = ips("::/0")
	g := newRig(t, rules, Options{})
	g.in(Pass, tcpPacket(alice6, "2001:db8::1", 1, 22, syn, 1, 0, 0))
	g.in(DropDenied, tcpPacket(alice, nas, 1, 22, syn, 1, 0, 0))
	rules.To[0].Prefixes = ips("0.0.0.0/0")
	g.swap(rules)
	g.in(Pass, tcpPacket(alice, "8.8.8.8", 1, 22, syn, 1, 0, 0))
	g.in(DropDenied, tcpPacket(alice6, nas6, 1, 22, syn, 1, 0, 0))
	for _, bad := range []netip.Prefix{{}, netip.MustParsePrefix("::ffff:0:0/96")} {
		for _, r := range []Rules{{To: []Set{{"x", []netip.Prefix{bad}}}}, {From: []Set{{"x", []netip.Prefix{bad}}}}, {Routes: []netip.Prefix{bad}},
			{Self: []netip.Addr{bad.Addr()}}, {Sources: []Source{{Address: bad.Addr()}}}} {
			if _, err := g.f.Swap(g.now, r); err == nil {
				t.Errorf("%+v is taken", r)
			}
		}
	}
}

// A filter without rules lets nothing in.
func TestNoRules(t *testing.T) {
	f := New(Options{}, start)
	var b Batch
	f.In(start, [][]byte{udpPacket(alice, nas, 1, 53, 1), tcpPacket(alice, nas, 1, 22, ack, 1, 1, 0), ping(alice, nas, 1)}, &b)
	for i, v := range b.Verdicts {
		if v == Pass {
			t.Errorf("packet %d passes", i)
		}
	}
}

// After a restart, live connections go on, if they may.
func TestAdoption(t *testing.T) {
	f := New(Options{}, start)
	g := &rig{t: t, f: f, now: start}
	g.swap(labRules())
	// Of clients of the LAN: whoever speaks first.
	g.in(Pass, tcpPacket(alice, nas, 40000, 22, ack, 100, 900, 10))
	g.out(Pass, tcpPacket(nas, alice, 22, 40001, ack, 900, 100, 10))
	g.in(Pass, tcpPacket(alice, nas, 40001, 22, ack, 100, 910, 10))
	g.out(Pass, udpPacket(nas, alice, 53, 5000, 10))
	if strings.Count(g.flowsOf(), "ssh") != 3 {
		t.Errorf("flows: %s", g.flowsOf())
	}
	// What they may not begin, they may not go on with.
	g.in(DropDenied, tcpPacket(alice, nas, 40000, 80, ack, 100, 900, 10))
	g.out(DropNotOwn, tcpPacket(nas, alice, 80, 40000, ack, 900, 100, 10))
	g.out(DropNotOwn, udpPacket(nas, alice, 123, 5000, 10))
	// Of this node: to hosts behind peers, and for a while to peers.
	far := "10.9.0.1"
	g.in(Pass, tcpPacket(far, gateway, 22, 50000, ack, 100, 900, 10))
	g.out(Pass, tcpPacket(gateway, far, 50001, 22, ack, 100, 900, 10))
	g.in(Pass, tcpPacket(alice, gateway, 22, 50002, ack, 100, 900, 10))
	g.out(Pass, tcpPacket(gateway, alice, 50003, 22, ack, 100, 900, 10))
	g.out(DropNoFlow, tcpPacket(gateway, alice, 22, 50003, ack, 100, 900, 10)) // a service of ours
	g.in(DropNoFlow, flagged(tcpPacket(far, gateway, 22, 50009, syn, 100, 0, 0), syn|ack))
	g.in(DropStranger, tcpPacket(far, gateway, 22, 50010, syn, 100, 0, 0))
	g.now = g.now.Add(adoptFor)
	g.in(DropNoFlow, tcpPacket(far, gateway, 22, 50004, ack, 100, 900, 10))
	g.in(DropDenied, tcpPacket(alice, gateway, 22, 50005, ack, 100, 900, 10))
	g.out(DropNoFlow, tcpPacket(gateway, alice, 50006, 22, ack, 100, 900, 10))
	g.out(Pass, tcpPacket(gateway, far, 50007, 22, ack, 100, 900, 10))
}

// Neither denied nor half-open flows push established ones out, nor do one
// source's keep another's out.
func TestFloods(t *testing.T) {
	const flows = 64 * 64
	rules := labRules()
	mallory := "172.18.0.66"
	rules.Sources = append(rules.Sources, Source{Address: netip.MustParseAddr(mallory), Node: "mallory-1", User: "mallory"})
	rules.From[1].Prefixes = append(rules.From[1].Prefixes, ips(mallory)...)
	g := newRig(t, rules, Options{Flows: flows, FlowsPerSource: flows})
	const friends = flows / 4
	for i := range friends {
		g.connect(bob, nas, uint16(10000+i), 80)
	}
	established := func() (n int) {
		g.f.Flows(g.now, func(f Flow) bool {
			if f.Established && f.User == "bob" {
				n++
			}
			return true
		})
		return n
	}
	var batch [][]byte
	flood := func(make func(i int) []byte) {
		for i := range 8 * flows {
			batch = append(batch[:0], make(i))
			g.f.In(g.now, batch, &g.b)
		}
		g.t.Helper()
		if n := established(); n != friends {
			t.Errorf("%d of %d established flows are left", n, friends)
		}
		g.connect(bob, other, 9, 80) // and a new one gets in
		g.f.Cut(g.now, func(f Flow) bool { return f.Remote.Port() == 9 })
	}
	flood(func(i int) []byte { return tcpPacket(mallory, nas, uint16(i), 80, syn, 1, 0, 0) })
	flood(func(i int) []byte { return udpPacket(mallory, nas, uint16(i), 80, 1) })
	flood(func(i int) []byte { return ping(mallory, nas, uint16(i)) })
	flood(func(i int) []byte { return tcpPacket(alice, nas, uint16(i), 80, syn, 1, 0, 0) })
	if g.counter("flows_unproved") > flows/2 {
		t.Errorf("%d unproved flows", g.counter("flows_unproved"))
	}
	// Established flows in numbers are bounded by source.
	g = newRig(t, rules, Options{Flows: flows, FlowsPerSource: 100})
	for i := range 100 {
		g.connect(mallory, nas, uint16(10000+i), 80)
	}
	g.in(DropSourceFull, tcpPacket(mallory, nas, 9, 80, syn, 1, 0, 0))
	g.connect(bob, nas, 9, 80)
	g.f.Cut(g.now, func(f Flow) bool { return f.Remote.Port() == 10000 })
	g.in(Pass, tcpPacket(mallory, nas, 9, 80, syn, 1, 0, 0))
	g.in(DropSourceFull, tcpPacket(mallory, nas, 10, 80, syn, 1, 0, 0))
}

// A table full of established flows takes a new one in only for one that has
// been idle for long.
func TestFull(t *testing.T) {
	const flows = smallestLimit * shards
	g := newRig(t, labRules(), Options{Flows: 1, FlowsPerSource: 2 * flows})
	full := 0
	for i := range 4 * flows {
		p := tcpPacket(bob, nas, uint16(1000+i), 80, syn, 1, 0, 0)
		g.f.In(g.now, [][]byte{p}, &g.b)
		if g.b.Verdicts[0] == DropTableFull {
			full++
			continue
		}
		g.out(Pass, tcpPacket(nas, bob, 80, uint16(1000+i), syn|ack, 1, 2, 0))
		g.in(Pass, tcpPacket(bob, nas, uint16(1000+i), 80, ack, 2, 2, 0))
	}
	if n := g.counter("flows"); n != flows || full != 3*flows {
		t.Errorf("%d flows, %d refused", n, full)
	}
	g.now = g.now.Add(idleEnough + time.Second)
	g.in(Pass, tcpPacket(bob, nas, 9, 80, syn, 1, 0, 0))
}

func TestAllocations(t *testing.T) {
	g := newRig(t, labRules(), Options{})
	g.connect(alice, nas, 40000, 22)
	batch := [][]byte{
		tcpPacket(alice, nas, 40000, 22, ack, 101, 901, 1000), udpPacket(bob, nas, 1, 2, 3), ping(alice, nas, 1),
		tcpPacket(alice, nas, 40000, 80, syn, 101, 0, 0), udpPacket(alice, nas, 1, 2, 3), nil,
		unreachable(alice, nas, tcpPacket(nas, alice, 22, 40000, ack, 1, 1, 0)),
		fragments4(alice, nas, udp, 1, 0, true, udpDatagram(5000, 53, 56)), fragments4(alice, nas, udp, 1, 64, false, make([]byte, 100)),
	}
	answers := [][]byte{tcpPacket(nas, alice, 22, 40000, ack, 901, 101, 1000), tcpPacket(other, alice, 1, 2, ack, 1, 1, 1)}
	port := uint16(0)
	if n := testing.AllocsPerRun(1000, func() {
		port++
		g.now = g.now.Add(time.Second)
		batch[1][20], batch[1][21] = byte(port>>8), byte(port)
		g.f.In(g.now, batch, &g.b)
		g.f.Out(g.now, answers, &g.b)
		g.f.Tick(g.now)
	}); n != 0 {
		t.Errorf("%v allocations for each batch", n)
	}
}

// TestCutFromTheOtherEnd: alice's machine is told of her end first, and its reset
// comes before ours; what both sides had closed counts for nothing.
func TestCutFromTheOtherEnd(t *testing.T) {
	g := newRig(t, labRules(), Options{})
	g.connect(alice, nas, 40000, 22)
	g.connect(alice, nas, 40001, 22)
	g.in(Pass, tcpPacket(alice, nas, 40001, 22, fin|ack, 101, 901, 0))
	g.out(Pass, tcpPacket(nas, alice, 22, 40001, fin|ack, 901, 102, 0))
	g.in(Pass, tcpPacket(alice, nas, 40000, 22, rst|ack, 101, 901, 0))
	if going := g.flowsOf(); going != "" {
		t.Errorf("what is closed goes on: %s", going)
	}
	events := make([]Event, 8)
	g.f.Take(events)
	g.now = g.now.Add(50 * time.Millisecond)
	rules := labRules()
	rules.Rules = rules.Rules[1:] // alice has no rule any more
	if c := g.swap(rules); c.Flows != 1 || len(c.ToTunnel)+len(c.ToLocal) != 0 {
		t.Errorf("%d flows cut, %d and %d resets", c.Flows, len(c.ToTunnel), len(c.ToLocal))
	}
	for _, e := range events[:g.f.Take(events)] {
		if want := map[uint16]string{40000: WhyCut, 40001: WhyClosed}[e.Remote.Port()]; e.Why != want {
			t.Errorf("%s: %s, want %s", e.Remote, e.Why, want)
		}
	}
}

// TestResetThatIsNone: a flow goes on for people, and is cut as one that does,
// when the other side did not take the reset.
func TestResetThatIsNone(t *testing.T) {
	g := newRig(t, labRules(), Options{})
	g.connect(alice, nas, 40000, 22)
	g.connect(alice, nas, 40001, 22)
	g.in(Pass, tcpPacket(alice, nas, 40000, 22, rst, 99101, 0, 0))
	g.in(Pass, tcpPacket(alice, nas, 40001, 22, rst, 101, 0, 0))
	g.now = g.now.Add(100 * time.Millisecond)
	g.out(Pass, tcpPacket(nas, alice, 22, 40000, ack, 901, 101, 10))
	g.out(Pass, tcpPacket(nas, alice, 22, 40001, ack, 901, 101, 10))
	if going := g.flowsOf(); going != "" {
		t.Errorf("what was on the way is taken for more: %s", going)
	}
	g.now = g.now.Add(2 * time.Second)
	g.in(Pass, tcpPacket(alice, nas, 40000, 22, rst, 99101, 0, 0))
	g.in(Pass, tcpPacket(alice, nas, 40000, 22, ack, 101, 911, 10))
	if going := g.flowsOf(); going != "ssh 172.18.0.11:40000 192.168.1.201:22" {
		t.Errorf("these go on: %s", going)
	}
	g.now = g.now.Add(5 * time.Second)
	rules := labRules()
	rules.Rules = rules.Rules[1:] // alice has no rule any more
	if c := g.swap(rules); c.Flows != 1 || len(c.ToTunnel) != 1 || len(c.ToLocal) != 1 {
		t.Errorf("%d flows cut, %d and %d resets", c.Flows, len(c.ToTunnel), len(c.ToLocal))
	}
}
