package filter

import (
	"bytes"
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// traffic makes packets between a few addresses and ports, so that flows meet
// again and again.
type traffic struct{ *rand.Rand }

func (r traffic) pick(list ...string) string { return list[r.IntN(len(list))] }

func (r traffic) packet(out bool) []byte {
	remote, local := r.pick(alice, bob, "172.18.0.99", "10.9.0.1"), r.pick(gateway, nas, other)
	if r.IntN(4) == 0 {
		remote, local = alice6, r.pick(gateway6, nas6)
	}
	src, dst := remote, local
	sport, dport := uint16(40000+r.IntN(2)), []uint16{22, 53, 80}[r.IntN(3)]
	if out {
		src, dst = local, remote
		sport, dport = dport, sport
	}
	if r.IntN(8) == 0 {
		sport, dport = dport, sport
	}
	switch r.IntN(5) {
	case 0:
		return udpPacket(src, dst, sport, dport, r.IntN(20))
	case 1:
		return ping(src, dst, uint16(r.IntN(2)))
	case 2:
		return pong(src, dst, uint16(r.IntN(2)))
	}
	flags := []uint8{syn, syn | ack, ack, ack | psh, ack | fin, rst, rst | ack}[r.IntN(7)]
	return tcpPacket(src, dst, sport, dport, flags, r.Uint32(), r.Uint32(), r.IntN(20))
}

// spoil returns a packet that differs by a byte of its headers, or is shorter.
func (r traffic) spoil(p []byte) []byte {
	p = slices.Clone(p)
	if r.IntN(4) == 0 {
		p = p[:r.IntN(len(p))]
		if len(p) >= 4 {
			binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		}
		return p
	}
	p[r.IntN(min(len(p), minIPv4+minTCP))] ^= 1 << r.IntN(8)
	return p
}

// flows returns those of the filter, without where they lie.
func (g *rig) flows() map[key]flow {
	all := map[key]flow{}
	for i := range g.f.shards {
		for _, f := range g.f.shards[i].flows {
			if f.used {
				f.rule, f.who, f.prev, f.next, f.hash = nil, nil, 0, 0, 0
				all[f.key] = f
			}
		}
	}
	return all
}

// TestRandomTraffic replays random traffic under changing rules and holds every
// verdict against the model: nothing passes that may not, and whatever begins
// and may does pass.
func TestRandomTraffic(t *testing.T) {
	r := traffic{rand.New(rand.NewPCG(7, 7))}
	passed := 0
	for range 60 {
		rules := labRules()
		g := newRig(t, rules, Options{Flows: 1, Events: 16})
		m := &model{rules: rules, flows: map[string]bool{}, first: map[string]string{}}
		for range 1000 {
			g.now = g.now.Add(time.Duration(r.IntN(1000)) * time.Millisecond)
			if r.IntN(50) == 0 {
				rules = labRules()
				rules.Rules = rules.Rules[r.IntN(2) : 1+r.IntN(2)]
				if r.IntN(4) == 0 {
					rules.Sources = rules.Sources[:1+r.IntN(2)]
				}
				g.swap(rules)
				m.rules = rules
			}
			g.f.Tick(g.now)
			out := r.IntN(2) == 0
			b := r.packet(out)
			if out {
				g.f.Out(g.now, [][]byte{b}, &g.b)
			} else {
				g.f.In(g.now, [][]byte{b}, &g.b)
			}
			v := g.b.Verdicts[0]
			if v == Pass {
				passed++
				m.check(t, b, out)
			}
			var p packet
			p.parse(b, false)
			known := m.known(p.src.netip())
			if !out && known && m.allowed(gvisorReads(b)) && p.opens() && v != Pass {
				t.Fatalf("what may begin is %s: %+v", v, p)
			}
		}
	}
	if passed < 5000 {
		t.Errorf("only %d packets passed", passed)
	}
}

// known reports whether an address is somebody's.
func (m *model) known(a netip.Addr) bool {
	for _, s := range m.rules.Sources {
		if s.Address == a {
			return true
		}
	}
	return false
}

// TestBatches: what is decided of packets together is what is decided of them
// one after the other.
func TestBatches(t *testing.T) {
	r := traffic{rand.New(rand.NewPCG(3, 3))}
	for range 20 {
		together, alone := newRig(t, labRules(), Options{}), newRig(t, labRules(), Options{})
		passed := 0
		for range 100 {
			now := together.now.Add(time.Duration(r.IntN(1000)) * time.Millisecond)
			together.now, alone.now = now, now
			out := r.IntN(2) == 0
			decide := func(g *rig, packets [][]byte) {
				if out {
					g.f.Out(now, packets, &g.b)
				} else {
					g.f.In(now, packets, &g.b)
				}
			}
			var batch [][]byte
			for range 1 + r.IntN(12) {
				p := r.packet(out)
				for range 1 + r.IntN(4) { // a run of one flow, and what looks nearly like it
					batch = append(batch, p)
					if r.IntN(4) == 0 {
						batch = append(batch, r.spoil(p))
					}
				}
			}
			decide(together, batch)
			answers := together.b.Answers
			for i, p := range batch {
				decide(alone, [][]byte{p})
				if alone.b.Verdicts[0] != together.b.Verdicts[i] {
					t.Fatalf("packet %d of %d is %s among the others and %s alone: %x", i, len(batch), together.b.Verdicts[i], alone.b.Verdicts[0], p)
				}
				for _, a := range alone.b.Answers {
					if len(answers) == 0 || !bytes.Equal(a, answers[0]) {
						t.Fatalf("packet %d of %d has another answer alone: %x", i, len(batch), a)
					}
					answers = answers[1:]
				}
				if alone.b.Verdicts[0] == Pass {
					passed++
				}
			}
			if len(answers) > 0 {
				t.Fatalf("%d answers come of nothing", len(answers))
			}
		}
		for i, c := range together.f.Counters() {
			if v := alone.f.Counters()[i]; v != c && c.Name != "flow_table_bytes" {
				t.Errorf("%v together, %v alone", c, v)
			}
		}
		if a, b := together.flows(), alone.flows(); !maps.Equal(a, b) {
			t.Errorf("flows are\n%+v together, and\n%+v alone", a, b)
		}
		if passed == 0 {
			t.Error("nothing passed")
		}
	}
}

// Everything at once, for the race detector; the flows add up afterwards.
func TestConcurrent(t *testing.T) {
	g := newRig(t, labRules(), Options{Flows: 2048, Events: 64})
	var wg sync.WaitGroup
	for n := range 4 {
		wg.Go(func() {
			r := traffic{rand.New(rand.NewPCG(1, uint64(n)))}
			var b Batch
			out := n%2 == 0
			for i := range 300 {
				var batch [][]byte
				for range 32 {
					batch = append(batch, r.packet(out))
				}
				now := g.now.Add(time.Duration(i) * time.Second)
				if out {
					g.f.Out(now, batch, &b)
				} else {
					g.f.In(now, batch, &b)
				}
			}
		})
	}
	wg.Go(func() {
		for i := range 100 {
			rules := labRules()
			rules.Rules = rules.Rules[i%2:]
			if _, err := g.f.Swap(g.now.Add(time.Duration(3*i)*time.Second), rules); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Go(func() {
		events := make([]Event, 16)
		for i := range 300 {
			g.f.Tick(g.now.Add(time.Duration(i) * time.Second))
			g.f.Take(events)
			g.f.Flows(g.now, func(f Flow) bool { return f.Proto != 0 })
			g.f.Counters()
		}
	})
	wg.Wait()
	total := 0
	for i := range g.f.shards {
		s := &g.f.shards[i]
		waiting, cuts, used := 0, 0, 0
		for slot := s.waiting.first; slot != 0; slot = s.flows[slot].next {
			waiting++
		}
		for slot := s.cuts.first; slot != 0; slot = s.flows[slot].next {
			cuts++
		}
		for j := range s.flows {
			if fl := &s.flows[j]; fl.used {
				used++
				if n, h := g.f.hash.sum(&fl.key); n != i || s.find(&fl.key, h) != uint32(j) {
					t.Errorf("flow %+v is not found", fl.key)
				}
			}
		}
		if waiting != s.waiting.n || cuts != s.cuts.n || used != s.n {
			t.Errorf("shard %d: %d of %d wait, %d of %d cut, %d of %d used", i, waiting, s.waiting.n, cuts, s.cuts.n, used, s.n)
		}
		total += used
	}
	if total == 0 {
		t.Error("no flow is left to look at")
	}
	g.f.Cut(g.now, func(Flow) bool { return true })
	for a, s := range g.f.index.Load().sources {
		if n := s.load.flows.Load(); n != 0 {
			t.Errorf("%s has %d flows when there are none", a.netip(), n)
		}
	}
}
