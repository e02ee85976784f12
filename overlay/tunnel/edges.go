package tunnel

import (
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// gatedTUN is the TUN as WireGuard sees it: its reads wait for room, what passes is
// made fit for ways that carry less than the interface takes, and its
// being set up or down is not passed on, only a change of its MTU.
type gatedTUN struct {
	tun.Device
	out, in *gate
	narrow  *narrows
	guard   *guard
	turn    *turn
	look    func([][]byte, []int, int) (int, error) // a Read that does not wait; nil: there is none
	turned  bool                                    // the last Read gave what was turned round
	fitter  *fitter                                 // of the one goroutine that reads, as the next three
	sieve   *sieve
	tell    func([]byte) // writes one packet
	timer   *time.Timer
	events  chan tun.Event
	ended   chan struct{} // closed when no more events come
}

func newGatedTUN(t tun.Device, out, in *gate, narrow *narrows) *gatedTUN {
	wake := func() {}
	if i, ok := t.(interface{ Interrupt() }); ok {
		wake = i.Interrupt // without it, answers leave with the next packet
	}
	g := &gatedTUN{
		Device: t, out: out, in: in, narrow: narrow, guard: newGuard(wake), fitter: newFitter(), sieve: &sieve{}, timer: time.NewTimer(0),
		events: make(chan tun.Event, 1), ended: make(chan struct{}),
	}
	g.turn = &turn{guard: g.guard}
	if l, ok := t.(interface {
		Look([][]byte, []int, int) (int, error)
	}); ok {
		g.look = l.Look
	}
	one := make([][]byte, 1)
	g.tell = func(b []byte) {
		one[0] = b
		_, _ = t.Write(one, tellOffset) // an error is the sender's loss, who will be told again
	}
	go g.passEvents()
	return g
}

// passEvents ends when the TUN is closed.
func (t *gatedTUN) passEvents() {
	defer close(t.ended)
	defer close(t.events)
	for e := range t.Device.Events() {
		if e&tun.EventMTUUpdate != 0 {
			t.events <- tun.EventMTUUpdate
		}
	}
}

func (t *gatedTUN) Events() <-chan tun.Event { return t.events }

func (t *gatedTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	t.out.wait(t.timer)
	n := t.guard.back.take(bufs, sizes, offset)
	if n > 0 {
		t.out.enter(n, time.Now().UnixNano())
		return n, nil
	}
	if t.turn.table.Load() != nil {
		if n, err := t.readTurned(bufs, sizes, offset); n > 0 || err != nil {
			return n, err
		}
	}
	n, err := t.Device.Read(bufs, sizes, offset)
	t.turn.sleeps.Store(false)
	return t.sent(bufs, sizes, n, offset), err
}

// sent makes the n packets that this side sends fit for the tunnel, and returns
// how many they are then.
func (t *gatedTUN) sent(bufs [][]byte, sizes []int, n, offset int) int {
	now := time.Now()
	if f := t.guard.filter.Load(); f != nil && n > 0 {
		t.guard.out(now, f, t.sieve, bufs, sizes, n, offset, t.tell)
	}
	if table := t.narrow.table.Load(); table != nil {
		n = t.fitter.fit(now, table, bufs, sizes, n, offset, t.tell)
	}
	t.out.enter(count(sizes[:n]), now.UnixNano())
	return n
}

// readTurned reads what was turned round, and what this side sends in turn with
// it. When there is neither, whoever turns the next packet wakes the reader.
func (t *gatedTUN) readTurned(bufs [][]byte, sizes []int, offset int) (int, error) {
	if t.turned && t.look != nil {
		t.turned = false
		if n, err := t.look(bufs, sizes, offset); n > 0 || err != nil {
			return t.sent(bufs, sizes, n, offset), err
		}
	}
	for range 2 {
		n := t.turn.take(bufs[:(len(bufs)+1)/2], sizes, offset) // fitting may make more of them
		if n == 0 {
			t.turn.sleeps.Store(true) // and look once more: somebody may have come before this
			continue
		}
		t.turn.sleeps.Store(false)
		t.turned = true
		now := time.Now()
		if table := t.narrow.table.Load(); table != nil {
			n = t.fitter.fit(now, table, bufs, sizes, n, offset, t.turn.tell)
		}
		t.out.enter(n, now.UnixNano())
		return n, nil
	}
	return 0, nil
}

// count returns how many packets there are among what was read.
func count(sizes []int) (n int) {
	for _, size := range sizes {
		if size > 0 {
			n++
		}
	}
	return n
}

func (t *gatedTUN) Write(bufs [][]byte, offset int) (int, error) {
	defer t.in.leave(len(bufs))
	f := t.guard.filter.Load()
	if f == nil {
		return t.pass(bufs, offset)
	}
	s := t.guard.sieves.Get().(*sieve)
	defer t.guard.sieves.Put(s)
	defer s.reset()
	now := time.Now()
	if table := t.turn.table.Load(); table != nil {
		bufs = t.turn.through(now, f, s, table, bufs, offset, t.narrow.table.Load())
	}
	kept := t.guard.in(now, f, s, bufs, offset)
	if table := t.turn.table.Load(); table != nil {
		kept = t.turn.toDevices(now, table, kept, offset, t.narrow.table.Load())
	}
	if len(kept) == 0 {
		return 0, nil
	}
	return t.pass(kept, offset)
}

// pass gives packets to this side.
func (t *gatedTUN) pass(bufs [][]byte, offset int) (int, error) {
	if table := t.narrow.table.Load(); table != nil {
		table.clampFrom(bufs, offset)
	}
	return t.Device.Write(bufs, offset)
}

// writeAll gives packets of our own making to this side.
func (t *gatedTUN) writeAll(list [][]byte) {
	one, b := make([][]byte, 1), []byte(nil)
	for _, p := range list {
		b = append(append(b[:0], room[:]...), p...)
		one[0] = b
		if _, err := t.Device.Write(one, tellOffset); err != nil {
			return // it is closed
		}
	}
}

// gatedBind is the Bind as WireGuard sees it.
type gatedBind struct {
	conn.Bind
	out, in *gate
	met     *contacts
}

func (b *gatedBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, port, err := b.Bind.Open(port)
	for i, receive := range fns {
		timer := time.NewTimer(0)
		fns[i] = func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
			b.in.wait(timer)
			n, err := receive(bufs, sizes, eps)
			b.met.received(bufs, sizes[:n], eps, time.Now)
			b.in.enter(countData(bufs, sizes, n), time.Now().UnixNano())
			return n, err
		}
	}
	return fns, port, err
}

func (b *gatedBind) Send(bufs [][]byte, ep conn.Endpoint) error {
	b.met.sends(bufs, ep, time.Now)
	err := b.Bind.Send(bufs, ep)
	n := 0
	for _, p := range bufs {
		if carriesData(p) {
			n++
		}
	}
	b.out.leave(n)
	return err
}

// countData returns how many of the n datagrams carry a packet for the TUN.
func countData(bufs [][]byte, sizes []int, n int) (data int) {
	for i, size := range sizes[:n] {
		if carriesData(bufs[i][:size]) {
			data++
		}
	}
	return data
}

// carriesData reports whether a datagram holds a packet: not a handshake, nor a
// keepalive, which is a data message of nothing.
func carriesData(p []byte) bool {
	return len(p) > device.MessageTransportSize && p[0] == device.MessageTransportType
}
