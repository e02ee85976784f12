package relay

import "sync"

// ring holds datagrams for a reader that may be slow: when there is no room,
// the oldest go. All memory is taken at the start.
type ring[S any] struct {
	mu     sync.Mutex // guards all below
	filled sync.Cond  // something came, or closed
	closed bool
	data   []byte
	items  []item[S] // a circle: n of them from first
	first  int
	n      int
	end    int // where the next datagram goes in data
}

type item[S any] struct {
	src   S // from whom
	start int
	size  int
}

const (
	// ringBytes holds 5 ms of 1.6 Gbit/s: what a reader may lag behind.
	ringBytes = 1 << 20
	// ringItems allows for datagrams of 512 bytes on average.
	ringItems = 2048
)

func newRing[S any](bytes, items int) *ring[S] {
	r := &ring[S]{data: make([]byte, bytes), items: make([]item[S], items)}
	r.filled.L = &r.mu
	return r
}

// push takes a train of datagrams of size bytes each, the last may be shorter,
// and returns how many datagrams were dropped: older ones to make room.
func (r *ring[S]) push(src S, train []byte, size int) (dropped int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return (len(train) + size - 1) / size
	}
	for len(train) > 0 {
		k := min(size, len(train))
		if k > len(r.data) {
			dropped++
		} else {
			start, n := r.room(k)
			dropped += n
			copy(r.data[start:], train[:k])
			r.items[(r.first+r.n)%len(r.items)] = item[S]{src, start, k}
			r.n++
			r.end = start + k
		}
		train = train[k:]
	}
	r.filled.Signal()
	return dropped
}

// room finds k bytes in a row behind the newest item, dropping the oldest
// until there are. mu is held.
func (r *ring[S]) room(k int) (start, dropped int) {
	for {
		if r.n == 0 {
			return 0, dropped
		}
		oldest := r.items[r.first].start
		switch {
		case r.n == len(r.items):
		case oldest < r.end: // used: oldest to end
			if len(r.data)-r.end >= k {
				return r.end, dropped
			}
			if oldest >= k {
				return 0, dropped
			}
		default: // used: all but end to oldest
			if oldest-r.end >= k {
				return r.end, dropped
			}
		}
		r.pop()
		dropped++
	}
}

// pop removes the oldest. mu is held.
func (r *ring[S]) pop() item[S] {
	it := r.items[r.first]
	r.first = (r.first + 1) % len(r.items)
	r.n--
	return it
}

// take waits for datagrams and copies as many as there are bufs for; one that
// does not fit its buffer is dropped. ok is false when the ring is closed.
func (r *ring[S]) take(bufs [][]byte, sizes []int, src []S) (n, tooLong int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for n == 0 {
		for r.n == 0 && !r.closed {
			r.filled.Wait()
		}
		if r.closed {
			return 0, tooLong, false
		}
		for n < len(bufs) && n < len(sizes) && n < len(src) && r.n > 0 {
			it := r.pop()
			if it.size > len(bufs[n]) {
				tooLong++
				continue
			}
			copy(bufs[n], r.data[it.start:it.start+it.size])
			sizes[n], src[n] = it.size, it.src
			n++
		}
		if len(bufs) == 0 || len(sizes) == 0 || len(src) == 0 {
			return 0, tooLong, true
		}
	}
	return n, tooLong, true
}

// close lets the reader go. What is in the ring is lost.
func (r *ring[S]) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.filled.Broadcast()
}
