package coord

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"

	"overlayd/overlay/coord/api"
	"overlayd/overlay/key"
	"overlayd/overlay/policy"
)

// Roll is who takes part in a network, and which grants hold. It names nodes by
// a hash of their ids with the network's, so that it tells strangers how many
// there are and nothing else.
type Roll struct {
	Network NetworkID
	Version uint64 // of the map that it is of
	Grants  []string
	nodes   map[rollNode]bool
}

// rollNode stands for a node on a roll.
type rollNode [16]byte

func (n NetworkID) rollNode(id string) rollNode {
	sum := sha256.Sum256(slices.Concat([]byte("overlayd roll node v1"), n[:], []byte(id)))
	return rollNode(sum[:])
}

// SignedRoll is a Roll as the coordinator signed it. Whoever has a map can tell
// that it did.
type SignedRoll struct{ Roll, Signature []byte }

func (s SignedRoll) isZero() bool { return len(s.Roll) == 0 }

// RollPath is where a relay hands out its newest roll, on its TLS port.
const RollPath = "/roll"

// maxRoll in bytes is that of 200,000 nodes of 16 bytes each with ten thousand
// grants of 12, which is far more than one coordinator serves. Of a larger one
// nobody would hear: relays hand it out, and nodes do not read it.
const maxRoll = 200_000*16 + maxGrants*12 + 1<<10

// signedRoll is what the signature is of: no other statement begins like it.
func signedRoll(roll []byte) []byte { return append([]byte("overlayd roll v1\x00"), roll...) }

// rollOf returns the roll of a snapshot: everybody whose node is active.
func (s *snapshot) rollOf() *Roll {
	r := &Roll{Network: s.network.ID, Version: s.rev, nodes: map[rollNode]bool{}}
	for _, n := range s.nodes {
		if s.stateOf(n) == NodeActive {
			r.nodes[r.Network.rollNode(n.ID)] = true
		}
	}
	r.Grants = slices.Sorted(maps.Keys(s.grants))
	return r
}

// sign returns the roll with its signature.
func (r *Roll) sign(k key.Machine) SignedRoll {
	w := &api.Roll{Network: r.Network[:], Version: r.Version, Grants: r.Grants}
	for _, h := range slices.SortedFunc(maps.Keys(r.nodes), func(a, b rollNode) int { return bytes.Compare(a[:], b[:]) }) {
		w.Nodes = append(w.Nodes, h[:]...)
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(w)
	if err != nil {
		panic("internal error: a roll does not marshal: " + err.Error())
	}
	return SignedRoll{b, ed25519.Sign(k.Signer(), signedRoll(b))}
}

// Open returns the roll, if the coordinator of a network signed it.
func (s SignedRoll) Open(signer key.MachinePublic, network NetworkID) (*Roll, error) {
	if signer.IsZero() || !ed25519.Verify(signer.Ed25519(), signedRoll(s.Roll), s.Signature) {
		return nil, errors.New("open roll: the coordinator did not sign it")
	}
	var w api.Roll
	if err := proto.Unmarshal(s.Roll, &w); err != nil || len(w.Nodes)%len(rollNode{}) != 0 || !bytes.Equal(w.Network, network[:]) {
		return nil, errors.New("open roll: it is malformed, or of another network")
	}
	r := &Roll{Network: network, Version: w.Version, Grants: w.Grants, nodes: make(map[rollNode]bool, len(w.Nodes)/len(rollNode{}))}
	for h := range slices.Chunk(w.Nodes, len(rollNode{})) {
		r.nodes[rollNode(h)] = true
	}
	return r, nil
}

// Narrow returns the map without the peers and grants that a newer roll does not
// have any more, or the map itself when there are none. A roll adds nothing.
func (m *Map) Narrow(r *Roll) *Map {
	if r.Version <= m.Version {
		return m
	}
	return m.without(func(n Node) bool { return !r.nodes[r.Network.rollNode(n.ID)] }, func(id string) bool {
		grant, is := strings.CutPrefix(id, policy.GrantPrefix)
		return is && !slices.Contains(r.Grants, grant)
	})
}

// HandOn returns a relay's map with a roll to hand on to others, or the map itself
// when it has one that is as new: an older one would give back what was taken away
// since.
func (m *Map) HandOn(s SignedRoll) *Map {
	r, err := s.Open(m.Signer, m.Network)
	if err != nil || m.Self.Role != RoleRelay || r.Version <= m.Version {
		return m
	}
	if have, err := m.Roll.Open(m.Signer, m.Network); err == nil && r.Version <= have.Version {
		return m
	}
	next := *m
	next.Roll = s
	return &next
}

// without returns the map without some of the peers and rules, or the map itself
// when it has none of those. over nil: all rules stay.
func (m *Map) without(left func(Node) bool, over func(ruleID string) bool) *Map {
	gone := map[netip.Addr]bool{}
	next := *m
	next.Peers, next.Hosted = stay(m.Peers, left, gone), stay(m.Hosted, left, gone)
	if m.Ruleset != nil {
		next.Ruleset = narrowRules(m.Ruleset, gone, over)
	}
	if len(gone) == 0 && next.Ruleset == m.Ruleset {
		return m
	}
	return &next
}

// stay returns those of the nodes that have not left, and adds the addresses of
// the others to gone.
func stay(nodes []Node, left func(Node) bool, gone map[netip.Addr]bool) (list []Node) {
	for _, n := range nodes {
		if !left(n) {
			list = append(list, n)
			continue
		}
		for _, a := range n.Addrs {
			gone[a] = true
		}
	}
	return list
}

// narrowRules returns a ruleset without some sources and rules.
func narrowRules(s *policy.Ruleset, gone map[netip.Addr]bool, over func(ruleID string) bool) *policy.Ruleset {
	next := *s
	next.Sources = slices.DeleteFunc(slices.Clone(s.Sources), func(x policy.Source) bool { return gone[x.Address] })
	if over != nil {
		next.Rules = slices.DeleteFunc(slices.Clone(s.Rules), func(x policy.NodeRule) bool { return over(x.ID) })
	}
	if len(next.Sources) == len(s.Sources) && len(next.Rules) == len(s.Rules) {
		return s
	}
	next.From = slices.Clone(s.From)
	for i, x := range next.From {
		next.From[i].Prefixes = slices.DeleteFunc(slices.Clone(x.Prefixes), func(p netip.Prefix) bool { return p.IsSingleIP() && gone[p.Addr()] })
	}
	return &next
}

// rolls keeps the signed roll of the newest standing.
type rolls struct {
	mu      sync.Mutex // guards what follows
	of      *standing
	version uint64
	last    SignedRoll
}

// roll returns the newest signed roll, of a snapshot at least.
func (s *Server) roll(snap *snapshot) SignedRoll {
	s.rolls.mu.Lock()
	defer s.rolls.mu.Unlock()
	if k, err := snap.network.signer(); err == nil && s.rolls.of != snap.standing && snap.rev > s.rolls.version {
		s.rolls.of, s.rolls.version, s.rolls.last = snap.standing, snap.rev, snap.rollOf().sign(k)
	}
	return s.rolls.last
}

// Roll asks a relay for the newest roll that it has.
func (c *Client) Roll(ctx context.Context, r Relay) (SignedRoll, error) {
	config, err := ClientTLS(r.Endpoint, r.Pin)
	if err != nil {
		return SignedRoll{}, err
	}
	t := &http.Transport{
		TLSClientConfig: config, Proxy: c.o.Proxy, TLSHandshakeTimeout: dialTimeout, DialContext: c.dial,
		ForceAttemptHTTP2: true, DisableKeepAlives: true,
	}
	defer t.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+r.Endpoint+RollPath, nil)
	if err != nil {
		return SignedRoll{}, fmt.Errorf("ask relay %s for the roll: %w", r.Name, err)
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return SignedRoll{}, fmt.Errorf("ask relay %s for the roll: %w", r.Name, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxRoll+1))
	switch {
	case err != nil:
		return SignedRoll{}, fmt.Errorf("ask relay %s for the roll: %w", r.Name, err)
	case resp.StatusCode != http.StatusOK || len(b) > maxRoll:
		return SignedRoll{}, fmt.Errorf("ask relay %s for the roll: %s, %d bytes", r.Name, resp.Status, len(b))
	}
	return parseSignedRoll(b)
}

// RollHandler hands out what newest returns.
func RollHandler(newest func() SignedRoll) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		roll := newest()
		switch {
		case r.Method != http.MethodGet:
			http.Error(w, "it is to be read", http.StatusMethodNotAllowed)
		case roll.isZero():
			http.NotFound(w, r)
		default:
			w.Header().Set("Content-Type", "application/octet-stream")
			w.Header().Set("Cache-Control", "no-store")
			w.Write(roll.append(nil)) // an error is the caller's, who asks again
		}
	})
}

func (s SignedRoll) append(b []byte) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(b, rollToWire(s))
	if err != nil {
		panic("internal error: a signed roll does not marshal: " + err.Error())
	}
	return b
}

func parseSignedRoll(b []byte) (SignedRoll, error) {
	var w api.SignedRoll
	if err := proto.Unmarshal(b, &w); err != nil {
		return SignedRoll{}, errors.New("read roll: it is malformed")
	}
	return rollFromWire(&w), nil
}

func rollToWire(s SignedRoll) *api.SignedRoll {
	if s.isZero() {
		return nil
	}
	return &api.SignedRoll{Roll: s.Roll, Signature: s.Signature}
}

func rollFromWire(w *api.SignedRoll) SignedRoll {
	if len(w.GetRoll()) == 0 {
		return SignedRoll{}
	}
	return SignedRoll{w.GetRoll(), w.GetSignature()}
}
