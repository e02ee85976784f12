package overlay

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"overlayd/overlay/coord"
	"overlayd/overlay/filter"
	"overlayd/overlay/policy"
	"overlayd/overlay/resolver"
	"overlayd/overlay/tunnel"
)

// tickEvery is how often the filter looks at its clock: a grant ends at most so
// late, and a second is promised.
const tickEvery = 250 * time.Millisecond

// tellRefusals is how long status tells of a flow that another node's policy
// refused: about as long as somebody wonders.
const tellRefusals = 10 * time.Minute

// settle is how long after the first event those that follow are waited for. By
// then the kernel has seen a new flow's packet, and knows what it made of it.
const settle = 20 * time.Millisecond

// enforcer holds what passes the tunnel to the rules of the map. It and its
// flows live as long as the node, whatever becomes of the interface.
type enforcer struct {
	log    *slog.Logger
	report chan struct{} // buffered 1: the coordinator is to hear what is applied
	made   chan struct{} // closed when there is a filter

	mu      sync.Mutex      // guards the rest
	filter  *filter.Filter  // nil before the first ruleset
	dev     *tunnel.Device  // nil: there is no interface
	rules   *policy.Ruleset // in force; nil: nothing is refused
	carried []netip.Prefix  // what the peers' addresses and routes are, in order
	aimed   bool            // the filter knows of that
	version uint64          // of the map that this is of
	cut     int             // flows, since the version before
	failed  error           // why the rules of a later map are not in force
	applied coord.Applied   // what the coordinator is told
}

func newEnforcer(log *slog.Logger) *enforcer {
	if unfiltered {
		log.Error("this overlayd was built to be measured: it refuses nothing, whatever the policy says")
	}
	return &enforcer{log: log, report: make(chan struct{}, 1), made: make(chan struct{})}
}

// heed puts the rules of a map into force, and cuts the flows that they do not
// allow, before it returns. When they cannot be used the old ones stay; without
// old ones, nothing is let in.
func (e *enforcer) heed(m *coord.Map, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if m.Ruleset != nil && e.filter == nil {
		e.filter = filter.New(filter.Options{}, now)
		close(e.made)
	}
	var cut filter.Cut
	if m.Ruleset != nil && m.Ruleset != e.rules {
		var err error
		cut, err = e.filter.Swap(now, rulesOf(*m.Ruleset, m.Self.Addrs))
		if err != nil {
			e.log.Error("the policy of the new map cannot be used; the old one stays", "err", err)
			e.failed = err
			e.guard()
			e.leave(carriedBy(m), now) // the plan follows the map, whoever is let in
			return
		}
	}
	e.rules, e.failed = m.Ruleset, nil
	e.guard()
	e.tell(cut)
	e.leave(carriedBy(m), now)
	if m.Version != e.version {
		e.version, e.cut = m.Version, 0
	}
	e.cut += cut.Flows
}

// guard sets the device's filter; mu is held.
func (e *enforcer) guard() {
	switch {
	case e.dev == nil:
	case unfiltered, e.rules == nil && e.failed == nil:
		e.dev.SetFilter(nil)
	default:
		e.dev.SetFilter(e.filter)
	}
}

// tell tells both ends of cut flows; mu is held.
func (e *enforcer) tell(c filter.Cut) {
	if e.dev != nil && len(c.ToLocal)+len(c.ToTunnel) > 0 {
		e.dev.Tell(c)
	}
}

// leave lets nothing begin on this side to addresses that no peer carries, and
// ends the flows to those that none carries any more: nobody would answer, and a
// program here might wait for long. mu is held.
func (e *enforcer) leave(carried []netip.Prefix, now time.Time) {
	lost := slices.ContainsFunc(e.carried, func(p netip.Prefix) bool { return !slices.Contains(carried, p) })
	same := e.aimed && slices.Equal(e.carried, carried)
	e.carried = carried
	if same || e.filter == nil {
		return
	}
	e.filter.Carry(carried)
	if e.aimed = true; !lost {
		return
	}
	e.tell(e.filter.Cut(now, func(f filter.Flow) bool {
		return f.Outward && !slices.ContainsFunc(carried, func(p netip.Prefix) bool { return p.Contains(f.Remote.Addr()) })
	}))
}

// carriedBy lists what lies behind a map's peers.
func carriedBy(m *coord.Map) []netip.Prefix {
	var list []netip.Prefix
	for _, p := range m.Peers {
		for _, a := range p.Addrs {
			list = append(list, netip.PrefixFrom(a, a.BitLen()))
		}
		for _, r := range p.Routes {
			if r.Approved {
				list = append(list, r.Prefix)
			}
		}
	}
	for _, h := range m.Hosted {
		list = append(list, hostPrefixes(h.Addrs)...)
	}
	slices.SortFunc(list, netip.Prefix.Compare)
	return slices.Compact(list)
}

// attach says which device there is; nil: none.
func (e *enforcer) attach(d *tunnel.Device) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.dev = d
	e.guard()
}

// end cuts every flow: this node is a member no more.
func (e *enforcer) end(now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.filter != nil {
		e.tell(e.filter.Cut(now, func(filter.Flow) bool { return true }))
	}
}

// peered takes note that the device's peers are those of a map with so high a
// version.
func (e *enforcer) peered(version uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if a := (coord.Applied{MapVersion: e.version, FlowsCut: e.cut}); version == e.version && a != e.applied {
		e.applied = a
		wake(e.report)
	}
}

// tells is what the coordinator is told.
func (e *enforcer) tells() coord.Applied {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.applied
}

// run ends what time ends, and hands on what the filter saw, until ctx ends.
func (e *enforcer) run(ctx context.Context, each func(*filter.Event)) error {
	select {
	case <-ctx.Done():
		return nil
	case <-e.made:
	}
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	events := make([]filter.Event, 256)
	for {
		select {
		case <-ctx.Done():
			e.drain(events, each)
			return nil
		case now := <-tick.C:
			e.tick(now)
		case <-e.filter.Wake():
			select { // so that there is more to hand on at once
			case <-ctx.Done():
			case <-time.After(settle):
			}
		}
		e.drain(events, each)
	}
}

func (e *enforcer) tick(now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	cut := e.filter.Tick(now)
	e.tell(cut)
	if cut.Flows > 0 {
		e.log.Info("flows ended with the time of their rule", "flows", cut.Flows)
	}
}

func (e *enforcer) drain(events []filter.Event, each func(*filter.Event)) {
	for n := len(events); n == len(events); {
		n = e.filter.Take(events)
		for i := range events[:n] {
			each(&events[i])
		}
	}
}

// enforced is what status tells of an enforcer.
type enforced struct {
	absent  bool             // there is no policy
	failed  error            // why the newest rules are not in force
	unkept  error            // why flows are not recorded
	refused []filter.Refusal // by the policies of others, of late; the newest first
}

func (e *enforcer) status(m *coord.Map, now time.Time) enforced {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := enforced{absent: m != nil && m.Ruleset == nil, failed: e.failed}
	if e.filter != nil {
		s.refused = e.filter.Refusals(now.Add(-tellRefusals))
	}
	return s
}

func (e *enforcer) counters() (all []Counter) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.filter != nil {
		for _, c := range e.filter.Counters() {
			all = append(all, Counter{filterPrefix + c.Name, c.Value})
		}
	}
	if e.dev != nil {
		all = append(all, Counter{filterPrefix + "answers_lost", e.dev.AnswersLost()},
			Counter{filterPrefix + "turned_lost", e.dev.TurnedLost()})
	}
	return all
}

// flows returns the flows that match.
func (e *enforcer) flows(now time.Time, match func(filter.Flow) bool) []filter.Flow {
	e.mu.Lock()
	f := e.filter
	e.mu.Unlock()
	var list []filter.Flow
	if f != nil {
		f.Flows(now, func(x filter.Flow) bool {
			if match(x) {
				list = append(list, x)
			}
			return true
		})
	}
	return list
}

// refused reports whether another node's policy refused a flow of this node to
// remote since a moment.
func (e *enforcer) refused(network string, remote netip.AddrPort, since time.Time) bool {
	e.mu.Lock()
	f := e.filter
	e.mu.Unlock()
	proto := uint8(policy.ProtoTCP)
	if network == "udp" {
		proto = uint8(policy.ProtoUDP)
	}
	return f != nil && f.Refused(proto, remote, since)
}

// leads reports whether the policy lets somebody in the tunnel reach an address at
// all. Without a policy everybody may.
func (e *enforcer) leads(from, to netip.Addr) bool {
	e.mu.Lock()
	f, all := e.filter, e.rules == nil && e.failed == nil
	e.mu.Unlock()
	return all || f != nil && f.Leads(from, to)
}

// rulesOf is a policy's ruleset in the words of the filter. That of a node that
// takes no part does not name its addresses; from there it is refused what it
// tries.
func rulesOf(s policy.Ruleset, self []netip.Addr) filter.Rules {
	r := filter.Rules{Self: s.Self, Hosted: s.Hosted, Routes: s.Routes}
	if len(r.Self) == 0 {
		r.Self = self
	}
	for _, x := range s.Sources {
		r.Sources = append(r.Sources, filter.Source{Address: x.Address, Node: x.Node, User: x.User})
	}
	for _, x := range s.From {
		r.From = append(r.From, filter.Set{ID: x.ID, Prefixes: x.Prefixes})
	}
	for _, x := range s.To {
		r.To = append(r.To, filter.Set{ID: x.ID, Prefixes: x.Prefixes})
	}
	for _, x := range s.Rules {
		v := filter.Rule{Name: x.Name, From: x.From, To: x.To}
		for _, p := range x.Services {
			v.Services = append(v.Services, filter.Service{Proto: uint8(p.Proto), First: p.First, Last: p.Last})
		}
		if x.When != nil {
			v.When = x.When
		}
		r.Rules = append(r.Rules, v)
	}
	return withNames(r)
}

// namesSet is the set that stands for where this node answers for the names of
// its LANs. No set of a policy is called so.
const namesSet = "names of the lan"

// withNames lets whoever may reach anything behind this node ask for the names
// there, by the rule that lets them.
func withNames(r filter.Rules) filter.Rules {
	var to filter.Set
	for _, a := range r.Self {
		to.Prefixes = append(to.Prefixes, netip.PrefixFrom(a, a.BitLen()))
	}
	if to.ID = namesSet; len(r.Routes) == 0 || len(to.Prefixes) == 0 {
		return r
	}
	behind := map[string]bool{}
	for _, s := range r.To {
		behind[s.ID] = slices.ContainsFunc(s.Prefixes, func(p netip.Prefix) bool {
			return slices.ContainsFunc(r.Routes, p.Overlaps)
		})
	}
	for _, rule := range slices.Clone(r.Rules) {
		if slices.ContainsFunc(rule.To, func(id string) bool { return behind[id] }) {
			rule.To = []string{namesSet}
			rule.Services = []filter.Service{{Proto: uint8(policy.ProtoUDP), First: resolver.Port, Last: resolver.Port}}
			r.Rules = append(r.Rules, rule)
		}
	}
	r.To = append(slices.Clone(r.To), to)
	return r
}
