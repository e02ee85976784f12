package policy

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Delta is what changes one ruleset into another.
type Delta struct {
	Base string `json:"base"` // the Digest of the ruleset it is for
	Next string `json:"next"` // and of what comes out

	Own    bool           `json:"own,omitempty"` // Self, Hosted and Routes replace the old ones
	Self   []netip.Addr   `json:"self,omitempty"`
	Hosted []netip.Addr   `json:"hosted,omitempty"`
	Routes []netip.Prefix `json:"routes,omitempty"`

	Sources     []Source     `json:"sources,omitempty"` // new or changed
	DropSources []netip.Addr `json:"drop_sources,omitempty"`
	From        []SetDelta   `json:"from,omitempty"`
	To          []SetDelta   `json:"to,omitempty"`
	Rules       []NodeRule   `json:"rules,omitempty"` // new or changed
	DropRules   []string     `json:"drop_rules,omitempty"`
}

// SetDelta is what changes in one set; one that was not there begins empty.
type SetDelta struct {
	ID     string         `json:"id"`
	Gone   bool           `json:"gone,omitempty"`
	Add    []netip.Prefix `json:"add,omitempty"`
	Remove []netip.Prefix `json:"remove,omitempty"`
}

// ErrBase means that a delta is for another ruleset than the one it was applied
// to: the whole ruleset has to be sent.
var ErrBase = errors.New("apply delta: it is for another ruleset")

// Diff returns what changes s into next.
func (s Ruleset) Diff(next Ruleset) Delta {
	d := Delta{Base: s.Digest(), Next: next.Digest()}
	if !slices.Equal(s.Self, next.Self) || !slices.Equal(s.Hosted, next.Hosted) || !slices.Equal(s.Routes, next.Routes) {
		d.Own, d.Self, d.Hosted, d.Routes = true, next.Self, next.Hosted, next.Routes
	}
	walk(s.Sources, next.Sources, func(a, b Source) int { return a.Address.Compare(b.Address) }, func(old, now *Source) {
		switch {
		case now == nil:
			d.DropSources = append(d.DropSources, old.Address)
		case old == nil || *old != *now:
			d.Sources = append(d.Sources, *now)
		}
	})
	d.From, d.To = diffSets(s.From, next.From), diffSets(s.To, next.To)
	walk(s.Rules, next.Rules, func(a, b NodeRule) int { return compareIDs(a.ID, b.ID) }, func(old, now *NodeRule) {
		switch {
		case now == nil:
			d.DropRules = append(d.DropRules, old.ID)
		case old == nil || !old.equal(now):
			d.Rules = append(d.Rules, *now)
		}
	})
	return d
}

// Apply returns the ruleset after the delta. It changes nothing in s.
func (s Ruleset) Apply(d Delta) (Ruleset, error) {
	if s.Digest() != d.Base {
		return Ruleset{}, ErrBase
	}
	out := Ruleset{Node: s.Node, Self: s.Self, Hosted: s.Hosted, Routes: s.Routes}
	if d.Own {
		out.Self, out.Hosted, out.Routes = d.Self, d.Hosted, d.Routes
	}
	out.Sources = merge(s.Sources, d.Sources, d.DropSources, func(x Source) netip.Addr { return x.Address }, netip.Addr.Compare)
	out.From, out.To = applySets(s.From, d.From), applySets(s.To, d.To)
	out.Rules = merge(s.Rules, d.Rules, d.DropRules, func(x NodeRule) string { return x.ID }, compareIDs)
	if out.Digest() != d.Next {
		return Ruleset{}, errors.New("apply delta: what comes out is not what was meant")
	}
	return out, nil
}

// walk visits two ordered lists side by side.
func walk[T any](old, next []T, compare func(a, b T) int, visit func(old, now *T)) {
	for len(old) > 0 || len(next) > 0 {
		switch {
		case len(next) == 0 || len(old) > 0 && compare(old[0], next[0]) < 0:
			visit(&old[0], nil)
			old = old[1:]
		case len(old) == 0 || compare(old[0], next[0]) > 0:
			visit(nil, &next[0])
			next = next[1:]
		default:
			visit(&old[0], &next[0])
			old, next = old[1:], next[1:]
		}
	}
}

// merge returns the list with some replaced or added and some dropped, in order.
func merge[T any, K comparable](list, put []T, drop []K, id func(T) K, compare func(a, b K) int) []T {
	gone := make(map[K]bool, len(put)+len(drop))
	for _, k := range drop {
		gone[k] = true
	}
	for _, x := range put {
		gone[id(x)] = true
	}
	out := make([]T, 0, len(list)+len(put))
	for _, x := range list {
		if !gone[id(x)] {
			out = append(out, x)
		}
	}
	out = append(out, put...)
	slices.SortStableFunc(out, func(a, b T) int { return compare(id(a), id(b)) })
	return out
}

func diffSets(old, next []Set) (list []SetDelta) {
	walk(old, next, func(a, b Set) int { return strings.Compare(a.ID, b.ID) }, func(was, now *Set) {
		switch {
		case now == nil:
			list = append(list, SetDelta{ID: was.ID, Gone: true})
		case was == nil:
			list = append(list, SetDelta{ID: now.ID, Add: now.Prefixes})
		case !slices.Equal(was.Prefixes, now.Prefixes):
			d := SetDelta{ID: now.ID}
			walk(was.Prefixes, now.Prefixes, netip.Prefix.Compare, func(a, b *netip.Prefix) {
				switch {
				case b == nil:
					d.Remove = append(d.Remove, *a)
				case a == nil:
					d.Add = append(d.Add, *b)
				}
			})
			list = append(list, d)
		}
	})
	return list
}

func applySets(list []Set, deltas []SetDelta) []Set {
	var put []Set
	var drop []string
	for _, d := range deltas {
		if d.Gone {
			drop = append(drop, d.ID)
			continue
		}
		s := Set{ID: d.ID}
		if i := slices.IndexFunc(list, func(s Set) bool { return s.ID == d.ID }); i >= 0 {
			s.Prefixes = list[i].Prefixes
		}
		s.Prefixes = merge(s.Prefixes, d.Add, d.Remove, func(p netip.Prefix) netip.Prefix { return p }, netip.Prefix.Compare)
		put = append(put, s)
	}
	return merge(list, put, drop, func(s Set) string { return s.ID }, strings.Compare)
}

func (r *NodeRule) equal(o *NodeRule) bool {
	if r.ID != o.ID || r.Name != o.Name || !slices.Equal(r.From, o.From) || !slices.Equal(r.To, o.To) || !slices.Equal(r.Services, o.Services) {
		return false
	}
	if r.When == nil || o.When == nil {
		return r.When == o.When
	}
	return slices.Equal(r.When.Days, o.When.Days) && slices.Equal(r.When.Hours, o.When.Hours) && r.When.Zone == o.When.Zone &&
		r.When.NotBefore.Equal(o.When.NotBefore) && r.When.Until.Equal(o.When.Until)
}

// Digest returns a hash of everything in the ruleset, in hexadecimal.
func (s Ruleset) Digest() string {
	d := digest{h: sha256.New()}
	d.text(s.Node)
	d.number(len(s.Self))
	for _, a := range s.Self {
		d.prefix(netip.PrefixFrom(a, a.BitLen()))
	}
	d.prefixes(s.Routes)
	d.number(len(s.Sources))
	for _, x := range s.Sources {
		d.prefix(netip.PrefixFrom(x.Address, x.Address.BitLen()))
		d.text(x.Node)
		d.text(x.User)
	}
	for _, sets := range [][]Set{s.From, s.To} {
		d.number(len(sets))
		for _, x := range sets {
			d.text(x.ID)
			d.prefixes(x.Prefixes)
		}
	}
	d.number(len(s.Rules))
	for i := range s.Rules {
		d.rule(&s.Rules[i])
	}
	if len(s.Hosted) > 0 { // so that a ruleset without has the digest that it always had
		d.text("hosted")
		d.number(len(s.Hosted))
		for _, a := range s.Hosted {
			d.prefix(netip.PrefixFrom(a, a.BitLen()))
		}
	}
	d.flush()
	return hex.EncodeToString(d.h.Sum(nil)[:16])
}

// digest hashes values so that no two sequences of them look the same.
type digest struct {
	h   hash.Hash
	buf []byte
}

func (d *digest) number(n int) {
	d.buf = binary.BigEndian.AppendUint64(d.buf, uint64(n))
	if len(d.buf) > 4096 {
		d.flush()
	}
}

func (d *digest) flush() {
	d.h.Write(d.buf)
	d.buf = d.buf[:0]
}

func (d *digest) text(s string) {
	d.number(len(s))
	d.buf = append(d.buf, s...)
}

func (d *digest) texts(list []string) {
	d.number(len(list))
	for _, s := range list {
		d.text(s)
	}
}

func (d *digest) prefix(p netip.Prefix) {
	b := p.Addr().As16()
	d.buf = append(d.buf, b[:]...)
	d.number(p.Bits() + p.Addr().BitLen()<<8)
}

func (d *digest) prefixes(list []netip.Prefix) {
	d.number(len(list))
	for _, p := range list {
		d.prefix(p)
	}
}

func (d *digest) time(t time.Time) {
	if t.IsZero() {
		d.number(0)
		return
	}
	d.number(1)
	d.number(int(t.Unix()))
	d.number(t.Nanosecond())
}

func (d *digest) rule(r *NodeRule) {
	d.text(r.ID)
	d.text(r.Name)
	d.texts(r.From)
	d.texts(r.To)
	d.number(len(r.Services))
	for _, s := range r.Services {
		d.number(int(s.Proto)<<32 | int(s.First)<<16 | int(s.Last))
	}
	if r.When == nil {
		d.number(0)
		return
	}
	d.number(1)
	d.number(len(r.When.Days))
	for _, x := range r.When.Days {
		d.number(int(x))
	}
	d.number(len(r.When.Hours))
	for _, x := range r.When.Hours {
		d.number(x.From<<16 | x.To)
	}
	d.text(r.When.Zone)
	d.time(r.When.NotBefore)
	d.time(r.When.Until)
}
