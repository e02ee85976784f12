package filter

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// refusalWindow is the window in the resets that refuse by policy. Nobody looks
// at a reset's window (RFC 9293 section 3.10.7.4), so it can tell the filter at
// the other end that the host itself had no part in it. A host that forges it
// is called forbidden where it is closed.
const refusalWindow = 0x6f76

// rememberedRefusals is how many are kept: who asks has just been refused.
const rememberedRefusals = 64

// refusals are the last flows of this side that the other side's policy refused.
type refusals struct {
	mu   sync.Mutex // guards what follows
	list [rememberedRefusals]Refusal
	next int
}

// Refusal is a flow of this side that the other side's policy refused, or that
// never left.
type Refusal struct {
	Proto   uint8
	Remote  netip.AddrPort // without a port where the protocol has none
	At      time.Time
	Nowhere bool // no peer carries it
}

func (r *refusals) note(v Refusal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list[r.next] = v
	r.next = (r.next + 1) % len(r.list)
}

// noteReset takes note of a flow's reset, and of who refused it if this side
// began it.
func (c *cursor) noteReset(f *flow) {
	const windowAt = 14
	if f.phase != ended {
		f.resetAt = c.mono
	}
	if c.out || !f.outward || binary.BigEndian.Uint16(c.raw[c.p.transport+windowAt:]) != refusalWindow {
		return
	}
	c.f.refused.note(Refusal{tcp, netip.AddrPortFrom(c.p.src.netip(), c.p.sport), time.Unix(0, c.wall), false})
}

// refusing4 and refusing6 are the codes of "destination unreachable" by which a
// machine says that it must not pass something (RFC 1812 section 5.2.7.1, RFC 4443
// section 3.1).
var (
	refusing4 = []uint8{9, 10, 13}
	refusing6 = []uint8{1, 5, 6}
)

// noteError takes note of an error about a flow of this side.
func (c *cursor) noteError(quoted *packet, f *flow) {
	const unreachable4, unreachable6 = 3, 1
	kind, codes := uint8(unreachable4), refusing4
	if c.p.v6 {
		kind, codes = unreachable6, refusing6
	}
	if c.out || !f.outward || c.p.icmpType != kind || !slices.Contains(codes, c.p.icmpCode) {
		return
	}
	c.f.refused.note(Refusal{quoted.proto, quoted.target(), time.Unix(0, c.wall), false})
}

// target is where a packet goes, without a port where its protocol has none: of an
// echo it is the identifier.
func (p *packet) target() netip.AddrPort {
	if p.proto != tcp && p.proto != udp {
		return netip.AddrPortFrom(p.dst.netip(), 0)
	}
	return netip.AddrPortFrom(p.dst.netip(), p.dport)
}

// Refused reports whether the policy of the node that carries remote refused a
// flow of this side to it since a moment. Only some dozens of refusals are
// remembered.
func (f *Filter) Refused(proto uint8, remote netip.AddrPort, since time.Time) bool {
	f.refused.mu.Lock()
	defer f.refused.mu.Unlock()
	return slices.ContainsFunc(f.refused.list[:], func(r Refusal) bool {
		return r.Proto == proto && r.Remote == remote && !r.At.Before(since)
	})
}

// Refusals lists what was refused since a moment, the newest first, each protocol
// and remote once.
func (f *Filter) Refusals(since time.Time) (list []Refusal) {
	f.refused.mu.Lock()
	defer f.refused.mu.Unlock()
	for i := range f.refused.list {
		r := f.refused.list[(f.refused.next+len(f.refused.list)-1-i)%len(f.refused.list)]
		same := func(o Refusal) bool { return o.Proto == r.Proto && o.Remote == r.Remote }
		if !r.At.IsZero() && !r.At.Before(since) && !slices.ContainsFunc(list, same) {
			list = append(list, r)
		}
	}
	return list
}
