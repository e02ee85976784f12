package tunnel

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"overlayd/overlay/filter"
	"overlayd/overlay/key"
)

var (
	vps    = netip.MustParseAddr("172.18.0.10")
	phone  = netip.MustParseAddr("172.18.0.14")
	tablet = netip.MustParseAddr("172.18.0.15")
)

// carrying is the TUN of a machine that carries a phone and a tablet: alice may
// reach the phone's port 9 and the machine's port 7, the phone the tablet's port 9
// and ports 22 and 80 of the LAN.
func carrying(t testing.TB, now time.Time) (*gatedTUN, *benchTUN) {
	t.Helper()
	single := func(a netip.Addr) []netip.Prefix { return []netip.Prefix{netip.PrefixFrom(a, 32)} }
	rule := func(name string, to string, port uint16, from ...string) filter.Rule {
		return filter.Rule{Name: name, From: from, To: []string{to}, Services: []filter.Service{{Proto: protoTCP, First: port, Last: port}}}
	}
	f := filter.New(filter.Options{}, now)
	if _, err := f.Swap(now, filter.Rules{
		Self: []netip.Addr{vps}, Hosted: []netip.Addr{phone, tablet},
		Sources: []filter.Source{{Address: alice, Node: "laptop"}, {Address: phone, Node: "phone"}, {Address: tablet, Node: "tablet"}},
		From:    []filter.Set{{ID: "a", Prefixes: single(alice)}, {ID: "p", Prefixes: single(phone)}},
		To:      []filter.Set{{ID: "p", Prefixes: single(phone)}, {ID: "t", Prefixes: single(tablet)}, {ID: "v", Prefixes: single(vps)}, {ID: "n", Prefixes: single(nas)}},
		Rules:   []filter.Rule{rule("phone", "p", 9, "a"), rule("tablet", "t", 9, "p"), rule("vps", "v", 7, "a", "p"), rule("web", "n", 80, "p"), rule("ssh", "n", 22, "p")},
	}); err != nil {
		t.Fatal(err)
	}
	b := newBenchTUN()
	g := newGatedTUN(b, newGate(1000), newGate(1000), &narrows{})
	t.Cleanup(func() { b.Close(); <-g.ended })
	g.guard.filter.Store(f)
	peers := []Peer{{AllowedIPs: single(alice)}, {Key: key.NewPrivate().Public(), AllowedIPs: single(phone), Device: true}, {Key: key.NewPrivate().Public(), AllowedIPs: single(tablet), Device: true}}
	g.turn.set([]netip.Addr{vps})
	g.turn.follow(peers)
	g.narrow.follow(peers)
	select { // the reader was woken for the first device
	case <-b.woken:
	default:
		t.Error("a reader that sleeps is not told of the first device")
	}
	return g, b
}

// summed gives a packet a right header checksum.
func summed(b []byte) []byte {
	p := b[tellOffset:]
	binary.BigEndian.PutUint16(p[10:], 0)
	binary.BigEndian.PutUint16(p[10:], ^fold(add(0, p[:header4])))
	return b
}

// TestTurn: what goes between a device and others goes back into WireGuard if it
// may, and what goes between a device and this machine does not.
func TestTurn(t *testing.T) {
	for _, c := range []struct {
		name         string
		src, dst     netip.Addr
		port         uint16
		flags        byte
		turned, here bool
	}{
		{"a device to the LAN, allowed", phone, nas, 80, flagSYN, true, false},
		{"a device to the LAN, not allowed", phone, nas, 81, flagSYN, false, false},
		{"a device to nobody", phone, netip.MustParseAddr("172.18.0.77"), 80, flagSYN, false, false},
		{"to a device, allowed", alice, phone, 9, flagSYN, true, false},
		{"to a device, not allowed", alice, phone, 10, flagSYN, false, false},
		{"a device to this machine, allowed", phone, vps, 7, flagSYN, false, true},
		{"a device to this machine, not allowed", phone, vps, 8, flagSYN, false, false},
		{"a device to another, allowed", phone, tablet, 9, flagSYN, true, false},
		{"a device to another, not allowed", tablet, phone, 9, flagSYN, false, false},
		{"others to this machine", alice, vps, 7, flagSYN, false, true},
		{"others to the LAN, which is not behind here", alice, nas, 22, flagSYN, false, false},
		{"a stranger to a device", nas, phone, 9, flagSYN, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, b := carrying(t, time.Now())
				p := summed(segment(tellOffset, c.src, c.dst, 40000, c.port, c.flags, 0))
				if _, err := g.Write([][]byte{p}, tellOffset); err != nil {
					t.Fatal(err)
				}
				if here := len(b.written) == 1; here != c.here {
					t.Errorf("the kernel got %d packets", len(b.written))
				}
				if turned := g.turn.n == 1; turned != c.turned {
					t.Errorf("%d packets are turned", g.turn.n)
				}
				bufs, sizes := newBufs()
				if !c.turned && c.src == phone && !c.here { // it hears so at once
					n := g.guard.back.take(bufs, sizes, tellOffset)
					got := bufs[0][tellOffset : tellOffset+sizes[0]]
					if src, dst, _ := addresses(got); n != 1 || src != c.dst || dst != phone || got[header4+13]&rst == 0 {
						t.Errorf("%d answers: %x", n, got)
					}
				}
				if !c.turned {
					return
				}
				n, err := g.Read(bufs, sizes, tellOffset)
				got := bufs[0][tellOffset : tellOffset+sizes[0]]
				if n != 1 || err != nil || got[8] != 63 || fold(add(0, got[:header4])) != 0xffff {
					t.Errorf("%d, %v: %x", n, err, got)
				}
				// The answer finds the flow.
				g.guard.back.take(bufs, sizes, tellOffset)
				back := summed(segment(tellOffset, c.dst, c.src, c.port, 40000, flagSYN|ack, 0))
				if _, err := g.Write([][]byte{back}, tellOffset); err != nil || g.turn.n != 1 {
					t.Errorf("%d answers are turned (%v)", g.turn.n, err)
				}
			})
		})
	}
}

// TestTurnWakes: a reader that waits for the kernel gets what is turned, and the
// kernel's own packets get their turn while there is always more of it.
func TestTurnWakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, b := carrying(t, time.Now())
		bufs, sizes := newBufs()
		read := make(chan int)
		go func() {
			for {
				n, _ := g.Read(bufs, sizes, tellOffset)
				if n > 0 {
					read <- n
					return
				}
			}
		}()
		synctest.Wait()
		_, _ = g.Write([][]byte{summed(segment(tellOffset, phone, nas, 1, 22, flagSYN, 0))}, tellOffset)
		if n := <-read; n != 1 {
			t.Errorf("%d packets", n)
		}

		looked := 0
		g.look = func(bufs [][]byte, sizes []int, offset int) (int, error) { looked++; return 0, nil }
		for range 10 {
			_, _ = g.Write([][]byte{summed(segment(tellOffset, phone, nas, 1, 22, ack, 0))}, tellOffset)
			if n, _ := g.Read(bufs, sizes, tellOffset); n != 1 {
				t.Errorf("%d packets", n)
			}
		}
		if looked != 10 || len(b.woken) != 0 {
			t.Errorf("the kernel was looked at %d times, and the reader woken %d times for nothing", looked, len(b.woken))
		}
	})
}

// TestTurnExpires: a packet whose life ends here is told of, now and then.
func TestTurnExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := carrying(t, time.Now())
		p := segment(tellOffset, phone, nas, 1, 22, flagSYN, 0)
		p[tellOffset+8] = 1
		for range 5 {
			_, _ = g.Write([][]byte{summed(slices.Clone(p))}, tellOffset)
		}
		bufs, sizes := newBufs()
		n, _ := g.Read(bufs, sizes, tellOffset)
		got := bufs[0][tellOffset : tellOffset+sizes[0]]
		src, dst, _ := addresses(got)
		if n != 1 || g.turn.n != 0 || src != vps || dst != phone || got[9] != protoICMP || got[header4] != 11 || fold(add(0, got[header4:])) != 0xffff {
			t.Errorf("%d: %x", n, got)
		}
		time.Sleep(expiredGap)
		_, _ = g.Write([][]byte{summed(p)}, tellOffset)
		if n, _ := g.Read(bufs, sizes, tellOffset); n != 1 {
			t.Errorf("later: %d errors", n)
		}
	})
}

// TestTurnFits: the segments of a device fit its way, and a packet to it that does
// not is told of.
func TestTurnFits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := carrying(t, time.Now())
		p := segment(tellOffset, phone, nas, 1, 22, flagSYN, 4)
		p[tellOffset+32] = 0x60
		copy(p[tellOffset+40:], []byte{2, 4, 5, 180}) // 1460 bytes
		_, _ = g.Write([][]byte{summed(p)}, tellOffset)
		bufs, sizes := newBufs()
		if n, _ := g.Read(bufs, sizes, tellOffset); n != 1 || binary.BigEndian.Uint16(bufs[0][tellOffset+42:]) != DeviceMTU-40 {
			t.Errorf("%d: a SYN says %x", n, bufs[0][tellOffset+40:tellOffset+44])
		}
		long := segment(tellOffset, nas, phone, 22, 1, ack, 1400)
		binary.BigEndian.PutUint16(long[tellOffset+6:], dontFragment)
		_, _ = g.Write([][]byte{summed(long)}, tellOffset)
		if n, _ := g.Read(bufs, sizes, tellOffset); n != 1 || sizes[0] != 1440 {
			t.Errorf("%d: the long packet has %d bytes", n, sizes[0])
		}
		n, _ := g.Read(bufs, sizes, tellOffset)
		got := bufs[0][tellOffset : tellOffset+sizes[0]]
		if _, dst, _ := addresses(got); n != 1 || dst != nas || got[header4] != 3 || got[header4+1] != 4 || binary.BigEndian.Uint16(got[header4+6:]) != DeviceMTU {
			t.Errorf("%d: its sender hears %x", n, got)
		}
	})
}

// TestTurnBounded: what does not fit is lost and counted, and nothing is allocated.
func TestTurnBounded(t *testing.T) {
	g, _ := carrying(t, time.Now())
	now := time.Now()
	p := summed(segment(tellOffset, phone, nas, 1, 22, flagSYN, 0))[tellOffset:]
	table := g.turn.table.Load()
	for range turnSlots + 10 {
		p[8] = 64
		g.turn.push(now, table, p, nil)
	}
	long := make([]byte, turnSize+1)
	long[0], long[8] = 0x45, 64
	g.turn.push(now, table, long, nil)
	if g.turn.lost.Load() != 11 || g.turn.n != turnSlots {
		t.Errorf("%d wait, %d lost", g.turn.n, g.turn.lost.Load())
	}
	bufs, sizes := newBufs()
	for g.turn.n > 0 {
		g.turn.take(bufs, sizes, tellOffset)
	}
	batch := [][]byte{summed(segment(tellOffset, phone, nas, 1, 22, ack, 0)), summed(segment(tellOffset, phone, nas, 1, 22, ack, 100))}
	once := func() {
		for _, b := range batch {
			b[tellOffset+8] = 64
		}
		_, _ = g.Write(batch, tellOffset)
		_, _ = g.Read(bufs, sizes, tellOffset)
	}
	_, _ = g.Write([][]byte{summed(segment(tellOffset, phone, nas, 1, 22, flagSYN, 0))}, tellOffset)
	once()
	if n := testing.AllocsPerRun(1000, once); n != 0 && !raceDetector {
		t.Errorf("%.1f allocations for two packets", n)
	}
}

// TestDiffDevice: a device that moved is left alone, and one that changes is made
// anew, since WireGuard lets only those roam that never had an endpoint given.
func TestDiffDevice(t *testing.T) {
	k := key.NewPrivate().Public()
	one := []netip.Prefix{netip.PrefixFrom(phone, 32)}
	device := Peer{Key: k, AllowedIPs: one, Device: true}
	if got := diff(nil, []Peer{device}); got != "public_key="+k.Hex()+"\nallowed_ip=172.18.0.14/32\n" {
		t.Errorf("a new one:\n%s", got)
	}
	have := map[key.Public]Peer{k: {Key: k, Endpoint: "198.51.100.2:40000", AllowedIPs: one}}
	if got := diff(have, []Peer{device}); got != "" {
		t.Errorf("one that moved:\n%s", got)
	}
	device.AllowedIPs = []netip.Prefix{netip.PrefixFrom(tablet, 32)}
	got := diff(have, []Peer{device})
	if !strings.HasPrefix(got, "public_key="+k.Hex()+"\n") || !strings.Contains(got, "remove=true\npublic_key="+k.Hex()+"\nallowed_ip=172.18.0.15/32\n") || strings.Contains(got, "endpoint") {
		t.Errorf("one that changed:\n%s", got)
	}
	if got := diff(have, nil); got != "public_key="+k.Hex()+"\nremove=true\n" {
		t.Errorf("one that is gone:\n%s", got)
	}
}
