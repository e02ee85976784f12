package relay

import "sync/atomic"

// index is a hash map that is read without locks while one goroutine at a time
// writes. A reader sees each key as it was before a write or after it.
type index[K comparable, V any] struct {
	hash    func(K) uint64                // set by newIndex, then read-only
	buckets atomic.Pointer[[]chain[K, V]] // a power of two of them
	n       atomic.Int64
}

// chain is the place of the next link.
type chain[K comparable, V any] struct{ atomic.Pointer[link[K, V]] }

type link[K comparable, V any] struct {
	key   K
	value *V
	next  chain[K, V]
}

const minBuckets = 16

func newIndex[K comparable, V any](hash func(K) uint64) *index[K, V] {
	x := &index[K, V]{hash: hash}
	b := make([]chain[K, V], minBuckets)
	x.buckets.Store(&b)
	return x
}

// get returns nil for a key that is absent.
func (x *index[K, V]) get(k K) *V {
	b := *x.buckets.Load()
	for l := b[x.hash(k)&uint64(len(b)-1)].Load(); l != nil; l = l.next.Load() {
		if l.key == k {
			return l.value
		}
	}
	return nil
}

func (x *index[K, V]) len() int { return int(x.n.Load()) }

// put adds or replaces. The writers' lock is held.
func (x *index[K, V]) put(k K, v *V) {
	b := *x.buckets.Load()
	if x.len() >= len(b) {
		b = x.grow(b)
	}
	c := &b[x.hash(k)&uint64(len(b)-1)]
	fresh := &link[K, V]{key: k, value: v}
	for old := c.Load(); old != nil; c, old = &old.next, old.next.Load() {
		if old.key == k {
			fresh.next.Store(old.next.Load())
			c.Store(fresh)
			return
		}
	}
	c.Store(fresh) // at the end of the chain
	x.n.Add(1)
}

// grow doubles the buckets. Readers go on with the old ones, whose links stay
// as they are.
func (x *index[K, V]) grow(old []chain[K, V]) []chain[K, V] {
	b := make([]chain[K, V], 2*len(old))
	for i := range old {
		for l := old[i].Load(); l != nil; l = l.next.Load() {
			c := &b[x.hash(l.key)&uint64(len(b)-1)]
			n := &link[K, V]{key: l.key, value: l.value}
			n.next.Store(c.Load())
			c.Store(n)
		}
	}
	x.buckets.Store(&b)
	return b
}

// drop removes a key. A reader that stands on its link still finds the way on.
// The writers' lock is held.
func (x *index[K, V]) drop(k K) {
	b := *x.buckets.Load()
	for c := &b[x.hash(k)&uint64(len(b)-1)]; ; {
		l := c.Load()
		if l == nil {
			return
		}
		if l.key == k {
			c.Store(l.next.Load())
			x.n.Add(-1)
			return
		}
		c = &l.next
	}
}

// all calls f for every value. f may drop the value it is called with.
func (x *index[K, V]) all(f func(*V)) {
	b := *x.buckets.Load()
	for i := range b {
		for l := b[i].Load(); l != nil; l = l.next.Load() {
			f(l.value)
		}
	}
}
