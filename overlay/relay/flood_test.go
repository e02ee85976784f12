package relay

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

// A flood of forged ATTACHes from all over the world must keep no node out: not
// one that is new as long as the relay can look at every MAC, and at a multiple
// of that none that has been here before.
func TestFlood(t *testing.T) {
	for _, c := range []struct {
		name   string
		flood  int // forged ATTACHes per second
		before bool
		first  float64 // share of nodes that get in with their first try, at least
	}{
		{"20,000 a second, a relay just started", 20_000, false, 1},
		{"90,000 a second, a relay just started", 90_000, false, 1},
		{"300,000 a second, nodes that were here before", 300_000, true, 0.98}, // one may share a cell,
		{"300,000 a second, a relay just started", 300_000, false, 0.05},
	} {
		t.Run(c.name, func(t *testing.T) {
			const nodes = 200
			start := time.Now()
			d := newDoor(testSecret, start, newTable(1<<16, 1<<14))
			frames := make([][]byte, nodes)
			for i := range frames {
				b, k := pass(testNetwork, Label(i+1), 1, start.Add(time.Hour))
				frames[i] = attach{nonce: nonce{byte(i), byte(i >> 8)}, ticket: [ticketSize]byte(b)}.Append(nil, k)
				if c.before {
					d.control(nil, start, byUDP(nodeHost(i, 1)), frames[i])
				}
			}
			forged := append([]byte(nil), frames[0]...)
			forged[len(forged)-1]++
			rng := rand.New(rand.NewPCG(1, 1))
			seen := map[event]int{}
			let := 0
			const lead = 1 // second in which the flood uses up every burst
			for i := range c.flood * (lead + 1) {
				gap := time.Second / time.Duration(c.flood)
				now := start.Add(time.Duration(i)*gap + time.Duration(rng.Int64N(int64(gap))))
				src := rng.Uint32()
				addr := netip.AddrFrom4([4]byte{byte(src >> 24), byte(src >> 16), byte(src >> 8), byte(src)})
				_, what := d.control(nil, now, byUDP(netip.AddrPortFrom(addr, 1)), forged)
				seen[what]++
				if n := i - c.flood*lead; n >= 0 && n%(c.flood/nodes) == 0 && n/(c.flood/nodes) < nodes {
					k := n / (c.flood / nodes)
					now = now.Add(time.Duration(rng.Int64N(int64(gap))))
					if _, what := d.control(nil, now, byUDP(nodeHost(k, 2)), frames[k]); what == challenged {
						let++
					}
				}
			}
			t.Logf("%d of %d nodes got in with one try; of the flood, %d were looked at and %d not", let, nodes, seen[dropForged], seen[dropLimited])
			if float64(let) < c.first*nodes {
				t.Errorf("%d of %d nodes got in", let, nodes)
			}
		})
	}
}

// Forged ATTACHes in the name of one source must not keep that one out once it
// was here, nor take anything from the other members; and what nobody had the
// time to look at is not held against its source.
func TestForgedSource(t *testing.T) {
	start := time.Now()
	right := func(i int) []byte {
		b, k := pass(testNetwork, Label(i+1), 1, start.Add(time.Hour))
		return attach{nonce: nonce{byte(i)}, ticket: [ticketSize]byte(b)}.Append(nil, k)
	}
	forged := right(0)
	forged[len(forged)-1]++
	flood := func(d *door, from netip.AddrPort, n int) (looked int) {
		for range n {
			if _, what := d.control(nil, start, byUDP(from), forged); what == dropForged {
				looked++
			}
		}
		return looked
	}
	let := func(d *door, i int) bool {
		_, what := d.control(nil, start, byUDP(nodeHost(i, 1)), right(i))
		return what == challenged
	}

	d := newDoor(testSecret, start, newTable(16, 16))
	let(d, 0)
	let(d, 1)
	flood(d, nodeHost(0, 9), 2*forgedBurst)
	if !let(d, 0) {
		t.Error("a member is kept out by forgeries in its name")
	}
	flood(d, nodeHost(0, 9), 2*(membersBurst+strangersBurst))
	if !let(d, 1) {
		t.Error("forgeries in one member's name keep another one out")
	}
	if looked := flood(d, nodeHost(2, 9), 2*forgedBurst); looked != 0 {
		t.Errorf("the strangers' share was used up, and %d were looked at", looked)
	}
	d.strangers = newLimiter(forAll, strangersTotal, strangersBurst)
	if looked := flood(d, nodeHost(2, 9), 2*forgedBurst); looked < forgedBurst {
		t.Errorf("of the next, only %d were looked at", looked)
	}
	if let(d, 2) {
		t.Error("forgeries of one stranger have no limit")
	}
}

// nodeHost is the address of one of many nodes.
func nodeHost(i int, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), port)
}

func TestMemory(t *testing.T) {
	m := newMemory(16, time.Hour)
	const who = 0xdead_beef_0000_0003
	if m.has(who, 0) {
		t.Error("it knows somebody who never came")
	}
	m.add(who, 0)
	for _, c := range []struct {
		name   string
		source uint64
		now    time.Duration
		want   bool
	}{
		{"at once", who, 0, true},
		{"in time", who, time.Hour - time.Second, true},
		{"too late", who, time.Hour + 2*time.Second, false},
		{"another one in the same cell", who ^ 1<<40, 0, false},
	} {
		if got := m.has(c.source, c.now); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	m.add(who^1<<40, 0)
	if m.has(who, 0) {
		t.Error("two in one cell")
	}
}

// BenchmarkForged is what an ATTACH with a wrong MAC costs.
func BenchmarkForged(b *testing.B) {
	now := time.Now()
	d := newDoor(testSecret, now, newTable(16, 16))
	k, key := pass(testNetwork, 1, 1, now.Add(time.Hour))
	f := attach{ticket: [ticketSize]byte(k)}.Append(nil, key)
	f[len(f)-1]++
	for i := range b.N {
		d.control(nil, now.Add(time.Duration(i)*time.Millisecond), byUDP(nodeHost(i, 1)), f)
	}
}
