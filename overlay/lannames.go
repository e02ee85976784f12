package overlay

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"overlayd/overlay/coord"
	"overlayd/overlay/resolver"
)

const (
	// askLANFor is how long gateways are waited for: a new session by the relay
	// and a question that was lost take a second or so.
	askLANFor = 3 * time.Second
	// preferFor is how long the answer of a gateway waits for those of gateways
	// that come first.
	preferFor = 150 * time.Millisecond
	// mostGateways bounds those that are asked for one name.
	mostGateways = 16
	// keepName and keepNoName are how long an answer, or that there is none, is
	// kept: a page's requests come together, and a name that is new is soon found.
	keepName   = 30 * time.Second
	keepNoName = 2 * time.Second
	// mostNames bounds what is kept.
	mostNames = 512
	// mostLANNames bounds the names that are remembered to be a LAN's.
	mostLANNames = 4096
)

// lanNames are the names of LANs, as their gateways told them lately.
type lanNames struct {
	mu    sync.Mutex // guards what follows
	known map[string]lanAnswer
	lans  map[string]bool // names that a gateway knew once
}

// lanAnswer is what the gateways said of a name, or of their LAN's domains.
type lanAnswer struct {
	addrs   []netip.Addr
	domains []string
	err     error
	until   time.Time
}

func (l *lanNames) find(key string, now time.Time) (lanAnswer, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a, ok := l.known[key]
	return a, ok && now.Before(a.until)
}

// knew reports whether a gateway knew a name lately, that is as far as we remember.
func (l *lanNames) knew(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lans[name]
}

func (l *lanNames) keep(key string, a lanAnswer, now time.Time) {
	a.until = now.Add(keepName)
	if a.err != nil || len(a.addrs)+len(a.domains) == 0 {
		a.until = now.Add(keepNoName)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.known == nil {
		l.known = map[string]lanAnswer{}
	}
	if len(l.known) >= mostNames {
		for k, old := range l.known { // what is over, or else anything
			if now.After(old.until) || len(l.known) >= mostNames {
				delete(l.known, k)
			}
		}
	}
	l.known[key] = a
	if len(a.addrs) > 0 {
		if l.lans == nil || len(l.lans) >= mostLANNames {
			l.lans = map[string]bool{}
		}
		l.lans[key] = true
	}
}

// lanGateway is a gateway that can be asked.
type lanGateway struct {
	name   string
	addr   netip.Addr
	online bool
	label  uint32
}

// lanGateways lists the gateways to ask for somebody, those to believe first.
func (v view) lanGateways(who caller) (list []lanGateway) {
	for _, p := range v.m.Peers {
		leads := func(r coord.Route) bool {
			return r.Approved && (who.lans == nil || slices.Contains(who.lans, r.Prefix))
		}
		if len(p.Addrs) > 0 && slices.ContainsFunc(p.Routes, leads) && v.m.Self.Role != coord.RoleGateway {
			list = append(list, lanGateway{p.Name, p.Addrs[0], p.Online, p.Label})
		}
	}
	slices.SortFunc(list, func(a, b lanGateway) int {
		if a.online != b.online {
			if a.online {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.label, b.label)
	})
	return list[:min(len(list), mostGateways)]
}

// behind are the addresses that the plan has behind a gateway: what else it says
// is not believed.
func (v view) behind(g lanGateway, addrs []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(addrs, func(a netip.Addr) bool {
		p := v.plan.carrier(a)
		return p == nil || p.Name != g.name || p.owns(a)
	})
}

// lookupLAN asks the gateways for a name of their LANs, for somebody: they tell each
// what he may know.
func (n *Node) lookupLAN(ctx context.Context, v view, who caller, name string) ([]netip.Addr, error) {
	name = plainName(name)
	key := name
	if who.from.IsValid() {
		key += " " + who.from.String()
	}
	if a, ok := n.names.find(key, time.Now()); ok {
		return slices.Clone(a.addrs), a.err
	}
	addrs, err := n.askLANs(ctx, v, who, name)
	if ctx.Err() == nil {
		n.names.keep(key, lanAnswer{addrs: addrs, err: err}, time.Now())
	}
	return slices.Clone(addrs), err
}

// lanReply is what one gateway said.
type lanReply struct {
	from  int
	addrs []netip.Addr
	err   error
}

// askLANs asks all gateways at once, and believes the first of them that knows
// the name.
func (n *Node) askLANs(ctx context.Context, v view, who caller, name string) ([]netip.Addr, error) {
	gateways := v.lanGateways(who)
	ctx, stop := context.WithTimeout(ctx, askLANFor)
	defer stop()
	replies := make(chan lanReply, len(gateways)) // nobody waits to be heard
	var asking sync.WaitGroup
	defer asking.Wait()
	defer stop()
	for i, g := range gateways {
		asking.Go(func() {
			addrs, err := n.askLAN(ctx, v, who, g, name)
			replies <- lanReply{i, addrs, err}
		})
	}
	addrs, failed := choose(ctx, replies, len(gateways))
	if len(addrs) > 0 {
		return addrs, nil
	}
	e := &DialError{Reason: ReasonNoName, Target: name}
	for i, err := range failed {
		if err != nil && !errors.Is(err, resolver.ErrNoName) {
			e.silent = append(e.silent, gateways[i].name)
		}
	}
	return nil, e
}

// choose returns the addresses that the first of n gateways told, and what each
// of the others said is wrong.
func choose(ctx context.Context, replies <-chan lanReply, n int) ([]netip.Addr, []error) {
	failed := make([]error, n)
	heard := make([]bool, n)
	best := -1
	var addrs []netip.Addr
	var enough <-chan time.Time
	for range n {
		select {
		case r := <-replies:
			heard[r.from], failed[r.from] = true, r.err
			if len(r.addrs) > 0 && (best < 0 || r.from < best) {
				best, addrs = r.from, r.addrs
			}
		case <-enough:
			return addrs, failed
		}
		if best >= 0 && !slices.Contains(heard[:best], false) {
			return addrs, failed
		}
		if best >= 0 && enough == nil {
			enough = time.After(preferFor)
		}
	}
	return addrs, failed
}

// askLAN asks one gateway.
func (n *Node) askLAN(ctx context.Context, v view, who caller, g lanGateway, name string) ([]netip.Addr, error) {
	c, err := n.gatewaySocket(ctx, v, who, g)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	addrs, err := resolver.Ask(ctx, c, name, false)
	if addrs = v.behind(g, addrs); err == nil && len(addrs) == 0 {
		err = resolver.ErrNoName
	}
	return addrs, err
}

func (n *Node) gatewaySocket(ctx context.Context, v view, who caller, g lanGateway) (net.Conn, error) {
	return v.live.sockets.Dial(ctx, "udp", who.from, netip.AddrPortFrom(g.addr, resolver.Port))
}

// lanDomains are the domains of the LANs behind the gateways that say so in time.
func (n *Node) lanDomains(ctx context.Context, v view) []string {
	const key = "." // no name is that
	if a, ok := n.names.find(key, time.Now()); ok {
		return a.domains
	}
	ctx, stop := context.WithTimeout(ctx, askLANFor)
	defer stop()
	var mu sync.Mutex
	var all []string
	var asking sync.WaitGroup
	for _, g := range v.lanGateways(caller{}) {
		asking.Go(func() {
			c, err := n.gatewaySocket(ctx, v, caller{}, g)
			if err != nil {
				return
			}
			defer c.Close()
			domains, err := resolver.Domains(ctx, c)
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, domains...)
		})
	}
	asking.Wait()
	slices.Sort(all)
	all = slices.Compact(all)
	n.names.keep(key, lanAnswer{domains: all}, time.Now())
	if err := n.inside.learnDomains(n.dir, all); err != nil {
		n.log.Warn("the domains of lans are not saved", "err", err)
	}
	return all
}

// serveNames answers for the LANs behind this node until ctx ends. Without any
// nothing listens.
func (n *Node) serveNames(ctx context.Context) error {
	for ctx.Err() == nil {
		v, moved := n.lookMoved()
		if v.m == nil || v.live == nil || v.plan == nil || len(ownRoutes(v.m)) == 0 {
			select {
			case <-ctx.Done():
			case <-moved:
			}
			continue
		}
		if err := n.answerNames(ctx, v); err != nil && ctx.Err() == nil {
			n.log.Warn("names of the lan are not answered", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryApply):
		}
	}
	return nil
}

// answerNames answers until ctx ends, the socket fails, or the node has another
// address or tunnel.
func (n *Node) answerNames(ctx context.Context, v view) error {
	at := netip.AddrPortFrom(v.m.Self.Addrs[0], resolver.Port)
	c, err := v.live.sockets.ListenPacket(ctx, "udp", at)
	if err != nil {
		return portFault("udp", at.String(), err)
	}
	ctx, stop := context.WithCancel(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer stop()
	watching.Go(func() {
		for ctx.Err() == nil {
			now, moved := n.lookMoved()
			if now.live != v.live || now.m == nil || len(ownRoutes(now.m)) == 0 || !slices.Equal(now.m.Self.Addrs, v.m.Self.Addrs) {
				stop()
			}
			select {
			case <-ctx.Done():
			case <-moved:
			}
		}
	})
	s := resolver.Server{
		Log:     n.log,
		Domains: searchDomains,
		May:     n.guard.leads,
		Allowed: func() []netip.Prefix {
			if m := n.look().m; m != nil {
				return ownRoutes(m)
			}
			return nil
		},
	}
	return s.Serve(ctx, c)
}

// ownRoutes are the approved prefixes of this node.
func ownRoutes(m *coord.Map) (list []netip.Prefix) {
	for _, r := range m.Self.Routes {
		if r.Approved && len(m.Self.Addrs) > 0 {
			list = append(list, r.Prefix)
		}
	}
	return list
}

// parseSearch finds the domains in the text of a resolv.conf(5): the last search
// or domain line holds.
func parseSearch(text string) (domains []string) {
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) > 1 && (words[0] == "search" || words[0] == "domain") {
			domains = nil
			for _, w := range words[1:] {
				if w = plainName(w); w != "" {
					domains = append(domains, w)
				}
			}
		}
	}
	return domains
}

// parseNameServers finds the name servers in the text of a resolv.conf(5), but those
// of this machine itself.
func parseNameServers(text string) (list []netip.Addr) {
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(words[1]); err == nil && !a.IsLoopback() && !a.IsUnspecified() {
			list = append(list, a.Unmap())
		}
	}
	return list
}
