package underlay

import (
	"bytes"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"overlayd/overlay/key"
	"overlayd/overlay/relay"
	"overlayd/overlay/udp"
)

// newTestReceiver returns a receiver without a socket that knows one relay, at
// known, and the peers with labels 1 and 2.
func newTestReceiver() (r *receiver, known netip.AddrPort) {
	known = netip.MustParseAddrPort("192.0.2.1:443")
	b := New(Options{})
	b.SetRelays([]Relay{{ID: "r", Addrs: []netip.AddrPort{known}}})
	b.SetPeers([]Peer{{Key: key.NewPrivate().Public(), Label: 1}, {Key: key.NewPrivate().Public(), Label: 2}})
	return &receiver{b: b}, known
}

// model says per datagram, one by one, what a receiver must give to WireGuard.
func model(r *receiver, known netip.AddrPort, trains []udp.Train) (want []packet) {
	for _, t := range trains {
		for rest := t.Buf; len(rest) > 0; {
			p := rest[:min(t.Size, len(rest))]
			rest = rest[len(p):]
			if t.Src != known || len(p) < 4 || p[0] < 1 || p[0] > 4 {
				continue
			}
			to := r.b.table.Load().peers[relay.Label(p[1])|relay.Label(p[2])<<8|relay.Label(p[3])<<16]
			if to == nil {
				continue
			}
			clean := append([]byte{p[0], 0, 0, 0}, p[4:]...)
			want = append(want, packet{clean, to})
		}
	}
	return want
}

// check fills batches from the trains until nothing is left, and compares.
func check(t *testing.T, r *receiver, known netip.AddrPort, trains []udp.Train, batch int) {
	t.Helper()
	want := model(r, known, trains)
	bufs, sizes, eps := make([][]byte, batch), make([]int, batch), make([]conn.Endpoint, batch)
	for i := range bufs {
		bufs[i], sizes[i] = make([]byte, 1<<16-1), 777
	}
	r.trains = trains
	for {
		n := r.fill(bufs, sizes, eps)
		if n == 0 {
			break
		}
		for i := range n {
			if len(want) == 0 {
				t.Fatal("more than expected")
			}
			if !bytes.Equal(bufs[i][:sizes[i]], want[0].b) || eps[i] != want[0].ep {
				t.Fatalf("got % x, want % x", bufs[i][:sizes[i]], want[0].b)
			}
			want = want[1:]
		}
	}
	if len(want) != 0 {
		t.Fatalf("%d datagrams are missing", len(want))
	}
	if len(r.trains) != 0 {
		t.Fatal("trains are left")
	}
}

// TestFill mixes datagrams that are WireGuard's with others in the same trains.
func TestFill(t *testing.T) {
	r, known := newTestReceiver()
	d := func(kind byte, label byte, fill byte) []byte {
		return append([]byte{kind, label, 0, 0}, bytes.Repeat([]byte{fill}, 40)...)
	}
	train := bytes.Join([][]byte{
		d(typeData, 1, 1), d(typeControl, 0, 0), d(typeData, 2, 2), d(typeProbe, 1, 0), d(typeData, 9, 3), d(0x55, 1, 0), d(typeData, 1, 4),
		{typeData, 1, 0}, // shorter than a header, at the end
	}, nil)
	other := netip.MustParseAddrPort("192.0.2.2:443")
	for _, batch := range []int{1, 2, 3, 128} {
		trains := []udp.Train{
			{Src: known, Buf: bytes.Clone(train), Size: 44},
			{Src: other, Buf: bytes.Clone(train), Size: 44},
			{Src: known, Buf: d(typeControl, 0, 0), Size: 44},
			{Src: known, Buf: d(typeResponse, 2, 5), Size: 44},
		}
		check(t, r, known, trains, batch)
	}
	for name, want := range map[string]uint64{
		"drop_unknown_source": 4 * 8, "drop_unknown_label": 4, "drop_probe": 4, "drop_malformed": 4 * 2,
	} {
		if got := r.b.Counters()[name]; got != want {
			t.Errorf("%s is %d, want %d", name, got, want)
		}
	}
}

func TestFillAllocatesNothing(t *testing.T) {
	r, known := newTestReceiver()
	buf := bytes.Repeat(append([]byte{typeData, 1, 0, 0}, make([]byte, 1396)...), 40)
	bufs, sizes, eps := make([][]byte, 128), make([]int, 128), make([]conn.Endpoint, 128)
	for i := range bufs {
		bufs[i] = make([]byte, 1<<16-1)
	}
	trains := make([]udp.Train, 1)
	if n := testing.AllocsPerRun(100, func() {
		trains[0] = udp.Train{Src: known, Buf: buf, Size: 1400}
		r.trains = trains
		if got := r.fill(bufs, sizes, eps); got != 40 {
			t.Fatalf("%d datagrams", got)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzFill(f *testing.F) {
	f.Add([]byte{4, 1, 0, 0, 8, 0, 0, 0, 4, 2, 0, 0, 4}, uint16(4), byte(2), true)
	f.Fuzz(func(t *testing.T, buf []byte, size uint16, batch byte, fromRelay bool) {
		r, known := newTestReceiver()
		src := known
		if !fromRelay {
			src = netip.MustParseAddrPort("192.0.2.9:9")
		}
		if len(buf) > udp.SlotSize {
			return
		}
		half := len(buf) / 2
		check(t, r, known, []udp.Train{
			{Src: src, Buf: buf[:half], Size: max(1, int(size))},
			{Src: known, Buf: buf[half:], Size: max(1, int(size)/2)},
		}, max(1, int(batch)))
	})
}

// TestHeard: only what names a peer is a sign of life from a relay, for anybody
// can send in its name.
func TestHeard(t *testing.T) {
	for name, c := range map[string]struct {
		frame []byte
		want  bool
	}{
		"data of a peer":    {[]byte{typeData, 1, 0, 0, 5}, true},
		"data of a nobody":  {[]byte{typeData, 9, 0, 0, 5}, false},
		"junk":              {[]byte{0x55, 1, 0, 0, 5}, false},
		"a control message": {[]byte{typeControl, 0, 0, 0, 5}, false}, // the session judges it
		"too short":         {[]byte{typeData}, false},
	} {
		r, known := newTestReceiver()
		l := r.b.legs[0]
		l.marks.Store(0)
		r.trains = []udp.Train{{Src: known, Buf: c.frame, Size: len(c.frame)}}
		r.fill([][]byte{make([]byte, 100)}, make([]int, 1), make([]conn.Endpoint, 1))
		if got := l.marks.Load()&heardMark != 0; got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestSuspectedSeldom: handshakes by the relay put a direct path in doubt, but
// made-up ones cannot keep it there.
func TestSuspectedSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(Options{Key: key.NewPrivate()})
		k := key.NewPrivate().Public()
		b.SetPeers([]Peer{{Key: k, Label: 1}})
		p := b.peers[k]
		at := &spot{addr: netip.MustParseAddrPort("192.0.2.1:1"), tally: &tally{}}
		doubted := func() bool {
			p.finder.use, p.finder.confirmed = at, true
			p.way.Store(&way{relayed: p.relayed, spot: at})
			b.suspect(p)
			return !p.finder.confirmed
		}
		n := 0
		for range 1000 {
			if doubted() {
				n++
			}
			time.Sleep(10 * time.Millisecond)
		}
		if n != 3 {
			t.Errorf("in doubt %d times in ten seconds", n)
		}
		time.Sleep(suspectGap)
		if !doubted() {
			t.Error("the next handshake is as good as the first")
		}
	})
}
