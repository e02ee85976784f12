package filter

import "sync"

const (
	// fragmentBuckets times fragmentWays datagrams may be under way at once.
	fragmentBuckets = 64
	fragmentWays    = 16
	// fragmentLife is as long as Linux keeps the fragments of a datagram
	// (ipfrag_time), in ns.
	fragmentLife = int64(30e9)
	// fragmentGaps is how many separate pieces of a datagram may have passed.
	// Those of one sender come in order, or nearly.
	fragmentGaps = 4
)

// fragmentKey names a datagram, in one direction.
type fragmentKey struct {
	src, dst addr
	id       uint32
	proto    uint8 // of IPv4; in IPv6 the identifier stands alone (RFC 8200 section 4.5)
	out      bool
}

// datagram is one whose first fragment has passed.
type datagram struct {
	key    fragmentKey
	flow   key
	first  int64 // when, in ns since the filter's base
	pieces int8
	from   [fragmentGaps]uint16 // what has passed, as from..to in bytes
	to     [fragmentGaps]uint16
}

// fragments remembers datagrams whose first fragment has passed. It has a fixed
// size: a new one replaces the oldest of its bucket.
type fragments struct {
	buckets [fragmentBuckets]struct {
		mu    sync.Mutex // guards the rest
		n     int
		items [fragmentWays]datagram
	}
}

func (p *packet) fragmentKey(out bool) fragmentKey {
	k := fragmentKey{src: p.src, dst: p.dst, id: p.fragID, proto: p.proto, out: out}
	if p.v6 {
		k.proto = 0
	}
	return k
}

func (k *fragmentKey) bucket(h *hasher) int {
	v := key{remote: k.src, local: k.dst, ports: k.id, proto: uint32(k.proto)}
	_, sum := h.sum(&v)
	return int(sum % fragmentBuckets)
}

// begin notes that a first fragment passes, unless another one has.
func (t *fragments) begin(h *hasher, p *packet, out bool, flow key, mono int64) Verdict {
	k := p.fragmentKey(out)
	b := &t.buckets[k.bucket(h)]
	b.mu.Lock()
	defer b.mu.Unlock()
	at := -1
	for i := range b.items[:b.n] {
		d := &b.items[i]
		if d.key == k {
			if mono-d.first < fragmentLife {
				return DropFragmentOver
			}
			at = i
			break
		}
	}
	if at < 0 && b.n < fragmentWays {
		at, b.n = b.n, b.n+1
	}
	if at < 0 {
		at = 0
		for i := range b.items {
			if b.items[i].first < b.items[at].first {
				at = i
			}
		}
	}
	b.items[at] = datagram{key: k, flow: flow, first: mono, pieces: 1}
	b.items[at].to[0] = uint16(p.fragLen)
	return Pass
}

// follow returns the flow of a later fragment whose first one has passed.
func (t *fragments) follow(h *hasher, p *packet, out bool, mono int64) (key, Verdict) {
	k := p.fragmentKey(out)
	b := &t.buckets[k.bucket(h)]
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.items[:b.n] {
		d := &b.items[i]
		if d.key == k && mono-d.first < fragmentLife {
			return d.flow, d.add(uint16(p.fragAt), uint16(p.fragAt+p.fragLen))
		}
	}
	return key{}, DropFragmentLost
}

// add notes that from..to passes, unless a part of it has already.
func (d *datagram) add(from, to uint16) Verdict {
	before, after := -1, -1
	for i := range int(d.pieces) {
		switch {
		case from < d.to[i] && d.from[i] < to:
			return DropFragmentOver
		case d.to[i] == from:
			before = i
		case d.from[i] == to:
			after = i
		}
	}
	switch {
	case before >= 0 && after >= 0:
		d.to[before] = d.to[after]
		d.pieces--
		d.from[after], d.to[after] = d.from[d.pieces], d.to[d.pieces]
	case before >= 0:
		d.to[before] = to
	case after >= 0:
		d.from[after] = from
	case d.pieces == fragmentGaps:
		return DropFragmentOdd
	default:
		d.from[d.pieces], d.to[d.pieces] = from, to
		d.pieces++
	}
	return Pass
}
