package filter

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Rules is what a node enforces. Swap puts it into force.
type Rules struct {
	Self    []netip.Addr   // this node's own addresses: from these it may begin flows
	Hosted  []netip.Addr   // those of members that it carries: so may these; one that is a source too comes by the tunnel, and needs a rule
	Routes  []netip.Prefix // the networks behind it: they may only answer
	Sources []Source       // who is behind which address of the tunnel
	From    []Set          // of sources
	To      []Set          // of destinations
	Rules   []Rule         // the first that matches gives its name to the flow
}

// Source says who is behind an address.
type Source struct {
	Address    netip.Addr
	Node, User string
}

// Set is a list of prefixes that rules refer to by ID.
type Set struct {
	ID       string
	Prefixes []netip.Prefix
}

// Rule lets the members of some sets reach those of others.
type Rule struct {
	Name     string
	From, To []string // the IDs of sets
	Services []Service
	When     Schedule // nil: always
}

// Service is a protocol and a range of ports. Proto 0 is every protocol, 1 the
// echo of both families' ICMP. Protocols without ports match where First is 0.
type Service struct {
	Proto       uint8
	First, Last uint16
}

// Schedule says whether a rule holds, and until when that answer is good at
// least; the zero time means for ever.
type Schedule interface {
	Active(at time.Time) (on bool, until time.Time)
}

// source is a Source with what is known of it while it is in force. Its load
// outlives a change of rules.
type source struct {
	Source
	sets []uint32 // in order
	load *load
}

// load is what one source costs.
type load struct {
	flows   atomic.Int32
	answers bucket
}

// rule is a Rule in force.
type rule struct {
	name string
	when Schedule

	mu    sync.Mutex // guards what follows; only rules with a Schedule need it
	on    bool
	since int64 // the answer is good from here, in ns since 1970
	until int64 // to here
	was   bool  // what Tick saw last
}

func (r *rule) active(wall int64) bool {
	if r.when == nil {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if wall < r.since || wall >= r.until {
		var until time.Time
		r.on, until = r.when.Active(time.Unix(0, wall))
		r.since, r.until = wall, math.MaxInt64
		if !until.IsZero() && until.Year() < 2200 { // what int64 holds of ns ends in 2262
			r.until = until.UnixNano()
		}
	}
	return r.on
}

// changed reports whether the rule holds now and did not when last asked, or
// the other way round.
func (r *rule) changed(wall int64) bool {
	if r.when == nil {
		return false
	}
	on := r.active(wall)
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.was
	r.was = on
	return on != was
}

// index is Rules in the form in which they are looked up.
//
// A destination is looked up in one map for each length of prefix there is.
// What hangs there is grouped by the set of sources, so that what a lookup costs
// does not grow with the number of rules but with how many of the source's sets
// lead to that very prefix.
type index struct {
	self      []addr
	hosted    map[addr]struct{}
	routes    []netip.Prefix
	sources   map[addr]*source
	rules     []*rule
	scheduled []*rule
	lengths   []int // of prefixes, of 128
	to        map[dstKey][]group
}

type dstKey struct {
	addr addr
	bits int
}

// group is what one set of sources may do at one destination.
type group struct {
	set     uint32
	entries []entry // by protocol and first port
}

type entry struct {
	proto       uint8
	first, last uint16
	reach       uint16 // the highest last up to here, of that protocol
	rule        uint32
}

// validate refuses what has no meaning, as it might get one by accident.
func (r Rules) validate() error {
	for _, a := range slices.Concat(r.Self, r.Hosted) {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" {
			return fmt.Errorf("read rules: %s is no address of this node", a)
		}
	}
	for _, s := range r.Sources {
		if a := s.Address; !a.IsValid() || a.Is4In6() || a.Zone() != "" {
			return fmt.Errorf("read rules: %s is no address of node %s", a, s.Node)
		}
	}
	for _, s := range slices.Concat([]Set{{ID: "routes", Prefixes: r.Routes}}, r.From, r.To) {
		for _, p := range s.Prefixes {
			if !p.IsValid() || p.Addr().Is4In6() {
				return fmt.Errorf("read rules: %s is no prefix for %s", p, s.ID)
			}
		}
	}
	return nil
}

// newIndex builds an index; what old knows of the same sources is kept.
func newIndex(r Rules, old *index, wall int64) (*index, error) {
	if err := r.validate(); err != nil {
		return nil, err
	}
	x := &index{hosted: make(map[addr]struct{}, len(r.Hosted)), routes: r.Routes, sources: make(map[addr]*source, len(r.Sources)), to: map[dstKey][]group{}}
	for _, a := range r.Self {
		x.self = append(x.self, addrOf(a))
	}
	for _, a := range r.Hosted {
		x.hosted[addrOf(a)] = struct{}{}
	}
	for _, s := range r.Sources {
		at := addrOf(s.Address)
		v := &source{Source: s, load: &load{}}
		if old != nil {
			if before := old.sources[at]; before != nil {
				v.load = before.load
			}
		}
		x.sources[at] = v
	}
	from := make(map[string]uint32, len(r.From))
	for i, s := range r.From {
		from[s.ID] = uint32(i)
		x.join(s, uint32(i))
	}
	to := make(map[string][]netip.Prefix, len(r.To))
	for _, s := range r.To {
		to[s.ID] = s.Prefixes
	}
	groups := map[dstKey]map[uint32][]entry{}
	for i, rule := range r.Rules {
		if err := addRule(groups, uint32(i), rule, from, to); err != nil {
			return nil, err
		}
		x.addRule(rule, wall)
	}
	x.finish(groups)
	return x, nil
}

// join notes which sources are in a set.
func (x *index) join(s Set, set uint32) {
	add := func(v *source) {
		if n := len(v.sets); n == 0 || v.sets[n-1] != set {
			v.sets = append(v.sets, set)
		}
	}
	for _, p := range s.Prefixes {
		if p.IsSingleIP() {
			if v := x.sources[addrOf(p.Addr())]; v != nil {
				add(v)
			}
			continue
		}
		for a, v := range x.sources {
			if p.Contains(a.netip()) {
				add(v)
			}
		}
	}
}

func (x *index) addRule(r Rule, wall int64) {
	v := &rule{name: r.Name, when: r.When}
	x.rules = append(x.rules, v)
	if r.When != nil {
		v.was = v.active(wall)
		x.scheduled = append(x.scheduled, v)
	}
}

func addRule(groups map[dstKey]map[uint32][]entry, number uint32, r Rule, from map[string]uint32, to map[string][]netip.Prefix) error {
	for _, id := range r.To {
		prefixes, ok := to[id]
		if !ok {
			return fmt.Errorf("read rule %s: there is no set of destinations %s", r.Name, id)
		}
		for _, p := range prefixes {
			k := keyOf(p)
			if groups[k] == nil {
				groups[k] = map[uint32][]entry{}
			}
			for _, id := range r.From {
				set, ok := from[id]
				if !ok {
					return fmt.Errorf("read rule %s: there is no set of sources %s", r.Name, id)
				}
				for _, s := range r.Services {
					groups[k][set] = append(groups[k][set], entry{proto: s.Proto, first: s.First, last: s.Last, rule: number})
				}
			}
		}
	}
	return nil
}

// bits4 is where an IPv4 address begins when it is mapped.
const bits4 = 96

func keyOf(p netip.Prefix) dstKey {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += bits4
	}
	return dstKey{addrOf(p.Addr()).mask(bits), bits}
}

func (x *index) finish(groups map[dstKey]map[uint32][]entry) {
	for k, sets := range groups {
		list := make([]group, 0, len(sets))
		for set, entries := range sets {
			slices.SortStableFunc(entries, func(a, b entry) int {
				if a.proto != b.proto {
					return int(a.proto) - int(b.proto)
				}
				return int(a.first) - int(b.first)
			})
			for i := range entries {
				entries[i].reach = entries[i].last
				if i > 0 && entries[i-1].proto == entries[i].proto {
					entries[i].reach = max(entries[i].last, entries[i-1].reach)
				}
			}
			list = append(list, group{set, entries})
		}
		slices.SortFunc(list, func(a, b group) int { return int(a.set) - int(b.set) })
		x.to[k] = list
		if !slices.Contains(x.lengths, k.bits) {
			x.lengths = append(x.lengths, k.bits)
		}
	}
	slices.Sort(x.lengths)
}

// find returns the first rule that lets a source reach a destination, or nil.
func (x *index) find(s *source, dst addr, proto uint8, port uint16, wall int64) *rule {
	if proto == icmp6 {
		proto = icmp4
	}
	best := uint32(math.MaxUint32)
	for _, bits := range x.lengths {
		if bits < bits4 && dst.is4() {
			continue // ::/0 is all of IPv6, and nothing of IPv4
		}
		groups := x.to[dstKey{dst.mask(bits), bits}]
		if len(groups) == 0 {
			continue
		}
		best = x.common(groups, s.sets, proto, port, wall, best)
	}
	if best == math.MaxUint32 {
		return nil
	}
	return x.rules[best]
}

// leads reports whether any rule, whenever it holds, leads from a source to a
// destination.
func (x *index) leads(s *source, dst addr) bool {
	return slices.ContainsFunc(x.lengths, func(bits int) bool {
		return !(bits < bits4 && dst.is4()) && slices.ContainsFunc(x.to[dstKey{dst.mask(bits), bits}], func(g group) bool {
			_, ok := slices.BinarySearch(s.sets, g.set)
			return ok
		})
	})
}

// common looks into the groups whose set is among the source's. The shorter of
// the two lists is searched for in the longer, or both are walked together.
func (x *index) common(groups []group, sets []uint32, proto uint8, port uint16, wall int64, best uint32) uint32 {
	const far = 16 // from this ratio on, searching is cheaper than walking
	switch {
	case len(groups) > far*len(sets):
		for _, set := range sets {
			i, ok := slices.BinarySearchFunc(groups, set, func(g group, set uint32) int { return int(g.set) - int(set) })
			if ok {
				best = x.match(groups[i].entries, proto, port, wall, best)
			}
		}
	case len(sets) > far*len(groups):
		for i := range groups {
			if _, ok := slices.BinarySearch(sets, groups[i].set); ok {
				best = x.match(groups[i].entries, proto, port, wall, best)
			}
		}
	default:
		for i, j := 0, 0; i < len(groups) && j < len(sets); {
			switch g, s := groups[i].set, sets[j]; {
			case g < s:
				i++
			case g > s:
				j++
			default:
				best = x.match(groups[i].entries, proto, port, wall, best)
				i, j = i+1, j+1
			}
		}
	}
	return best
}

// match returns the lowest number of a rule that matches, if it is below best.
func (x *index) match(entries []entry, proto uint8, port uint16, wall int64, best uint32) uint32 {
	for _, p := range [2]uint8{0, proto} {
		// The entries of that protocol that begin at or below the port end here.
		lo, hi := 0, len(entries)
		for lo < hi {
			mid := int(uint(lo+hi) / 2)
			if e := &entries[mid]; e.proto < p || e.proto == p && e.first <= port {
				lo = mid + 1
			} else {
				hi = mid
			}
		}
		for i := lo - 1; i >= 0 && entries[i].proto == p && entries[i].reach >= port; i-- {
			if e := &entries[i]; e.last >= port && e.rule < best && x.rules[e.rule].active(wall) {
				best = e.rule
			}
		}
		if proto == 0 {
			break
		}
	}
	return best
}

// own reports whether an address is this node's, or of a member that it carries.
func (x *index) own(a addr) bool {
	if slices.Contains(x.self, a) {
		return true
	}
	_, is := x.hosted[a]
	return is
}

// local reports whether an address is this node's or behind it.
func (x *index) local(a addr) bool {
	if x.own(a) {
		return true
	}
	ip := a.netip()
	return slices.ContainsFunc(x.routes, func(p netip.Prefix) bool { return p.Contains(ip) })
}
