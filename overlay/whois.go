package overlay

import (
	"encoding/json"
	"net/netip"
	"slices"
	"time"

	"overlayd/overlay/filter"
)

// WhoisSchema names the JSON form of Whois.
const WhoisSchema = "overlayd.whois/v1"

// mostWhois is how many connections of each kind a Whois lists, the newest.
const mostWhois = 100

// Whois says who is, or was, behind an address.
type Whois struct {
	Schema string `json:"schema"`
	Target string `json:"target"`
	// Person is whose node has the address; null: it is no node's.
	Person *WhoisPerson `json:"person"`
	// Live are the connections that go on, as lines of their beginning.
	Live []FlowLine `json:"live"`
	// Recorded are those that are over, from the record.
	Recorded []FlowLine `json:"recorded"`
}

// WhoisPerson is a node and its user.
type WhoisPerson struct {
	User string `json:"user"`
	Node string `json:"node"`
}

// whoisTarget is ADDR, or ADDR:PORT.
type whoisTarget struct {
	addr netip.Addr
	port uint16 // 0: any
}

func parseWhois(s string) (whoisTarget, error) {
	if at, err := netip.ParseAddrPort(s); err == nil {
		return whoisTarget{at.Addr().Unmap(), at.Port()}, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return whoisTarget{}, fault(ExitUsage, "write it as 192.168.1.200:40112", "%.80q is neither an address nor one with a port", s)
	}
	return whoisTarget{addr: a.Unmap()}, nil
}

// isEnd reports whether the target is this end of a flow, as text.
func (t whoisTarget) isEnd(end string) bool {
	if at, err := netip.ParseAddrPort(end); err == nil {
		return at.Addr() == t.addr && (t.port == 0 || at.Port() == t.port)
	}
	a, err := netip.ParseAddr(end)
	return err == nil && a == t.addr && t.port == 0
}

func (t whoisTarget) matches(l *FlowLine) bool {
	return t.isEnd(l.SeenAs) || t.isEnd(l.Source) || t.isEnd(l.Target)
}

// whois looks among the flows that go on and those of the record.
func (n *Node) whois(target string, now time.Time) (Whois, error) {
	w := Whois{Schema: WhoisSchema, Target: target, Live: []FlowLine{}, Recorded: []FlowLine{}}
	t, err := parseWhois(target)
	if err != nil {
		return w, err
	}
	if m := n.look().m; m != nil {
		for _, p := range slices.Concat(m.Peers, m.Hosted) {
			if slices.Contains(p.Addrs, t.addr) {
				w.Person = &WhoisPerson{User: p.User, Node: p.Name}
			}
		}
	}
	flows := n.guard.flows(now, func(f filter.Flow) bool { return !f.Outward })
	// The kernel keeps a port where it can, so the likely ones come first.
	slices.SortFunc(flows, func(a, b filter.Flow) int {
		if x, y := a.Remote.Port() == t.port, b.Remote.Port() == t.port; x != y {
			if x {
				return -1
			}
			return 1
		}
		return b.Began.Compare(a.Began)
	})
	live := map[string]bool{}
	for _, f := range flows {
		l := lineOf(&filter.Event{
			Kind: filter.FlowBegan, At: f.Began, Began: f.Began, User: f.User, Node: f.Node, Remote: f.Remote, Local: f.Local,
			Proto: f.Proto, In: f.In, Out: f.Out, Rule: f.Rule,
		})
		live[l.identity()] = true
		l.SeenAs = n.flows.seenAs(f)
		if t.matches(&l) && len(w.Live) < mostWhois {
			w.Live = append(w.Live, l)
		}
		if t.port != 0 && t.isEnd(l.SeenAs) {
			break // there is no other
		}
	}
	for r := range lines(n.o.StateDir, flowsName) {
		if r.err != nil {
			return w, r.err
		}
		var l FlowLine
		if json.Unmarshal(r.line, &l) == nil && !live[l.identity()] {
			w.remember(t, l)
		}
	}
	return w, nil
}

// remember adds a line of the record if it is about the target. That of an end
// replaces that of its beginning, and keeps what only that one could know.
func (w *Whois) remember(t whoisTarget, l FlowLine) {
	if l.Event == EventFlowEnded {
		id := l.identity()
		at := slices.IndexFunc(w.Recorded, func(o FlowLine) bool { return o.identity() == id })
		if at >= 0 {
			if l.SeenAs == "" {
				l.SeenAs = w.Recorded[at].SeenAs
			}
			w.Recorded[at] = l
			return
		}
	}
	if !t.matches(&l) {
		return
	}
	w.Recorded = append(w.Recorded, l)
	if len(w.Recorded) > mostWhois {
		w.Recorded = w.Recorded[1:]
	}
}

// identity tells the flows of a record apart.
func (l *FlowLine) identity() string {
	return l.Protocol + " " + l.Source + " " + l.Target + " " + l.BeganAt.Format(time.RFC3339Nano)
}
