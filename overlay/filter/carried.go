package filter

import (
	"net/netip"
	"slices"
	"time"
)

// carried is what is reached by the tunnel: prefixes, looked up by each length
// there is.
type carried struct {
	lengths  []int // of 128
	prefixes map[dstKey]struct{}
}

// Carry says what the peers of this node carry. What this side begins to anywhere
// else is refused at once, as nobody would answer; before the first call nothing
// is.
func (f *Filter) Carry(prefixes []netip.Prefix) {
	x := &carried{prefixes: make(map[dstKey]struct{}, len(prefixes))}
	for _, p := range prefixes {
		k := keyOf(p)
		x.prefixes[k] = struct{}{}
		if !slices.Contains(x.lengths, k.bits) {
			x.lengths = append(x.lengths, k.bits)
		}
	}
	f.carried.Store(x)
}

// leads reports whether a peer carries an address, as far as is known.
func (x *carried) leads(a addr) bool {
	return x == nil || slices.ContainsFunc(x.lengths, func(bits int) bool {
		_, is := x.prefixes[dstKey{a.mask(bits), bits}]
		return is && !(bits < bits4 && a.is4())
	})
}

// toward decides about a packet that may begin a flow into the tunnel. who sends it
// by the tunnel; nil: this side does.
func (c *cursor) toward(who *source) (*rule, *source, Verdict) {
	p := &c.p
	if c.f.carried.Load().leads(p.dst) {
		return nil, c.f.index.Load().sources[p.dst], Pass
	}
	if who != nil {
		c.refuse(&who.load.answers)
	} else if c.refuse(&c.f.toLocal) {
		c.f.refused.note(Refusal{p.proto, p.target(), time.Unix(0, c.wall), true})
	}
	return nil, nil, DropNowhere
}
