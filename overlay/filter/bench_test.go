package filter

import (
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"unsafe"
)

// manyRules has 1,000 users and n rules, of which none but the last leads to
// the benchmark's flows.
func manyRules(n int) Rules {
	r := labRules()
	for i := range 1000 {
		a := netip.AddrFrom4([4]byte{10, 64, byte(i / 250), byte(i%250 + 1)})
		name := fmt.Sprintf("user%d", i)
		r.Sources = append(r.Sources, Source{Address: a, Node: name, User: name})
		r.From = append(r.From, Set{name, []netip.Prefix{netip.PrefixFrom(a, 32)}})
	}
	last := r.Rules[1]
	r.Rules = r.Rules[:0]
	for i := range n - 1 {
		id := fmt.Sprintf("dst%d", i)
		r.To = append(r.To, Set{id, ips(fmt.Sprintf("192.168.1.%d", i%250+1))})
		r.Rules = append(r.Rules, Rule{Name: fmt.Sprintf("r%d", i), From: []string{fmt.Sprintf("user%d", i%1000)}, To: []string{id},
			Services: []Service{{tcp, uint16(1000 + i%7), uint16(1000 + i%7)}, {udp, 53, 53}}})
	}
	r.Rules = append(r.Rules, last)
	return r
}

// established makes n flows of bob's, of which packets are returned.
func established(b *testing.B, rules, n int) (*rig, [][]byte) {
	g := newRig(b, manyRules(rules), Options{FlowsPerSource: 1 << 20})
	packets := make([][]byte, n)
	for i := range n {
		sport, dport := uint16(10000+i%50000), uint16(80+i/50000)
		g.connect(bob, nas, sport, dport)
		packets[i] = tcpPacket(bob, nas, sport, dport, ack, 101, 901, 1300)
	}
	if got := g.counter("flows"); got != uint64(n) {
		b.Fatalf("%d flows", got)
	}
	g.f.Take(make([]Event, 1<<14))
	return g, packets
}

const batchSize = 128

var sizes = []struct{ rules, flows int }{{1, 1}, {1, 100000}, {10000, 1}, {10000, 100000}}

func perPacket(b *testing.B) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/batchSize, "ns/packet")
}

// BenchmarkRun has batches of one flow each: what a bulk transfer looks like.
func BenchmarkRun(b *testing.B) {
	for _, c := range sizes {
		b.Run(fmt.Sprintf("rules=%d,flows=%d", c.rules, c.flows), func(b *testing.B) {
			g, packets := established(b, c.rules, c.flows)
			batch := make([][]byte, batchSize)
			b.ReportAllocs()
			at := 0
			for b.Loop() {
				at = (at + 7919) % len(packets)
				for i := range batch {
					batch[i] = packets[at]
				}
				g.f.In(g.now, batch, &g.b)
			}
			perPacket(b)
		})
	}
}

// BenchmarkMixed has batches in which no two packets are of one flow: the worst
// that established traffic can look like.
func BenchmarkMixed(b *testing.B) {
	for _, c := range sizes[1:] {
		if c.flows == 1 {
			continue
		}
		b.Run(fmt.Sprintf("rules=%d,flows=%d", c.rules, c.flows), func(b *testing.B) {
			g, packets := established(b, c.rules, c.flows)
			batch := make([][]byte, batchSize)
			for i := range batch {
				batch[i] = make([]byte, len(packets[0])) // just decrypted: in the cache
			}
			headers := make([]byte, 0, 40*len(packets))
			for _, p := range packets {
				headers = append(headers, p[:40]...)
			}
			b.ReportAllocs()
			at := 0
			for b.Loop() {
				for i := range batch {
					at = (at + 7919) % len(packets)
					copy(batch[i], headers[40*at:40*at+40])
				}
				g.f.In(g.now, batch, &g.b)
			}
			perPacket(b)
		})
	}
}

// BenchmarkParallel has runs of one flow in each of as many goroutines as there
// are processors.
func BenchmarkParallel(b *testing.B) {
	for _, c := range sizes[1:] {
		b.Run(fmt.Sprintf("rules=%d,flows=%d", c.rules, c.flows), func(b *testing.B) {
			g, packets := established(b, c.rules, c.flows)
			b.ReportAllocs()
			var seed atomic.Int64
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				at, batch, own := int(seed.Add(1))*31, make([][]byte, batchSize), Batch{}
				for pb.Next() {
					at = (at + 7919) % len(packets)
					for i := range batch {
						batch[i] = packets[at]
					}
					g.f.In(g.now, batch, &own)
				}
			})
			perPacket(b)
		})
	}
}

// BenchmarkNew has packets that begin a flow each; the table is full of flows
// that are half open, and each new one evicts one.
func BenchmarkNew(b *testing.B) {
	for _, rules := range []int{1, 10000} {
		b.Run(fmt.Sprintf("rules=%d", rules), func(b *testing.B) {
			g := newRig(b, manyRules(rules), Options{FlowsPerSource: 1 << 20})
			batch := make([][]byte, batchSize)
			for i := range batch {
				batch[i] = tcpPacket(bob, nas, 0, 80, syn, 1, 0, 0)
			}
			b.ReportAllocs()
			n := uint32(0)
			for b.Loop() {
				for _, p := range batch {
					n++
					p[20], p[21], p[22], p[23] = byte(n>>8), byte(n), byte(n>>24), byte(n>>16)
				}
				g.f.In(g.now, batch, &g.b)
			}
			perPacket(b)
		})
	}
}

// BenchmarkDenied has packets that no rule allows.
func BenchmarkDenied(b *testing.B) {
	for _, rules := range []int{1, 10000} {
		b.Run(fmt.Sprintf("rules=%d", rules), func(b *testing.B) {
			g := newRig(b, manyRules(rules), Options{})
			batch := make([][]byte, batchSize)
			for i := range batch {
				batch[i] = tcpPacket(alice, nas, uint16(i+1), 80, syn, 1, 0, 0)
			}
			b.ReportAllocs()
			for b.Loop() {
				g.f.In(g.now, batch, &g.b)
			}
			perPacket(b)
		})
	}
}

// BenchmarkSwap changes the rules under 100,000 flows, all of which stay.
func BenchmarkSwap(b *testing.B) {
	g, _ := established(b, 10000, 100000)
	rules := manyRules(10000)
	for b.Loop() {
		if c := g.swap(rules); c.Flows != 0 {
			b.Fatalf("%d flows cut", c.Flows)
		}
	}
}

func BenchmarkTick(b *testing.B) {
	g, _ := established(b, 10000, 100000)
	for b.Loop() {
		g.f.Tick(g.now)
	}
}

// BenchmarkMemory says what a flow takes, its place in the table included.
func BenchmarkMemory(b *testing.B) {
	const flows = 100000
	g, _ := established(b, 1, flows)
	for b.Loop() {
	}
	b.ReportMetric(float64(g.counter("flow_table_bytes"))/flows, "bytes/flow")
	b.ReportMetric(float64(unsafe.Sizeof(flow{})), "bytes/struct")
}
