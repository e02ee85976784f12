package filter

import (
	"math/bits"
	"math/rand/v2"
	"sync"
	"unsafe"
)

// shards is how many parts the table has, each with a lock of its own. With
// 64, sixteen goroutines meet at one in every fifth packet at most.
const shards = 64

// hasher turns a key into a number that nobody outside can foresee.
type hasher [4]uint64

func newHasher() hasher {
	return hasher{rand.Uint64() | 1, rand.Uint64() | 1, rand.Uint64() | 1, rand.Uint64() | 1}
}

// sum returns a key's shard and its hash within the shard.
func (h *hasher) sum(k *key) (shard int, hash uint64) {
	a, b := bits.Mul64(k.remote.lo^h[0], k.local.lo^h[1]^uint64(k.ports)<<32)
	c, d := bits.Mul64(k.remote.hi^h[2], k.local.hi^h[3]^uint64(k.proto))
	e, f := bits.Mul64(a^b^uint64(k.ports)^h[2], c^d^h[0])
	v := e ^ f
	return int(v % shards), spread(uint32(v >> 32))
}

// spread makes a hash of its upper half, which is all that is kept with a slot.
func spread(upper uint32) uint64 {
	return uint64(upper)<<32 | uint64(upper*0x9e3779b1>>7)
}

// list is a queue of flows by their slots; 0 is none, slots count from 1.
type list struct {
	first, last uint32
	n           int
}

// shard is a part of the table: flows in one slice, found by a table of slots
// with linear probing.
type shard struct {
	mu      sync.Mutex // guards what follows
	slots   []uint64   // the hash's upper half and the slot; 0 is free
	flows   []flow     // flows[0] is not used
	free    uint32     // a chain of free slots
	n       int
	limit   int
	waiting list // unproved flows, the oldest first
	cuts    list // flows that were cut, the oldest first
	hand    int  // where the next look for idle flows begins
	_       [64]byte
}

const (
	// smallestShard is how many places a shard begins with.
	smallestShard = 64
	// smallestLimit leaves some flows to either half of a shard.
	smallestLimit = 16
)

func (s *shard) init(limit int) {
	s.limit = max(limit, smallestLimit)
	s.slots = make([]uint64, smallestShard)
	s.flows = make([]flow, 1, smallestShard/2)
}

// find returns the slot of a flow, or 0.
func (s *shard) find(k *key, h uint64) uint32 {
	mask := uint64(len(s.slots) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		v := s.slots[i]
		if v == 0 {
			return 0
		}
		if v>>32 == h>>32 {
			if slot := uint32(v); s.flows[slot].key == *k {
				return slot
			}
		}
	}
}

// insert makes room for a flow and returns its slot, which is empty but for the
// key. The caller has seen that there is room and that the key is new.
func (s *shard) insert(k *key, h uint64) uint32 {
	slot := s.free
	if slot != 0 {
		s.free = s.flows[slot].next
	} else {
		slot = uint32(len(s.flows))
		s.flows = append(s.flows, flow{})
	}
	s.flows[slot] = flow{key: *k, hash: uint32(h >> 32), used: true}
	s.n++
	if 2*s.n > len(s.slots) {
		s.grow()
	} else {
		s.put(h, slot)
	}
	return slot
}

func (s *shard) put(h uint64, slot uint32) {
	mask := uint64(len(s.slots) - 1)
	i := h & mask
	for s.slots[i] != 0 {
		i = (i + 1) & mask
	}
	s.slots[i] = h>>32<<32 | uint64(slot)
}

// grow doubles the places.
func (s *shard) grow() {
	s.slots = make([]uint64, 2*len(s.slots))
	for i := range s.flows {
		if f := &s.flows[i]; f.used {
			s.put(spread(f.hash), uint32(i))
		}
	}
}

// remove frees a slot.
func (s *shard) remove(slot uint32) {
	f := &s.flows[slot]
	s.unlist(f, slot)
	mask := uint64(len(s.slots) - 1)
	i := spread(f.hash) & mask
	for uint32(s.slots[i]) != slot {
		i = (i + 1) & mask
	}
	// Close the gap: what stands behind it and may stand there moves up.
	for j := i; ; {
		j = (j + 1) & mask
		v := s.slots[j]
		if v == 0 {
			break
		}
		if home := spread(uint32(v>>32)) & mask; (j-home)&mask >= (j-i)&mask {
			s.slots[i] = v
			i = j
		}
	}
	s.slots[i] = 0
	*f = flow{next: s.free}
	s.free = slot
	s.n--
}

// queue returns the list that flows of a phase wait in, or nil.
func (s *shard) queue(p phase) *list {
	switch {
	case p.unproved():
		return &s.waiting
	case p == cut:
		return &s.cuts
	}
	return nil
}

// enlist puts a flow into the list of its phase.
func (s *shard) enlist(f *flow, slot uint32) {
	q := s.queue(f.phase)
	if q == nil {
		return
	}
	f.prev, f.next = q.last, 0
	if q.last != 0 {
		s.flows[q.last].next = slot
	} else {
		q.first = slot
	}
	q.last = slot
	q.n++
}

func (s *shard) unlist(f *flow, slot uint32) {
	q := s.queue(f.phase)
	if q == nil {
		return
	}
	if f.prev != 0 {
		s.flows[f.prev].next = f.next
	} else {
		q.first = f.next
	}
	if f.next != 0 {
		s.flows[f.next].prev = f.prev
	} else {
		q.last = f.prev
	}
	f.prev, f.next = 0, 0
	q.n--
}

// move changes a flow's phase.
func (s *shard) move(f *flow, slot uint32, to phase) {
	if f.phase == to {
		return
	}
	if s.queue(f.phase) != s.queue(to) {
		s.unlist(f, slot)
		f.phase = to
		s.enlist(f, slot)
		return
	}
	f.phase = to
}

// victim returns the slot of a flow that a new one may replace, or 0 when there
// is room, and whether there is a way at all. Unproved flows go first, the
// oldest of them; they never fill more than half, so that a flood of them
// leaves the other half alone. A flow that is established goes only when the
// table is full of such, and it has been silent for long.
func (s *shard) victim(mono int64) (slot uint32, ok bool) {
	if s.n < s.limit && s.waiting.n < s.limit/2 {
		return 0, true
	}
	if s.waiting.first != 0 {
		return s.waiting.first, true
	}
	if s.cuts.n > s.limit/16 {
		return s.cuts.first, true
	}
	const looks = 8 // per new flow: bounded work
	for range looks {
		s.hand++
		if s.hand >= len(s.flows) {
			s.hand = 1
		}
		if f := &s.flows[s.hand]; f.used && f.phase != cut && mono-f.seen > int64(idleEnough) {
			return uint32(s.hand), true
		}
	}
	return 0, false
}

// bytes returns how much memory the shard's flows and places take.
func (s *shard) bytes() int {
	return cap(s.flows)*int(unsafe.Sizeof(flow{})) + cap(s.slots)*8
}
