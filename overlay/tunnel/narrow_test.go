package tunnel

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"

	"overlayd/overlay/key"
)

// TestNarrowTable compares with the plain rule: the longest prefix counts.
func TestNarrowTable(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 7))
	for range 300 {
		n := &narrows{}
		var peers []Peer
		mtus := map[netip.Prefix]int{}
		for range 1 + r.IntN(6) {
			p := Peer{Key: key.NewPrivate().Public()}
			mtu := []int{0, 1232, 1328, 576}[r.IntN(4)]
			for range r.IntN(4) {
				prefix := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(r.IntN(2)), byte(r.IntN(4)), byte(r.IntN(4))}), []int{0, 8, 16, 24, 32}[r.IntN(5)])
				if r.IntN(3) == 0 {
					prefix = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, byte(r.IntN(2)), 15: byte(r.IntN(3))}), []int{0, 16, 128}[r.IntN(3)])
				}
				if _, taken := mtus[prefix.Masked()]; !taken {
					mtus[prefix.Masked()] = mtu
					p.AllowedIPs = append(p.AllowedIPs, prefix)
				}
			}
			peers = append(peers, p)
			n.set(p.Key, mtu) // before or after the peers are known
			n.follow(peers)
		}
		table := n.table.Load()
		for range 50 {
			a := netip.AddrFrom4([4]byte{10, byte(r.IntN(2)), byte(r.IntN(4)), byte(r.IntN(4))})
			if r.IntN(3) == 0 {
				a = netip.AddrFrom16([16]byte{0xfd, byte(r.IntN(2)), 15: byte(r.IntN(3))})
			}
			want, bits := 0, -1
			for p, mtu := range mtus {
				if p.Contains(a) && p.Bits() > bits {
					want, bits = mtu, p.Bits()
				}
			}
			got := 0
			if table != nil {
				got = table.mtu(a)
			}
			if got != want {
				t.Fatalf("%v: %d, want %d; %v", a, got, want, mtus)
			}
		}
		n.follow(nil)
		if n.table.Load() != nil || len(n.mtus) != 0 {
			t.Fatal("peers that are gone are remembered")
		}
	}
}

// batch is what one read gives.
func batch(packets ...[]byte) (bufs [][]byte, sizes []int, n int) {
	const slots = 128
	bufs, sizes = make([][]byte, slots), make([]int, slots)
	for i := range bufs {
		bufs[i] = make([]byte, 1<<16)
	}
	for i, p := range packets {
		sizes[i] = copy(bufs[i][tellOffset:], p)
	}
	return bufs, sizes, len(packets)
}

func narrowTo(mtu int, ips ...netip.Addr) *narrows {
	n := &narrows{}
	p := Peer{Key: key.NewPrivate().Public()}
	for _, ip := range ips {
		p.AllowedIPs = append(p.AllowedIPs, netip.PrefixFrom(ip, ip.BitLen()))
	}
	n.follow([]Peer{p, {Key: key.NewPrivate().Public(), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16")}}})
	n.set(p.Key, mtu)
	return n
}

// TestFit: the segments of a super-packet are judged one by one, their sender is
// told once, others are left alone.
func TestFit(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 1))
	table := narrowTo(1232, there4).table.Load()
	f := newFitter()
	wide := netip.MustParseAddr("10.2.0.1")
	var packets [][]byte
	for range 40 {
		packets = append(packets, packet(r, here4, there4, protoTCP, tcp(16), 1420, true))
	}
	packets = append(packets,
		packet(r, here4, wide, protoTCP, tcp(16), 1420, true),
		packet(r, here4, wide, protoTCP, tcp(flagSYN, 2, 4, 5, 180), 0, true),
		packet(r, here4, there4, protoTCP, tcp(flagSYN, 2, 4, 5, 180), 0, true),
		packet(r, here4, there4, 17, make([]byte, 8), 1420, false),
	)
	bufs, sizes, n := batch(packets...)
	now := time.Now()
	var told [][]byte
	got := f.fit(now, table, bufs, sizes, n, tellOffset, func(b []byte) { told = append(told, b[tellOffset:]) })
	if got != n+1 || len(told) != 1 {
		t.Fatalf("%d packets, %d errors", got, len(told))
	}
	if mtu := binary.BigEndian.Uint16(told[0][header4+6:]); mtu != 1232 {
		t.Errorf("told of %d", mtu)
	}
	mss := func(i int) uint16 { return binary.BigEndian.Uint16(bufs[i][tellOffset+header4+headerTCP+2:]) }
	if mss(41) != 1460 || mss(42) != 1192 {
		t.Errorf("segment sizes %d and %d", mss(41), mss(42))
	}
	for i := range 42 {
		if sizes[i] != len(packets[i]) {
			t.Errorf("packet %d is %d bytes", i, sizes[i])
		}
	}
	if sizes[43] > 1232 || sizes[44] > 1232 || sizes[43]+sizes[44] != 1420+header4 {
		t.Errorf("fragments of %d and %d bytes", sizes[43], sizes[44])
	}

	again := func(at time.Time) int {
		before := len(told)
		bufs, sizes, n := batch(packets[0])
		f.fit(at, table, bufs, sizes, n, tellOffset, func(b []byte) { told = append(told, b) })
		return len(told) - before
	}
	if n := again(now.Add(tellGap / 2)); n != 0 {
		t.Error("told again at once")
	}
	if n := again(now.Add(2 * tellGap)); n != 1 {
		t.Error("not told again")
	}

	bufs, sizes, _ = batch(packets[41], packets[42])
	in := [][]byte{bufs[0][:tellOffset+sizes[0]], bufs[1][:tellOffset+sizes[1]]}
	for i, src := range []netip.Addr{wide, there4} { // turn them round
		copy(in[i][tellOffset+12:], src.AsSlice())
		copy(in[i][tellOffset+16:], here4.AsSlice())
	}
	table.clampFrom(in, tellOffset)
	if mss(0) != 1460 || mss(1) != 1192 {
		t.Errorf("segment sizes of what came: %d and %d", mss(0), mss(1))
	}
}

func TestFitDoesNotAllocate(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 2))
	table := narrowTo(1232, there4, there6).table.Load()
	f := newFitter()
	bufs, sizes, n := batch(
		packet(r, here4, there4, protoTCP, tcp(16), 1232, true),
		packet(r, here4, there4, protoTCP, tcp(16), 1420, true),
		packet(r, here6, there6, protoTCP, tcp(16), 1420, true),
		packet(r, here4, netip.MustParseAddr("10.2.0.1"), protoTCP, tcp(flagSYN, 2, 4, 5, 180), 0, true),
	)
	now := time.Now()
	if got := testing.AllocsPerRun(100, func() {
		now = now.Add(time.Second)
		f.fit(now, table, bufs, sizes, n, tellOffset, func([]byte) {})
		table.clampFrom(bufs[:1], tellOffset)
	}); got != 0 {
		t.Errorf("%v allocations", got)
	}
}

// TestNarrowPeer sends through two devices: what is too long goes, and its sender
// hears of it.
func TestNarrowPeer(t *testing.T) {
	defer goleak.VerifyNone(t)
	r := rand.New(rand.NewPCG(8, 1))
	pa, pb := newPipes()
	a, b := newNode(t, pa, "10.1.0.1", io.Discard), newNode(t, pb, "10.1.0.2", io.Discard)
	defer a.Close()
	defer b.Close()
	for n, other := range map[*node]*node{a: b, b: a} {
		if err := n.SetPeers([]Peer{other.as()}); err != nil {
			t.Fatal(err)
		}
	}
	ping(t, a, b)
	a.SetPathMTU(b.key.Public(), 1232)
	exchange := func(p []byte, from, to *node) []byte {
		t.Helper()
		timeout := time.After(deadline)
		select {
		case from.tun.Outbound <- p:
		case <-timeout:
			t.Fatal("the device does not read")
		}
		select {
		case got := <-to.tun.Inbound:
			return got
		case <-timeout:
			t.Fatal("nothing came out")
		}
		return nil
	}
	long := packet(r, a.ip, b.ip, protoTCP, tcp(16), 1400, true)
	if got := exchange(long, a, a); got[header4] != 3 || got[header4+1] != 4 {
		t.Errorf("its sender got % x", got)
	}
	select {
	case got := <-b.tun.Inbound:
		if len(got) != len(long) {
			t.Errorf("%d bytes arrived", len(got))
		}
	case <-time.After(deadline):
		t.Fatal("the packet did not arrive")
	}
	syn := packet(r, b.ip, a.ip, protoTCP, tcp(flagSYN, 2, 4, 5, 180), 0, true)
	if got := exchange(syn, b, a); binary.BigEndian.Uint16(got[header4+headerTCP+2:]) != 1192 || sumOf(got) != 0xffff {
		t.Errorf("a SYN that came in: % x", got)
	}
	a.SetPathMTU(b.key.Public(), 0)
	if got := exchange(long, a, b); len(got) != len(long) {
		t.Errorf("%d bytes arrived", len(got))
	}
}

// BenchmarkFit is what a narrow peer costs a read of 48 segments.
func BenchmarkFit(b *testing.B) {
	r := rand.New(rand.NewPCG(9, 1))
	for _, to := range []netip.Addr{there4, netip.MustParseAddr("10.2.0.1")} {
		b.Run(fmt.Sprint(to), func(b *testing.B) {
			table := narrowTo(1232, there4).table.Load()
			f := newFitter()
			var packets [][]byte
			for range superPacket {
				packets = append(packets, packet(r, here4, to, protoTCP, tcp(16), 1232, true))
			}
			bufs, sizes, n := batch(packets...)
			now := time.Now()
			for b.Loop() {
				f.fit(now, table, bufs, sizes, n, tellOffset, nil)
			}
		})
	}
}
