package overlay

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"overlayd/overlay/relay"
	"overlayd/overlay/underlay"
)

// NetcheckSchema names the JSON form of Netcheck. Fields are only ever added.
const NetcheckSchema = "overlayd.netcheck/v1"

// What a Netcheck says of UDP, TLS and a family of addresses.
const (
	NetWorks   = "works"
	NetSilent  = "no_answer"  // it was tried, and nothing came back
	NetMissing = "no_address" // this machine has no address of the family
	NetUntried = "untried"    // no relay can be asked that way
	NetFull    = "relay_full" // TLS reaches the relay, which has no room
)

// Netcheck is what the network lets through, measured now: the object that
// `overlayd netcheck --json` prints. Unknown values are null.
type Netcheck struct {
	Schema     string         `json:"schema"`
	MeasuredAt time.Time      `json:"measured_at"`
	ByDaemon   bool           `json:"by_daemon"` // else with sockets of its own, while no daemon runs
	UDP        string         `json:"udp"`
	IPv4       NetcheckFamily `json:"ipv4"`
	IPv6       NetcheckFamily `json:"ipv6"`
	TLS        string         `json:"tls"`
	Proxy      *NetcheckProxy `json:"proxy"`
	// PortMapping is what the router maps to our port; null while no daemon runs.
	PortMapping *StatusPortMapping `json:"port_mapping"`
	Relays      []NetcheckRelay    `json:"relays"`
	Counters    []Counter          `json:"counters"`
	Findings    []HealthItem       `json:"findings"`
}

// NetcheckFamily is UDP by one family of addresses. Mapping and filtering are
// those of RFC 4787.
type NetcheckFamily struct {
	State     string         `json:"state"`
	SeenAs    *string        `json:"seen_as"`   // ip:port, as others see our socket; null: nobody told
	Mapping   string         `json:"mapping"`   // none, endpoint_independent, address_or_port_dependent, unknown
	Filtering string         `json:"filtering"` // endpoint_independent, unknown
	Seen      []NetcheckSeen `json:"seen"`
}

// NetcheckSeen is one witness of a mapping.
type NetcheckSeen struct {
	By string `json:"by"`
	As string `json:"as"`
}

// NetcheckProxy is the HTTP proxy for what goes by TLS.
type NetcheckProxy struct {
	Host   string `json:"host"`
	Source string `json:"source"` // setting, environment
}

// NetcheckRelay is one relay, by both transports.
type NetcheckRelay struct {
	Name     string         `json:"name"`
	Endpoint string         `json:"endpoint"`
	InUse    string         `json:"in_use"` // udp, tls, local; empty: there is no session
	UDP      []NetcheckEcho `json:"udp"`
	TLS      NetcheckTLS    `json:"tls"`
}

// answersUDP reports whether an echo came back from any of its addresses.
func (r NetcheckRelay) answersUDP() bool {
	return slices.ContainsFunc(r.UDP, func(e NetcheckEcho) bool { return e.RTTMS != nil })
}

// answers reports whether it can carry traffic.
func (r NetcheckRelay) answers() bool { return r.answersUDP() || r.TLS.State == NetWorks }

// NetcheckEcho is a relay's answer at one address.
type NetcheckEcho struct {
	Addr  string   `json:"addr"`
	RTTMS *float64 `json:"rtt_ms"` // null: no answer
	Error string   `json:"error"`
}

// NetcheckTLS is a TLS connection that was made for the purpose.
type NetcheckTLS struct {
	State     string   `json:"state"`
	ConnectMS *float64 `json:"connect_ms"` // until the relay took the connection: three round trips or more
	Reason    string   `json:"reason"`     // what stands in the way, as in status
	Detail    string   `json:"detail"`
}

// Counter is a total since the daemon started. What is dropped is counted by
// the reason.
type Counter struct {
	Name  string `json:"name"`
	Value uint64 `json:"value"`
}

// tlsTry is a TLS connection that was tried.
type tlsTry struct {
	took time.Duration
	err  error
}

// netcheckLimit bounds a check, beyond what it allows its parts.
const netcheckLimit = checkDial + 3*time.Second

// measurement is what a Netcheck is made of.
type measurement struct {
	at       time.Time
	check    underlay.Check
	tls      []tlsTry // as check.Relays
	proxies  []string // likewise: host:port, "": none
	source   string   // of the proxy's setting
	mapping  *StatusPortMapping
	daemon   bool
	counters []Counter
}

// dialFunc makes a TLS connection to a relay.
type dialFunc func(context.Context, underlay.Relay) (*relay.Stream, error)

// measure asks all relays by UDP and, at the same time, by TLS.
func measure(ctx context.Context, bind *underlay.Bind, relays []underlay.Relay, dial dialFunc) (underlay.Check, []tlsTry) {
	ctx, cancel := context.WithTimeout(ctx, netcheckLimit)
	defer cancel()
	byID := make(map[string]tlsTry, len(relays))
	var mu sync.Mutex // guards byID
	var all sync.WaitGroup
	for _, r := range relays {
		all.Go(func() {
			start := time.Now()
			st, err := dial(ctx, r)
			t := tlsTry{time.Since(start), err}
			if err == nil {
				st.Close()
				st.Wait()
			}
			mu.Lock()
			defer mu.Unlock()
			byID[r.ID] = t
		})
	}
	check := bind.Check(ctx)
	all.Wait()
	tries := make([]tlsTry, len(check.Relays))
	for i, r := range check.Relays {
		var known bool
		if tries[i], known = byID[r.ID]; !known { // new in the map since we looked
			tries[i].err = errors.New("not tried")
		}
	}
	return check, tries
}

// netcheck is pure.
func (m measurement) netcheck() Netcheck {
	out := Netcheck{
		Schema: NetcheckSchema, MeasuredAt: m.at.UTC(), ByDaemon: m.daemon, UDP: NetUntried, TLS: NetUntried,
		Relays: []NetcheckRelay{}, Counters: nonNil(m.counters), PortMapping: m.mapping,
	}
	for i, r := range m.check.Relays {
		out.Relays = append(out.Relays, m.relay(i, r))
		if host := m.proxies[i]; host != "" && out.Proxy == nil {
			out.Proxy = &NetcheckProxy{Host: host, Source: m.source}
		}
		if r.Transport != underlay.TransportLocal {
			out.TLS = better(out.TLS, out.Relays[i].TLS.State)
		}
	}
	out.IPv4, out.IPv6 = m.family(true), m.family(false)
	out.UDP = better(out.IPv4.State, out.IPv6.State)
	if out.UDP == NetMissing {
		out.UDP = NetUntried
	}
	out.Findings = findings(out)
	return out
}

// better returns the state that says more for what works.
func better(a, b string) string {
	for _, s := range []string{NetWorks, NetFull, NetSilent, NetUntried, NetMissing} {
		if a == s || b == s {
			return s
		}
	}
	return a
}

func (m measurement) relay(i int, r underlay.RelayCheck) NetcheckRelay {
	out := NetcheckRelay{Name: r.Name, Endpoint: r.Endpoint, UDP: []NetcheckEcho{}, TLS: NetcheckTLS{State: NetUntried}}
	if r.State == relay.Up.String() {
		out.InUse = r.Transport
	}
	if r.Transport == underlay.TransportLocal {
		return out
	}
	for _, e := range r.Echoes {
		echo := NetcheckEcho{Addr: e.Addr.String(), RTTMS: milliseconds(e.RTT)}
		if e.Err != nil {
			echo.Error = oneLine(e.Err.Error())
		}
		out.UDP = append(out.UDP, echo)
	}
	try := m.tls[i]
	if try.err == nil {
		out.TLS.State, out.TLS.ConnectMS = NetWorks, milliseconds(try.took)
		return out
	}
	out.TLS.State, out.TLS.Detail = NetSilent, oneLine(try.err.Error())
	if e, ok := errors.AsType[*relay.DialError](try.err); ok {
		out.TLS.Reason = string(e.Obstacle)
		if e.Obstacle == relay.ObstacleFull {
			out.TLS.State = NetFull
		}
	}
	return out
}

// family says what is known of UDP by IPv4, or by IPv6.
func (m measurement) family(is4 bool) NetcheckFamily {
	out := NetcheckFamily{State: NetUntried, Filtering: string(underlay.MappingUnknown), Seen: []NetcheckSeen{}}
	tried := false
	for _, r := range m.check.Relays {
		for _, e := range r.Echoes {
			if e.Addr.Addr().Is4() != is4 {
				continue
			}
			tried = tried || e.Err == nil
			if e.RTT > 0 {
				out.State = NetWorks
			}
		}
	}
	var own []netip.AddrPort
	for _, a := range m.check.Own {
		if a.Addr().Is4() == is4 {
			own = append(own, a)
		}
	}
	switch {
	case out.State == NetWorks:
	case tried:
		out.State = NetSilent
	case len(own) == 0:
		out.State = NetMissing
	}
	for _, s := range m.check.Seen {
		if s.As.Addr().Is4() == is4 {
			out.Seen = append(out.Seen, NetcheckSeen{By: m.witness(s.By), As: s.As.String()})
		}
	}
	if len(out.Seen) > 0 {
		out.SeenAs = &out.Seen[0].As
	}
	out.Mapping = string(underlay.MappingOf(is4, own, m.check.Seen))
	if is4 && !m.check.Unasked.IsZero() {
		out.Filtering = string(underlay.MappingIndependent)
	}
	return out
}

// witness names who saw us: a relay, or a peer.
func (m measurement) witness(by netip.AddrPort) string {
	for _, r := range m.check.Relays {
		for _, e := range r.Echoes {
			if e.Addr == by {
				return "relay " + r.Name
			}
		}
	}
	return "peer at " + by.String()
}

// findings says what a check means for a person, and what to do about it.
func findings(c Netcheck) []HealthItem {
	items := []HealthItem{}
	add := func(id, severity, title, fix string) {
		items = append(items, HealthItem{ID: id, Severity: severity, Title: title, Fix: fix})
	}
	if len(c.Relays) == 0 {
		add("no_relay", SeverityError, "no relay is known", "look at `overlayd status`")
	}
	dead := SeverityError // of a relay that does not answer
	if slices.ContainsFunc(c.Relays, NetcheckRelay.answers) {
		dead = SeverityWarning // the others carry its traffic
	}
	reach := NetUntried // by any transport
	for _, r := range c.Relays {
		if r.InUse == underlay.TransportLocal {
			continue
		}
		answered := r.answersUDP()
		switch {
		case answered:
			reach = NetWorks
		case r.TLS.State == NetWorks:
			reach = better(reach, NetWorks)
			add(underlay.ReasonUDPBlocked, SeverityWarning, "UDP to relay "+r.Name+" is not answered: its traffic goes by TLS, which is slower, and no direct path can be found",
				"let UDP to "+r.Endpoint+" out of this network")
		default:
			reach = better(reach, NetSilent)
			add("relay_unreachable", dead, "relay "+r.Name+" answers neither by UDP nor by TLS: "+r.TLS.Detail, obstacleFix(r.TLS.Reason))
			continue
		}
		if answered && r.TLS.State != NetWorks {
			add("no_tls", SeverityInfo, "relay "+r.Name+" is not reached by TLS: "+r.TLS.Detail+"; were UDP blocked, there would be no other way",
				obstacleFix(r.TLS.Reason))
		}
	}
	switch c.IPv4.Mapping {
	case string(underlay.MappingDependent):
		add("symmetric_nat", SeverityWarning, "the NAT shows every destination another port: no direct path to machines behind the like, or behind strict filters",
			"forward a UDP port to this machine, and start overlayd with --port N --advertise-endpoint PUBLIC-IP:N; or use IPv6")
	case string(underlay.MappingUnknown):
		if c.IPv4.State == NetWorks {
			add("mapping_unknown", SeverityInfo, "whether the NAT shows everybody the same port is not known: one relay alone cannot tell",
				"try again while a path to another machine is direct, or with a second relay")
		}
	}
	return items
}

// Netcheck measures what the network lets through.
func (n *Node) Netcheck(ctx context.Context) (Netcheck, error) {
	v := n.look()
	if v.m == nil || v.live == nil || v.plan == nil {
		return Netcheck{}, errStarting
	}
	m := measurement{source: n.o.proxySource(), daemon: true, counters: n.counters(v)}
	own := ownRelay(v.m) // a TLS connection to itself would prove nothing
	relays := slices.DeleteFunc(slices.Clone(v.plan.Relays), func(r underlay.Relay) bool { return r.ID == own })
	m.check, m.tls = measure(ctx, v.live.bind, relays, n.tryRelay)
	m.at = time.Now()
	s := snapshot{view: v}
	if v.live.mapper != nil {
		mapping := v.live.mapper.Status()
		s.mapping = &mapping
	}
	m.mapping = s.portMapping()
	for i, r := range m.check.Relays {
		m.proxies = append(m.proxies, n.proxyFor(endpointOf(relays, r)))
		for _, known := range v.m.Relays {
			if known.Label == v.m.Self.Label && r.Transport == underlay.TransportLocal {
				m.check.Relays[i].Name, m.check.Relays[i].Endpoint = known.Name, known.Endpoint
			}
		}
	}
	return m.netcheck(), nil
}

// endpointOf is what is dialed for a relay.
func endpointOf(relays []underlay.Relay, c underlay.RelayCheck) string {
	for _, r := range relays {
		if r.ID == c.ID && r.Endpoint != "" {
			return r.Endpoint
		}
	}
	return c.Endpoint
}
