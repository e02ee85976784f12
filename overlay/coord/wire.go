package coord

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"overlayd/overlay/coord/api"
	"overlayd/overlay/key"
	"overlayd/overlay/policy"
)

// Append appends the map's encoding, which holds the secrets of its passes.
func (m *Map) Append(b []byte) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(b, mapToWire(m))
	if err != nil {
		panic("internal error: a map does not marshal: " + err.Error())
	}
	return b
}

// ParseMap reads what Append wrote.
func ParseMap(b []byte) (*Map, error) {
	var w api.Map
	if err := proto.Unmarshal(b, &w); err != nil {
		return nil, problem(KindInvalid, "", "the map is malformed")
	}
	m, err := mapFromWire(&w)
	if err != nil {
		return nil, problem(KindInvalid, "", "the map is malformed: %v", err)
	}
	return m, nil
}

func mapToWire(m *Map) *api.Map {
	w := &api.Map{Version: m.Version, Network: m.Network[:], Overlay: m.Overlay.String(), Self: nodeToWire(m.Self)}
	for _, n := range m.Peers {
		w.Peers = append(w.Peers, nodeToWire(n))
	}
	for _, n := range m.Hosted {
		w.Hosted = append(w.Hosted, nodeToWire(n))
	}
	w.Relays, w.Passes, w.Revoked = relaysToWire(m.Relays), passesToWire(m.Passes), revokedToWire(m.Revoked)
	if m.Ruleset != nil {
		w.Ruleset = rulesetToWire(m.Ruleset)
	}
	w.Roll, w.Closed = rollToWire(m.Roll), prefixesToWire(m.Closed)
	if !m.Signer.IsZero() {
		w.Signer = m.Signer.Bytes()
	}
	return w
}

func mapFromWire(w *api.Map) (*Map, error) {
	m := &Map{Version: w.Version}
	if len(w.Network) != len(m.Network) {
		return nil, fmt.Errorf("the network id has %d bytes", len(w.Network))
	}
	m.Network = NetworkID(w.Network)
	var err error
	if m.Overlay, err = netip.ParsePrefix(w.Overlay); err != nil {
		return nil, err
	}
	if err := checkOverlay(m.Overlay); err != nil {
		return nil, err
	}
	if m.Self, err = nodeIn(w.Self, m.Overlay); err != nil {
		return nil, err
	}
	for _, p := range w.Peers {
		n, err := nodeIn(p, m.Overlay)
		if err != nil {
			return nil, err
		}
		if k := len(m.Peers); n.Label == m.Self.Label || k > 0 && n.Label <= m.Peers[k-1].Label {
			return nil, fmt.Errorf("the label %d is out of order", n.Label)
		}
		m.Peers = append(m.Peers, n)
	}
	for _, h := range w.Hosted {
		n, err := hostedIn(h, m.Overlay)
		if err != nil {
			return nil, err
		}
		_, taken := find(m.Peers, n.Label)
		if k := len(m.Hosted); taken || n.Label == m.Self.Label || k > 0 && n.Label <= m.Hosted[k-1].Label {
			return nil, fmt.Errorf("the label %d of a hosted member is another's, or out of order", n.Label)
		}
		m.Hosted = append(m.Hosted, n)
	}
	if m.Relays, err = relaysFromWire(w.Relays); err != nil {
		return nil, err
	}
	if m.Closed, err = closedIn(w.Closed, m.Overlay); err != nil {
		return nil, err
	}
	m.Revoked = revokedFromWire(w.Revoked)
	if len(w.Ruleset) > 0 {
		if m.Ruleset, err = rulesetFromWire(w.Ruleset); err != nil {
			return nil, err
		}
	}
	m.Roll = rollFromWire(w.Roll)
	if len(w.Signer) > 0 {
		if m.Signer, err = key.MachinePublicFromBytes(w.Signer); err != nil {
			return nil, err
		}
	}
	m.Passes, err = passesFromWire(w.Passes)
	return m, err
}

func nodeToWire(n Node) *api.Member {
	w := &api.Member{
		Id: n.ID, Name: n.Name, Label: n.Label, Role: string(n.Role), Wireguard: n.WireGuard.Bytes(),
		Online: n.Online, BootId: n.BootID, Attached: attachedToWire(n.Attached),
		User: n.User, Tags: n.Tags, ExpiresAt: timeToWire(n.Expires), RenewedAt: timeToWire(n.Renewed), KeyedAt: timeToWire(n.Keyed), State: string(n.State), Host: n.Host, Seat: n.Seat,
		Devices: uint32(n.Devices),
	}
	for _, a := range n.Addrs {
		w.Addrs = append(w.Addrs, a.String())
	}
	for _, r := range n.Routes {
		w.Routes = append(w.Routes, &api.Route{Prefix: r.Prefix.String(), Approved: r.Approved})
	}
	return w
}

func nodeFromWire(w *api.Member) (Node, error) {
	n := Node{
		ID: w.GetId(), Name: w.GetName(), Label: w.GetLabel(), Role: Role(w.GetRole()),
		Online: w.GetOnline(), BootID: w.GetBootId(), Attached: attachedFromWire(w.GetAttached()),
		User: w.GetUser(), Tags: w.GetTags(), Expires: timeFromWire(w.GetExpiresAt()), Renewed: timeFromWire(w.GetRenewedAt()), Keyed: timeFromWire(w.GetKeyedAt()), State: NodeState(w.GetState()), Host: w.GetHost(), Seat: w.GetSeat(),
		Devices: int(w.GetDevices()),
	}
	if n.State == "" { // of a coordinator, or a file, from before there were states
		n.State = NodeActive
	}
	if !n.State.valid() {
		return Node{}, fmt.Errorf("the node %.80q has the unknown state %.80q", n.ID, string(n.State))
	}
	if !validID(n.ID) || checkName(n.Name) != nil || n.Label < 1 || n.Label >= 1<<maxLabelBits {
		return Node{}, fmt.Errorf("the node %.80q with label %d is malformed", n.ID, n.Label)
	}
	if n.Host != "" && !validID(n.Host) || n.Seat && n.Host == "" {
		return Node{}, fmt.Errorf("who carries the node %.80q is malformed", n.ID)
	}
	var err error
	if n.WireGuard, err = key.PublicFromBytes(w.GetWireguard()); err != nil {
		return Node{}, fmt.Errorf("node %s: %w", n.ID, err)
	}
	if n.Addrs, err = parseAddrs(w.GetAddrs()); err != nil {
		return Node{}, fmt.Errorf("node %s: %w", n.ID, err)
	}
	for _, r := range w.GetRoutes() {
		p, err := netip.ParsePrefix(r.Prefix)
		if err != nil || p != p.Masked() {
			return Node{}, fmt.Errorf("node %s: the route %.80q is malformed", n.ID, r.Prefix)
		}
		n.Routes = append(n.Routes, Route{p, r.Approved})
	}
	return n, nil
}

// nodeIn is nodeFromWire for a node of a network: a coordinator that went wrong
// must not make a node route what it should not.
func nodeIn(w *api.Member, overlay netip.Prefix) (Node, error) {
	n, err := nodeFromWire(w)
	if err != nil {
		return Node{}, err
	}
	if n.Label > lastLabel(overlay) {
		return Node{}, fmt.Errorf("node %s: the label %d is outside %s", n.ID, n.Label, overlay)
	}
	for _, a := range n.Addrs {
		if !overlay.Contains(a) {
			return Node{}, fmt.Errorf("node %s: the address %s is outside %s", n.ID, a, overlay)
		}
	}
	for _, r := range n.Routes {
		if err := checkPrefix(r.Prefix, overlay); err != nil {
			return Node{}, fmt.Errorf("node %s: %w", n.ID, err)
		}
	}
	return n, nil
}

// hostedIn is nodeIn for a hosted member, which has its own address and no more.
func hostedIn(w *api.Member, overlay netip.Prefix) (Node, error) {
	n, err := nodeIn(w, overlay)
	switch {
	case err != nil:
		return Node{}, err
	case n.Host == "" || n.Host == n.ID:
		return Node{}, fmt.Errorf("node %s: nobody carries it", n.ID)
	case len(n.Addrs) != 1 || n.Addrs[0] != addrOf(overlay, n.Label) || len(n.Routes) > 0 || n.Role != RoleMember:
		return Node{}, fmt.Errorf("node %s: a hosted member has one address, and nothing behind it", n.ID)
	}
	return n, nil
}

// closedIn reads the prefixes that are closed to a node of a network.
func closedIn(w []string, overlay netip.Prefix) ([]netip.Prefix, error) {
	ps, err := parsePrefixes(w)
	if err != nil {
		return nil, err
	}
	for _, p := range ps {
		if err := checkPrefix(p, overlay); err != nil {
			return nil, err
		}
	}
	return ps, nil
}

func rulesetToWire(r *policy.Ruleset) []byte {
	b, err := json.Marshal(r)
	if err != nil {
		panic("internal error: a ruleset does not marshal: " + err.Error())
	}
	return b
}

func rulesetFromWire(b []byte) (*policy.Ruleset, error) {
	r := new(policy.Ruleset)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("the ruleset is malformed: %w", err)
	}
	return r, nil
}

func passesToWire(ps []Pass) (w []*api.Pass) {
	for _, p := range ps {
		w = append(w, &api.Pass{Relay: p.Relay, Ticket: p.Ticket, Key: p.Key.Expose(), NotAfter: timeToWire(p.NotAfter)})
	}
	return w
}

func passesFromWire(w []*api.Pass) (ps []Pass, err error) {
	for _, p := range w {
		k, err := key.ParseSecret(p.Key)
		if err != nil {
			return nil, fmt.Errorf("the pass for relay %.80q: %w", p.Relay, err)
		}
		ps = append(ps, Pass{Relay: p.Relay, Ticket: p.Ticket, Key: k, NotAfter: timeFromWire(p.NotAfter)})
	}
	return ps, nil
}

func timeToWire(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func timeFromWire(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

func addrToWire(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func parseAddrs(ss []string) (as []netip.Addr, err error) {
	for _, s := range ss {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, err
		}
		as = append(as, a)
	}
	return as, nil
}

func prefixesToWire(ps []netip.Prefix) []string {
	ss := make([]string, 0, len(ps))
	for _, p := range ps {
		ss = append(ss, p.String())
	}
	return ss
}

// parsePrefixes reads prefixes that a person may have typed.
func parsePrefixes(ss []string) (ps []netip.Prefix, err error) {
	for _, s := range ss {
		p, err := parsePrefix(s)
		if err != nil {
			return nil, err
		}
		ps = append(ps, p)
	}
	return ps, nil
}

func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, problem(KindInvalid, "write it as 192.168.1.0/24", "%.80q is not a prefix", s)
	}
	return p, nil
}
