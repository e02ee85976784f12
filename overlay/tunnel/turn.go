package tunnel

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"overlayd/overlay/filter"
)

const (
	// turnSlots is how many packets wait to go back into WireGuard: some batches,
	// in 2 MiB. When they are full, what comes is lost, as at any router.
	turnSlots = 1024
	// turnSize is the longest packet that is turned round: above what any way
	// carries in one piece.
	turnSize = 2048
	// expiredGap is the least time between two ICMP errors about packets whose
	// life is over: what a traceroute needs.
	expiredGap = 5 * time.Millisecond
)

// turn sends packets back into WireGuard: those of devices that go to others, and
// those of others that go to devices. The kernel never sees them. It is a router
// of its own: a packet lives one hop less, and one that dies is told of.
type turn struct {
	guard   *guard
	table   atomic.Pointer[turnTable] // nil: there are no devices
	sleeps  atomic.Bool               // the reader waits, or is about to
	lost    atomic.Uint64
	expired atomic.Int64 // when an error was last sent, Unix ns

	change sync.Mutex // held while the table is made, guards the next two
	own    []netip.Addr
	peers  []Peer

	mu    sync.Mutex // guards the rest
	slots [][]byte   // of turnSize bytes each; nil: there was never a device
	sizes [turnSlots]int
	first int
	n     int
}

// turnTable is immutable.
type turnTable struct {
	own     map[netip.Addr]struct{} // of this machine's interface
	devices map[netip.Addr]struct{}
	self    netip.Addr // from which errors come; zero: none are sent
}

// SetOwn says which addresses the interface has, the machine's own first.
func (d *Device) SetOwn(own []netip.Addr) { d.tun.turn.set(own) }

// TurnedLost counts packets between devices and others for which there was no
// room, or which were too long.
func (d *Device) TurnedLost() uint64 { return d.tun.turn.lost.Load() }

func (t *turn) set(own []netip.Addr) {
	t.change.Lock()
	defer t.change.Unlock()
	t.own = own
	t.rebuild()
}

// follow says who the peers are.
func (t *turn) follow(peers []Peer) {
	t.change.Lock()
	defer t.change.Unlock()
	t.peers = peers
	t.rebuild()
}

// rebuild makes the table; change is held.
func (t *turn) rebuild() {
	table := &turnTable{own: map[netip.Addr]struct{}{}, devices: map[netip.Addr]struct{}{}}
	for _, p := range t.peers {
		for _, a := range p.AllowedIPs {
			if p.Device && a.IsSingleIP() {
				table.devices[a.Addr()] = struct{}{}
			}
		}
	}
	for i, a := range t.own {
		table.own[a] = struct{}{}
		if i == 0 {
			table.self = a
		}
	}
	if len(table.devices) == 0 {
		t.table.Store(nil)
		return
	}
	t.mu.Lock()
	if t.slots == nil {
		t.slots = make([][]byte, turnSlots)
		room := make([]byte, turnSlots*turnSize)
		for i := range t.slots {
			t.slots[i] = room[i*turnSize : (i+1)*turnSize]
		}
	}
	t.mu.Unlock()
	if t.table.Swap(table) == nil {
		t.guard.wake() // the reader sleeps, and nobody would wake it for what is turned
	}
}

func (t *turnTable) isDevice(a netip.Addr) bool {
	_, is := t.devices[a]
	return is
}

func (t *turnTable) isOwn(a netip.Addr) bool {
	_, is := t.own[a]
	return is
}

// through turns round what devices send to others than this machine, and returns
// the rest, for the filter to judge as what comes in. Of two devices here, the
// rules are asked for the one that sends, and for the one that receives besides.
func (t *turn) through(now time.Time, f *filter.Filter, s *sieve, table *turnTable, bufs [][]byte, offset int, narrow *narrowTable) [][]byte {
	for _, b := range bufs {
		src, dst, ok := addresses(b[offset:])
		if !ok || !table.isDevice(src) || table.isOwn(dst) {
			s.rest = append(s.rest, b)
			continue
		}
		s.through = append(s.through, b)
		s.packets = append(s.packets, b[offset:])
	}
	if len(s.through) == 0 {
		return s.rest
	}
	f.Out(now, s.packets, &s.batch)
	for i, v := range s.batch.Verdicts {
		if v != filter.Pass {
			continue
		}
		if _, dst, _ := addresses(s.packets[i]); table.isDevice(dst) {
			s.rest = append(s.rest, s.through[i])
			continue
		}
		t.push(now, table, s.packets[i], narrow)
	}
	for _, a := range s.batch.Answers {
		t.guard.back.put(a)
	}
	if len(s.batch.Answers) > 0 {
		t.guard.wake()
	}
	clear(s.packets)
	s.packets = s.packets[:0]
	t.ring()
	return s.rest
}

// toDevices turns round what goes to devices, and returns the rest.
func (t *turn) toDevices(now time.Time, table *turnTable, bufs [][]byte, offset int, narrow *narrowTable) [][]byte {
	kept := bufs[:0]
	for _, b := range bufs {
		if _, dst, ok := addresses(b[offset:]); ok && table.isDevice(dst) {
			t.push(now, table, b[offset:], narrow)
			continue
		}
		kept = append(kept, b)
	}
	if len(kept) < len(bufs) {
		t.ring()
	}
	return kept
}

// push copies a packet for the reader.
func (t *turn) push(now time.Time, table *turnTable, p []byte, narrow *narrowTable) {
	if p[0]>>4 != 4 || len(p) > turnSize { // the overlay is IPv4
		t.lost.Add(1)
		return
	}
	if p[8] <= 1 {
		t.expire(now, table, p)
		return
	}
	if isSYN(p) && narrow != nil {
		if src, _, ok := addresses(p); ok {
			if mtu := narrow.mtu(src); mtu != 0 {
				clampMSS(p, mtu)
			}
		}
	}
	was := binary.BigEndian.Uint16(p[8:])
	p[8]--
	binary.BigEndian.PutUint16(p[10:], updateSum(binary.BigEndian.Uint16(p[10:]), was, binary.BigEndian.Uint16(p[8:])))
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n == turnSlots {
		t.lost.Add(1)
		return
	}
	at := (t.first + t.n) % turnSlots
	t.sizes[at] = copy(t.slots[at], p)
	t.n++
}

// expire tells the sender of a packet whose life is over.
func (t *turn) expire(now time.Time, table *turnTable, p []byte) {
	last := t.expired.Load()
	if !table.self.Is4() || !tellable(p) || now.UnixNano()-last < int64(expiredGap) || !t.expired.CompareAndSwap(last, now.UnixNano()) {
		return
	}
	t.guard.back.put(appendExpired(nil, p, table.self))
	t.guard.wake()
}

// ring wakes the reader if it sleeps.
func (t *turn) ring() {
	if t.sleeps.Swap(false) {
		t.guard.wake()
	}
}

// tell sends an ICMP error, behind tellOffset bytes, to the sender of a packet
// that was turned round.
func (t *turn) tell(b []byte) { t.guard.back.put(b[tellOffset:]) }

// take moves what waits into bufs, as a TUN's Read does.
func (t *turn) take(bufs [][]byte, sizes []int, offset int) (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for ; n < len(bufs) && t.n > 0; n++ {
		sizes[n] = copy(bufs[n][offset:], t.slots[t.first][:t.sizes[t.first]])
		t.first, t.n = (t.first+1)%turnSlots, t.n-1
	}
	return n
}
