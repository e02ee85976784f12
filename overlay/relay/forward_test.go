package relay

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"overlayd/overlay/key"
	"overlayd/overlay/udp"
)

// switchTable returns a table with nodes 1 to n in testNetwork at 127.1.0.x:1000,
// the own node 10, and node 1 of another network at 10.9.9.9:1.
func switchTable(t testing.TB, n int) *table {
	t.Helper()
	tb := newTable(1000, 1000)
	at := time.Duration(0)
	admit := func(id Network, l Label, src netip.AddrPort) {
		at++
		k := Ticket{Network: id, Label: l, NotAfter: time.Unix(1<<40, 0), Serial: 1}
		if what, why := tb.admit(at, time.Unix(0, 0), admission{byUDP(src), key.Secret{}, k, nonce{byte(l)}, at}); what != attached {
			t.Fatal(eventNames[what], why)
		}
	}
	for l := Label(1); l <= Label(n); l++ {
		if l != 10 {
			admit(testNetwork, l, nodeAddr(l))
		}
	}
	admit(Network{9}, 1, netip.MustParseAddrPort("10.9.9.9:1"))
	tb.seatOwn(testNetwork, 10, &Port{ring: newRing[Label](1<<16, 64), count: new(counters)})
	return tb
}

func nodeAddr(l Label) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 1, 0, byte(l)}), 1000)
}

// sent is one datagram as the model or the cutter has it leave.
type sent struct {
	to   string
	data []byte
}

// model decides per datagram, slowly and from the words of the design.
func model(tb *table, src netip.AddrPort, train []byte, size int) (out []sent, drops map[event]int, controls int) {
	drops = map[event]int{}
	var from *seat
	tb.places.all(func(s *seat) {
		if s.leg.Load().addr == src {
			from = s
		}
	})
	for len(train) > 0 {
		d := bytes.Clone(train[:min(size, len(train))])
		train = train[len(d):]
		if len(d) < 4 {
			drops[dropShape]++
			continue
		}
		if d[0] == 8 {
			controls++
			continue
		}
		wantLen, known := map[byte]int{1: 148, 2: 92, 3: 64, 4: -32, 9: -44}[d[0]]
		switch {
		case !known:
			drops[dropKind]++
			continue
		case wantLen > 0 && len(d) != wantLen, wantLen < 0 && len(d) < -wantLen:
			drops[dropShape]++
			continue
		case from == nil:
			drops[dropNoSession]++
			continue
		}
		label := Label(d[1]) + Label(d[2])*256 + Label(d[3])*65536
		if label == 0 {
			label = 10
		}
		to := from.network.labels.get(label)
		switch {
		case to == nil:
			drops[dropNoPeer]++
			continue
		case to == from:
			drops[dropSelf]++
			continue
		}
		d[1], d[2], d[3] = byte(from.label), byte(from.label/256), byte(from.label/65536)
		out = append(out, sent{where(to.leg.Load()), d})
	}
	return out, drops, controls
}

func where(l *leg) string {
	if l.port != nil {
		return "own node"
	}
	return l.addr.String()
}

// cutAll does with cut what the reader does.
func cutAll(tb *table, src netip.AddrPort, train []byte, size int) (out []sent, drops map[event]int, controls, runs int) {
	drops = map[event]int{}
	from := tb.at(src)
	for len(train) > 0 {
		n, d := cut(from, train, size)
		run := train[:n]
		train = train[n:]
		switch {
		case d.control:
			controls++
		case d.leg == nil:
			drops[d.why] += (n + size - 1) / size
		default:
			runs++
			for len(run) > 0 {
				k := min(size, len(run))
				out = append(out, sent{where(d.leg), bytes.Clone(run[:k])})
				run = run[k:]
			}
		}
	}
	return out, drops, controls, runs
}

func compare(t testing.TB, tb *table, src netip.AddrPort, train []byte, size int) {
	t.Helper()
	want, wantDrops, wantControls := model(tb, src, bytes.Clone(train), size)
	got, drops, controls, _ := cutAll(tb, src, train, size)
	if len(got) != len(want) || controls != wantControls || fmt.Sprint(drops) != fmt.Sprint(wantDrops) {
		t.Fatalf("%d sent, %d controls, drops %v; want %d, %d, %v", len(got), controls, drops, len(want), wantControls, wantDrops)
	}
	for i := range want {
		if got[i].to != want[i].to || !bytes.Equal(got[i].data, want[i].data) {
			t.Fatalf("datagram %d differs", i)
		}
	}
}

// FuzzCut compares the run cutter with the model. Each pair of bytes in shape makes
// one datagram: its first byte and its label.
func FuzzCut(f *testing.F) {
	f.Add([]byte{4, 2, 4, 2, 4, 2}, uint16(100), uint16(50), byte(1))
	f.Add([]byte{4, 2, 1, 3, 4, 10, 4, 0, 8, 0, 9, 3, 4, 1}, uint16(148), uint16(148), byte(1))
	f.Add([]byte{4, 2, 4, 2}, uint16(3), uint16(1), byte(2))
	f.Add([]byte{4, 2, 7, 2, 4, 99}, uint16(92), uint16(2), byte(250))
	tb := switchTable(f, 20)
	f.Fuzz(func(t *testing.T, shape []byte, size, tail uint16, src byte) {
		n := int(size)%1500 + 1
		var train []byte
		for i := 0; i+1 < len(shape) && len(train)+n < 65000; i += 2 {
			d := make([]byte, n)
			d[0] = shape[i]
			if n >= headerSize {
				stamp(d, Label(shape[i+1]))
			}
			train = append(train, d...)
		}
		if cut := int(tail) % n; cut < len(train) {
			train = train[:len(train)-cut]
		}
		compare(t, tb, nodeAddr(Label(src)), train, n)
	})
}

// FuzzCutRaw feeds bytes as they are.
func FuzzCutRaw(f *testing.F) {
	f.Add([]byte{4, 2, 0, 0}, uint16(4))
	tb := switchTable(f, 20)
	f.Fuzz(func(t *testing.T, train []byte, size uint16) {
		compare(t, tb, nodeAddr(1), train, max(1, int(size)))
	})
}

func TestCutRandomTrains(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	tb := switchTable(t, 20)
	kinds := []byte{1, 2, 3, 4, 4, 4, 4, 4, 4, 9, 8, 0, 5}
	for range 3000 {
		size := []int{3, 4, 32, 44, 64, 92, 148, 1000, 1452}[rng.IntN(9)]
		var train []byte
		label := Label(rng.IntN(24))
		for range rng.IntN(40) {
			d := make([]byte, size)
			d[0] = kinds[rng.IntN(len(kinds))]
			if rng.IntN(4) == 0 {
				label = Label(rng.IntN(24))
			}
			if size >= headerSize {
				stamp(d, label)
			}
			train = append(train, d...)
		}
		if len(train) > 0 {
			train = train[:len(train)-rng.IntN(size)]
		}
		compare(t, tb, nodeAddr(Label(rng.IntN(24))), train, size)
	}
}

func TestNetworksAreApart(t *testing.T) {
	tb := switchTable(t, 5)
	_, d := cut(tb.at(netip.MustParseAddrPort("10.9.9.9:1")), datagram(2, 100, 0), 100)
	if d.leg != nil || d.why != dropNoPeer {
		t.Errorf("a node of another network reached label 2: %+v", d)
	}
	_, d = cut(tb.at(netip.MustParseAddrPort("10.9.9.9:1")), datagram(0, 100, 0), 100)
	if d.leg != nil || d.why != dropNoPeer {
		t.Errorf("a node of another network reached the relay's own: %+v", d)
	}
}

// TestLongRunIsOneMessage keeps the reason for all this: a train for one
// destination stays one.
func TestLongRunIsOneMessage(t *testing.T) {
	tb := switchTable(t, 5)
	train := bytes.Repeat(datagram(2, 1400, 0), 45)
	if _, _, _, runs := cutAll(tb, nodeAddr(1), train[:len(train)-700], 1400); runs != 1 {
		t.Errorf("%d runs", runs)
	}
}

func newReader(tb *table, k *udp.Socket, o *out) *reader {
	return &reader{socket: k, table: tb, door: newDoor(testSecret, time.Now(), tb), out: o, count: new(counters)}
}

func TestForwardDoesNotAllocate(t *testing.T) {
	tb := switchTable(t, 20)
	k, err := udp.Listen(netip.MustParseAddrPort("127.0.0.1:0"), udp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	r := newReader(tb, k, (&shard{v4: k}).newOut())
	mixed := slices.Concat(datagram(2, 200, 1), datagram(3, 200, 1), datagram(10, 200, 1), datagram(99, 200, 1), datagram(2, 200, 1))
	trains := []udp.Train{
		{Src: nodeAddr(1), Buf: bytes.Repeat(datagram(2, 1400, 0), 45), Size: 1400},
		{Src: nodeAddr(2), Buf: mixed, Size: 200},
		{Src: nodeAddr(3), Buf: datagram(1, 1400, 0), Size: 1400},
		{Src: nodeAddr(99), Buf: datagram(1, 1400, 0), Size: 1400},
	}
	restore := func() {
		for i, dst := range []Label{2, 3, 10, 99, 2} {
			stamp(mixed[i*200:], dst)
		}
		for off := 0; off < len(trains[0].Buf); off += 1400 {
			stamp(trains[0].Buf[off:], 2)
		}
		stamp(trains[2].Buf, 1)
	}
	if n := testing.AllocsPerRun(200, func() {
		restore()
		r.forward(trains)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkCut is the forwarding decision alone, per train.
func BenchmarkCut(b *testing.B) {
	for _, segments := range []int{1, 45} {
		b.Run(fmt.Sprint(segments), func(b *testing.B) {
			tb := switchTable(b, 200)
			buf := bytes.Repeat(datagram(2, 1400, 0), segments)
			src := nodeAddr(1)
			b.SetBytes(int64(len(buf)))
			b.ReportAllocs()
			for b.Loop() {
				for off := 0; off < len(buf); off += 1400 {
					stamp(buf[off:], 2)
				}
				if n, d := cut(tb.at(src), buf, 1400); n != len(buf) || d.leg == nil {
					b.Fatal(n, d)
				}
			}
		})
	}
}

// BenchmarkForward is what a reader does with a batch, without system calls.
func BenchmarkForward(b *testing.B) {
	for _, segments := range []int{1, 45} {
		b.Run(fmt.Sprint(segments), func(b *testing.B) {
			tb := switchTable(b, 200)
			r := newReader(tb, nil, &out{})
			trains := make([]udp.Train, 32)
			for i := range trains {
				trains[i] = udp.Train{Src: nodeAddr(1), Buf: bytes.Repeat(datagram(2, 1400, 0), segments), Size: 1400}
			}
			b.SetBytes(int64(32 * segments * 1400))
			b.ReportAllocs()
			for b.Loop() {
				for i := range trains {
					for off := 0; off < len(trains[i].Buf); off += 1400 {
						stamp(trains[i].Buf[off:], 2)
					}
				}
				r.forward(trains)
			}
		})
	}
}
