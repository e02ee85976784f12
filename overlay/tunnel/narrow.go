package tunnel

import (
	"hash/maphash"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"overlayd/overlay/key"
)

// narrows knows the peers whose ways carry less than the interface takes.
type narrows struct {
	table atomic.Pointer[narrowTable] // nil: there is none

	mu    sync.Mutex // guards the rest; held for moments, and calls nobody
	peers []Peer
	mtus  map[key.Public]int // only of narrow ones
}

// narrowTable says how long packets may be by address. It is immutable.
type narrowTable struct {
	least    int // of all peers: whatever is no longer than this fits
	prefixes []narrowPrefixes
}

// narrowPrefixes are all prefixes of one length and family, narrow or not.
type narrowPrefixes struct {
	bits int
	is4  bool
	mtu  map[netip.Prefix]int // 0: whatever the interface takes
}

// DeviceMTU is how long packets to and from a device may be: nobody measures its
// way, and this much every network carries, mobile ones too.
const DeviceMTU = 1280

// SetPathMTU says how long packets to a peer may be to get there in one piece; 0:
// as long as the interface takes. It never blocks.
func (d *Device) SetPathMTU(k key.Public, mtu int) { d.narrow.set(k, mtu) }

func (n *narrows) set(k key.Public, mtu int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if mtu <= 0 {
		delete(n.mtus, k)
	} else {
		if n.mtus == nil {
			n.mtus = map[key.Public]int{}
		}
		n.mtus[k] = mtu
	}
	n.rebuild()
}

// follow says who the peers are.
func (n *narrows) follow(peers []Peer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.peers = slices.Clone(peers)
	for k := range n.mtus {
		if !slices.ContainsFunc(peers, func(p Peer) bool { return p.Key == k }) {
			delete(n.mtus, k)
		}
	}
	for _, p := range peers {
		if p.Device {
			if n.mtus == nil {
				n.mtus = map[key.Public]int{}
			}
			n.mtus[p.Key] = DeviceMTU
		}
	}
	n.rebuild()
}

// rebuild makes the table; mu is held.
func (n *narrows) rebuild() {
	if len(n.mtus) == 0 {
		n.table.Store(nil)
		return
	}
	t := &narrowTable{}
	for _, m := range n.mtus {
		if t.least == 0 || m < t.least {
			t.least = m
		}
	}
	for _, p := range n.peers {
		for _, prefix := range p.AllowedIPs {
			prefix = prefix.Masked()
			t.of(prefix).mtu[prefix] = n.mtus[p.Key]
		}
	}
	slices.SortFunc(t.prefixes, func(a, b narrowPrefixes) int { return b.bits - a.bits })
	n.table.Store(t)
}

// of returns the prefixes of that one's length.
func (t *narrowTable) of(p netip.Prefix) *narrowPrefixes {
	for i := range t.prefixes {
		if g := &t.prefixes[i]; g.bits == p.Bits() && g.is4 == p.Addr().Is4() {
			return g
		}
	}
	t.prefixes = append(t.prefixes, narrowPrefixes{p.Bits(), p.Addr().Is4(), map[netip.Prefix]int{}})
	return &t.prefixes[len(t.prefixes)-1]
}

// mtu returns how long packets to an address, or from it back, may be; 0: as long
// as the interface takes. The longest prefix that holds the address counts, as
// for WireGuard.
func (t *narrowTable) mtu(a netip.Addr) int {
	for i := range t.prefixes {
		g := &t.prefixes[i]
		if g.is4 != a.Is4() {
			continue
		}
		p, err := a.Prefix(g.bits)
		if err != nil {
			continue
		}
		if mtu, ok := g.mtu[p]; ok {
			return mtu
		}
	}
	return 0
}

const (
	// tellCells is how many connections are remembered that were told.
	tellCells = 64
	// tellGap is how long a connection is not told again: what it had sent
	// before it heard is still to come.
	tellGap = 20 * time.Millisecond
)

// tellOffset is how many bytes a TUN wants in front of a packet, for its own
// header: WireGuard leaves as many.
const tellOffset = device.MessageTransportHeaderSize

var room [tellOffset]byte

// fitter makes what is read from the TUN fit. It belongs to the one goroutine
// that reads.
type fitter struct {
	seed  maphash.Seed
	told  [tellCells]tellCell
	error []byte // room for an ICMP error
	last  netip.Addr
	mtu   int // of last, in table
	table *narrowTable
}

type tellCell struct {
	flow uint64
	at   time.Time
}

func newFitter() *fitter { return &fitter{seed: maphash.MakeSeed()} }

// fit looks at the n packets that were read, and returns how many they are then;
// tell takes the ICMP errors for their senders, each behind tellOffset bytes. A
// packet that is too long for its way and must not be divided goes all the same,
// in datagrams that are fragments: a sender that does not hear is slow then,
// where the way takes fragments, instead of dead.
func (f *fitter) fit(now time.Time, t *narrowTable, bufs [][]byte, sizes []int, n, offset int, tell func(b []byte)) int {
	if t != f.table {
		f.table, f.last = t, netip.Addr{}
	}
	for i := range n {
		p := bufs[i][offset : offset+sizes[i]]
		syn := isSYN(p)
		if len(p) <= t.least && !syn {
			continue
		}
		_, dst, ok := addresses(p)
		if !ok {
			continue
		}
		if dst != f.last { // what is read at once mostly goes to one place
			f.last, f.mtu = dst, t.mtu(dst)
		}
		if f.mtu == 0 {
			continue
		}
		if syn {
			clampMSS(p, f.mtu)
		}
		switch treat(p, f.mtu) {
		case remedyTell:
			if f.due(now, p) {
				f.error = appendTooBig(append(f.error[:0], room[:]...), p, f.mtu)
				tell(f.error)
			}
		case remedyDivide:
			pieces := divide(p, f.mtu, bufs[n:], sizes[n:], offset)
			if pieces > 0 {
				sizes[i] = header4 + (f.mtu-header4)&^7
			}
			n += pieces
		}
	}
	return n
}

// due reports whether a packet's sender is to be told now.
func (f *fitter) due(now time.Time, p []byte) bool {
	flow := p[12:min(len(p), header4+4)] // addresses, and ports if there are any
	if p[0]>>4 == 6 {
		flow = p[8:min(len(p), header6+4)]
	}
	sum := maphash.Bytes(f.seed, flow)
	cell := &f.told[sum%tellCells]
	if cell.flow == sum && now.Sub(cell.at) < tellGap {
		return false
	}
	*cell = tellCell{sum, now}
	return true
}

// clampFrom lowers the segment sizes in SYNs that came from peers.
func (t *narrowTable) clampFrom(bufs [][]byte, offset int) {
	for _, b := range bufs {
		if len(b) <= offset {
			continue
		}
		p := b[offset:]
		if !isSYN(p) {
			continue
		}
		if src, _, ok := addresses(p); ok {
			if mtu := t.mtu(src); mtu != 0 {
				clampMSS(p, mtu)
			}
		}
	}
}
