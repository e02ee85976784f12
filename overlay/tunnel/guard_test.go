package tunnel

import (
	"encoding/binary"
	"net/netip"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"overlayd/overlay/filter"
)

// benchTUN is a TUN whose kernel is the test.
type benchTUN struct {
	sent    chan []byte // what the kernel sends
	woken   chan struct{}
	events  chan tun.Event
	written [][]byte // copies, if keep is set
	batches int
	keep    bool
}

func newBenchTUN() *benchTUN {
	return &benchTUN{sent: make(chan []byte, 64), woken: make(chan struct{}, 1), events: make(chan tun.Event), keep: true}
}

func (b *benchTUN) Read(bufs [][]byte, sizes []int, offset int) (n int, err error) {
	select {
	case p := <-b.sent:
		sizes[0] = copy(bufs[0][offset:], p)
		return 1, nil
	case <-b.woken:
		return 0, nil
	}
}

func (b *benchTUN) Write(bufs [][]byte, offset int) (int, error) {
	b.batches++
	for _, p := range bufs {
		if b.keep {
			b.written = append(b.written, append([]byte(nil), p[offset:]...))
		}
	}
	return len(bufs), nil
}

func (b *benchTUN) Interrupt() {
	select {
	case b.woken <- struct{}{}:
	default:
	}
}

func (b *benchTUN) File() *os.File           { return nil }
func (b *benchTUN) MTU() (int, error)        { return 1420, nil }
func (b *benchTUN) Name() (string, error)    { return "bench", nil }
func (b *benchTUN) Events() <-chan tun.Event { return b.events }
func (b *benchTUN) BatchSize() int           { return 128 }
func (b *benchTUN) Close() error             { close(b.events); return nil }

var (
	alice = netip.MustParseAddr("172.18.0.11")
	gate0 = netip.MustParseAddr("172.18.0.200")
	nas   = netip.MustParseAddr("192.168.1.201")
)

// guarded is a TUN where alice may reach the nas's port 22, and nothing else.
func guarded(t testing.TB, now time.Time) (*gatedTUN, *benchTUN, *filter.Filter) {
	t.Helper()
	f := filter.New(filter.Options{}, now)
	if _, err := f.Swap(now, onlyPort(22)); err != nil {
		t.Fatal(err)
	}
	b := newBenchTUN()
	g := newGatedTUN(b, newGate(1000), newGate(1000), &narrows{})
	t.Cleanup(func() { b.Close(); <-g.ended })
	g.guard.filter.Store(f)
	return g, b, f
}

func onlyPort(port uint16) filter.Rules {
	return filter.Rules{
		Self: []netip.Addr{gate0}, Routes: []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24")},
		Sources: []filter.Source{{Address: alice, Node: "laptop", User: "alice"}},
		From:    []filter.Set{{ID: "a", Prefixes: []netip.Prefix{netip.PrefixFrom(alice, 32)}}},
		To:      []filter.Set{{ID: "n", Prefixes: []netip.Prefix{netip.PrefixFrom(nas, 32)}}},
		Rules: []filter.Rule{{Name: "ssh", From: []string{"a"}, To: []string{"n"},
			Services: []filter.Service{{Proto: protoTCP, First: port, Last: port}}}},
	}
}

// segment is a TCP packet behind so many bytes.
func segment(offset int, src, dst netip.Addr, sport, dport uint16, flags byte, payload int) []byte {
	b := make([]byte, offset+header4+headerTCP+payload)
	p := b[offset:]
	p[0], p[8], p[9] = 0x45, 64, protoTCP
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	copy(p[12:], src.AsSlice())
	copy(p[16:], dst.AsSlice())
	binary.BigEndian.PutUint16(p[20:], sport)
	binary.BigEndian.PutUint16(p[22:], dport)
	p[32], p[33] = 0x50, flags
	return b
}

const (
	ack = 0x10
	rst = 0x04
)

func newBufs() ([][]byte, []int) {
	bufs, sizes, _ := batch()
	return bufs, sizes
}

// TestGuard: what no rule allows does not get to the kernel, and its answer
// leaves by a Read that waits for the kernel meanwhile; what is an answer itself
// passes, what is nobody's does not.
func TestGuard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, b, _ := guarded(t, time.Now())
		bufs, sizes := newBufs()
		read := make(chan int)
		go func() {
			n := 0
			for n == 0 {
				n, _ = g.Read(bufs, sizes, tellOffset)
			}
			read <- n
		}()
		synctest.Wait() // it waits for the kernel
		in := [][]byte{
			segment(tellOffset, alice, nas, 40000, 22, flagSYN, 0),
			segment(tellOffset, alice, nas, 40001, 80, flagSYN, 0),
			segment(tellOffset, alice, nas, 40000, 22, ack, 10),
		}
		if _, err := g.Write(in, tellOffset); err != nil {
			t.Fatal(err)
		}
		if len(b.written) != 2 || b.batches != 1 || binary.BigEndian.Uint16(b.written[0][22:]) != 22 || binary.BigEndian.Uint16(b.written[1][22:]) != 22 {
			t.Errorf("the kernel got %x in %d batches", b.written, b.batches)
		}
		if n := <-read; n != 1 {
			t.Fatalf("%d answers", n)
		}
		p := bufs[0][tellOffset : tellOffset+sizes[0]]
		if len(p) != header4+headerTCP || p[33]&rst == 0 || binary.BigEndian.Uint16(p[20:]) != 80 || binary.BigEndian.Uint16(p[22:]) != 40001 {
			t.Errorf("the answer is %x", p)
		}

		b.sent <- segment(0, nas, alice, 22, 40000, flagSYN|ack, 0)
		if n, _ := g.Read(bufs, sizes, tellOffset); n != 1 || sizes[0] == 0 {
			t.Error("the answer of an allowed flow does not pass")
		}
		b.sent <- segment(0, nas, alice, 80, 40001, flagSYN|ack, 0)
		if n, _ := g.Read(bufs, sizes, tellOffset); n != 1 || sizes[0] != 0 {
			t.Error("what belongs to no flow passes")
		}
		if in := g.out.inside.Load(); in != 2 {
			t.Errorf("%d packets count as inside, want the answer and what passed", in)
		}
	})
}

// TestTell: both ends of a cut flow are told, the one in the tunnel before
// SetPeers goes on.
func TestTell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		g, b, f := guarded(t, now)
		bufs, sizes := newBufs()
		_, _ = g.Write([][]byte{segment(tellOffset, alice, nas, 40000, 22, flagSYN, 0)}, tellOffset)
		b.written = nil
		c, err := f.Swap(now, onlyPort(23))
		if err != nil || c.Flows != 1 {
			t.Fatalf("%+v, %v", c, err)
		}
		d := &Device{tun: g}
		d.Tell(c)
		if len(b.written) != 1 || b.written[0][33]&rst == 0 || binary.BigEndian.Uint16(b.written[0][22:]) != 22 {
			t.Errorf("this side was told %x", b.written)
		}
		flushed := make(chan struct{})
		go func() { g.guard.back.flush(); close(flushed) }()
		synctest.Wait()
		select {
		case <-flushed:
			t.Fatal("flushed with a reset still here")
		default:
		}
		if n, _ := g.Read(bufs, sizes, tellOffset); n != 1 || bufs[0][tellOffset+33]&rst == 0 {
			t.Errorf("the tunnel was told %x", bufs[0][:tellOffset+sizes[0]])
		}
		<-flushed
		g.guard.back.flush() // nothing waits, so it does not either

		d.Tell(filter.Cut{ToTunnel: [][]byte{{0x45}}})
		began := time.Now()
		g.guard.back.flush() // nobody reads
		if waited := time.Since(began); waited != farewell {
			t.Errorf("waited %v for a reader that is not there", waited)
		}
	})
}

// TestReturnsAreBounded: what is too much is counted, and the rest stays in
// order.
func TestReturnsAreBounded(t *testing.T) {
	r := returns{drained: make(chan struct{}, 1)}
	for i := range returnSlots + 10 {
		r.put([]byte{byte(i)})
	}
	r.putAll(make([][]byte, returnResets))
	r.putAll([][]byte{{1}, {2}, {3}})
	if r.lost.Load() != 13 {
		t.Errorf("%d lost, want 13", r.lost.Load())
	}
	bufs, sizes := make([][]byte, returnSlots), make([]int, returnSlots)
	for i := range bufs {
		bufs[i] = make([]byte, 8)
	}
	if n := r.take(bufs, sizes, 4); n != returnSlots || bufs[0][4] != 0 || bufs[255][4] != 255 {
		t.Errorf("took %d", n)
	}
	for r.waiting.Load() > 0 {
		r.take(bufs, sizes, 4)
	}
	if r.resets != nil || len(r.drained) != 1 {
		t.Error("not drained")
	}
}

// TestGuardAllocatesNothing: neither for what passes nor for what is refused
// and answered.
func TestGuardAllocatesNothing(t *testing.T) {
	g, b, _ := guarded(t, time.Now())
	b.keep = false
	bufs, sizes := newBufs()
	in := [][]byte{
		segment(tellOffset, alice, nas, 40000, 22, flagSYN, 0),
		segment(tellOffset, alice, nas, 40001, 80, flagSYN, 0),
	}
	out := segment(0, nas, alice, 22, 40000, ack, 100)
	once := func() {
		_, _ = g.Write(in, tellOffset)
		for g.guard.back.waiting.Load() > 0 {
			_, _ = g.Read(bufs, sizes, tellOffset)
		}
		select {
		case <-b.woken:
		default:
		}
		b.sent <- out
		_, _ = g.Read(bufs, sizes, tellOffset)
		g.out.leave(2)
	}
	for range returnSlots + 10 { // each slot gets its room once
		once()
	}
	if n := testing.AllocsPerRun(1000, once); n != 0 && !raceDetector {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkGuard is what a batch of 64 packets of one flow costs at the TUN,
// with a filter and without.
func BenchmarkGuard(b *testing.B) {
	for _, on := range []bool{false, true} {
		name := map[bool]string{false: "without", true: "with"}[on]
		b.Run(name, func(b *testing.B) {
			g, k, _ := guarded(b, time.Now())
			k.keep = false
			in := [][]byte{segment(tellOffset, alice, nas, 40000, 22, flagSYN, 0)}
			_, _ = g.Write(in, tellOffset)
			in = in[:0]
			for range 64 {
				in = append(in, segment(tellOffset, alice, nas, 40000, 22, ack, 1360))
			}
			if !on {
				g.guard.filter.Store(nil)
			}
			b.ReportAllocs()
			for b.Loop() {
				_, _ = g.Write(in, tellOffset)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/64, "ns/packet")
		})
	}
}
