package coord

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"

	"overlayd/overlay/coord/api"
	"overlayd/overlay/key"
	"overlayd/overlay/policy"
)

func testLink() Link {
	_, pin, err := SelfSigned(key.NewMachine(), "x")
	if err != nil {
		panic(err)
	}
	return Link{Endpoint: "203.0.113.10:443", Pin: pin, Invite: newID("i", 9), Secret: key.NewSecret()}
}

func TestLink(t *testing.T) {
	for _, endpoint := range []string{"203.0.113.10:443", "vpn.example.com:8443", "[2001:db8::1]:443", "[fe80::1%eth0]:443"} {
		l := testLink()
		l.Endpoint = endpoint
		for _, pin := range []key.Pin{l.Pin, {}} {
			l.Pin = pin
			s := l.Encode()
			if strings.ContainsAny(s, " \t\n'\"\\$`!*?[]{}()<>|&;#~") {
				t.Errorf("a shell would change %s", s)
			}
			got, err := ParseLink("  " + s + "\n")
			if err != nil || got.Endpoint != l.Endpoint || got.Pin != l.Pin || got.Invite != l.Invite || !got.Secret.Equal(l.Secret) {
				t.Errorf("%s: %v, %v", s, got, err)
			}
			if hidden := fmt.Sprintf("%v %+v %#v %q", l, l, l, l); strings.Contains(hidden, s[len(s)-40:len(s)-10]) {
				t.Errorf("the link prints its secret: %s", hidden)
			}
		}
	}
}

// TestMangledLink loses, changes and swaps each character.
func TestMangledLink(t *testing.T) {
	good := testLink().Encode()
	try := func(s string) {
		t.Helper()
		_, err := ParseLink(s)
		p, ok := AsProblem(err)
		if !ok || p.Kind != KindInvalid || p.Hint == "" {
			t.Errorf("%q: %v", s, err)
		} else if len(good) > 20 && strings.Contains(p.Message+p.Hint, good[60:80]) {
			t.Errorf("the error quotes the link: %s", p.Message)
		}
	}
	for i := range good {
		try(good[:i])
		try(good[:i] + good[i+1:])
		try(good[:i] + "A" + good[i:])
		if i > 0 && good[i] != good[i-1] {
			try(good[:i-1] + string(good[i]) + string(good[i-1]) + good[i+1:])
		}
	}
	try(good[:40] + "\n" + good[40:])
	try(strings.ToLower(good))
	try("https://example.com")
	try(good + good)
}

func FuzzParseLink(f *testing.F) {
	f.Add(testLink().Encode())
	f.Add("ovl://a:1/-/i.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA.00000000")
	f.Add("ovl://%5B::1%5D:1/-/..")
	f.Fuzz(func(t *testing.T, s string) {
		l, err := ParseLink(s)
		if err != nil {
			return
		}
		again, err := ParseLink(l.Encode())
		if err != nil || again.Endpoint != l.Endpoint || again.Pin != l.Pin || again.Invite != l.Invite || !again.Secret.Equal(l.Secret) {
			t.Errorf("%v became %v (%v)", l, again, err)
		}
	})
}

// cmpSecrets compares what cannot be compared with ==.
var cmpSecrets = cmp.Options{
	cmp.Comparer(func(a, b key.Secret) bool { return a.Equal(b) }),
	cmp.Comparer(func(a, b key.Public) bool { return a == b }),
	cmp.Comparer(func(a, b key.Pin) bool { return a == b }),
	cmp.Comparer(func(a, b key.MachinePublic) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func testNode(label uint32) Node {
	return Node{
		State: NodeActive, User: "alice", Tags: []string{"a", "b"},
		ID: fmt.Sprint("n", label), Name: fmt.Sprint("host-", label), Label: label, Role: RoleMember,
		Addrs: []netip.Addr{addrOf(testOverlay, label)}, WireGuard: key.NewPrivate().Public(), BootID: rand.Uint64(),
	}
}

func testPin() key.Pin {
	_, pin, err := SelfSigned(key.NewMachine(), "198.51.100.10")
	if err != nil {
		panic(err)
	}
	return pin
}

func testMap() *Map {
	gw := testNode(200)
	gw.Attached = []Attachment{{"r", 20 * time.Millisecond}, {"n2", 0}}
	gw.Online, gw.Role, gw.Routes = true, RoleGateway, []Route{{pfx("192.168.1.0/24"), true}}
	return &Map{
		Version: 7, Network: NetworkID{1, 2, 3}, Overlay: testOverlay, Self: testNode(11), Peers: []Node{testNode(10), gw},
		Relays:  []Relay{{ID: "r", Name: "vps", Endpoint: "203.0.113.10:443", Label: 10}, {ID: "n2", Name: "vps2", Endpoint: "198.51.100.10:443", Label: 12, Pin: testPin()}},
		Revoked: []Removal{{Label: 9, Serial: 1 << 50}},
		Closed:  []netip.Prefix{pfx("10.9.0.0/16")},
		Passes:  []Pass{{Relay: "r", Ticket: []byte("ticket"), Key: key.NewSecret(), NotAfter: time.Unix(1e9, 0).UTC()}},
	}
}

func TestMapText(t *testing.T) {
	m := testMap()
	got, err := ParseMap(m.Append(nil))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(m, got, cmpSecrets); diff != "" {
		t.Error(diff)
	}
	for name, spoil := range map[string]func(*Map){
		"no overlay":       func(m *Map) { m.Overlay = netip.Prefix{} },
		"peers unsorted":   func(m *Map) { m.Peers[0], m.Peers[1] = m.Peers[1], m.Peers[0] },
		"a peer twice":     func(m *Map) { m.Peers[0] = m.Peers[1] },
		"self as a peer":   func(m *Map) { m.Peers[0].Label = m.Self.Label },
		"label too large":  func(m *Map) { m.Peers[1].Label = 1 << 20 },
		"foreign address":  func(m *Map) { m.Peers[1].Addrs[0] = netip.MustParseAddr("8.8.8.8") },
		"default route":    func(m *Map) { m.Peers[1].Routes[0].Prefix = pfx("0.0.0.0/0") },
		"overlay as route": func(m *Map) { m.Peers[1].Routes[0].Prefix = testOverlay },
		"overlay closed":   func(m *Map) { m.Closed[0] = testOverlay },
		"all is closed":    func(m *Map) { m.Closed[0] = pfx("0.0.0.0/0") },
		"a bad name":       func(m *Map) { m.Self.Name = "A B" },
	} {
		m := testMap()
		spoil(m)
		if _, err := ParseMap(m.Append(nil)); err == nil {
			t.Errorf("%s: it was taken", name)
		}
	}
}

func FuzzParseMap(f *testing.F) {
	f.Add(testMap().Append(nil))
	ruled := testMap()
	ruled.Ruleset, ruled.Signer = testRuleset(), key.NewMachine().Public()
	ruled.Roll = testRoll(ruled).sign(key.NewMachine())
	f.Add(ruled.Append(nil))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseMap(b)
		if err != nil {
			return
		}
		again, err := ParseMap(m.Append(nil))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(m, again, cmpSecrets); diff != "" {
			t.Error(diff)
		}
	})
}

func testRuleset() *policy.Ruleset {
	p, err := policy.Parse([]byte(labPolicy))
	if err != nil {
		panic(err)
	}
	w := policy.World{
		Users: []policy.User{{Name: "alice"}, {Name: "bob"}},
		Nodes: []policy.Node{
			{Name: "laptop", User: "alice", Addresses: []netip.Addr{netip.MustParseAddr("172.18.0.11")}, Role: policy.Member},
			{Name: "gw", Addresses: []netip.Addr{netip.MustParseAddr("172.18.0.200")}, Role: policy.Gateway, Routes: []netip.Prefix{pfx("192.168.1.0/24")}},
		},
	}
	r := policy.Compile(p, w, "gw", nil)
	return &r
}

// FuzzNextRuleset: what a coordinator sends is taken whole and right, or not.
func FuzzNextRuleset(f *testing.F) {
	have := testRuleset()
	next := *have
	next.Rules = next.Rules[:1]
	change, err := json.Marshal(have.Diff(next))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(nil), change)
	f.Add(rulesetToWire(have), []byte(nil))
	f.Add([]byte("{}"), []byte("[]"))
	f.Fuzz(func(t *testing.T, whole, change []byte) {
		was := have.Digest()
		got, err := nextRuleset(have, &api.Delta{Ruleset: whole, RulesetDelta: change})
		if err == nil && got == nil {
			t.Error("neither a ruleset nor an error")
		}
		if have.Digest() != was {
			t.Error("the old ruleset changed")
		}
	})
}

// TestDelta compares a map after random deltas with a plain model.
func TestDelta(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	m := testMap()
	model := map[uint32]Node{}
	for _, p := range m.Peers {
		model[p.Label] = p
	}
	for range 2000 {
		d := &api.Delta{Version: m.Version + 1}
		for range r.IntN(4) {
			n := testNode(20 + r.Uint32N(40))
			if _, there := model[n.Label]; there && r.IntN(2) == 0 {
				delete(model, n.Label)
				d.Removed = append(d.Removed, n.Label)
				continue
			}
			if containsLabel(d.Removed, n.Label) {
				continue
			}
			model[n.Label] = n
			d.Peers = append(d.Peers, nodeToWire(n))
		}
		d.Peers = withoutLabels(d.Peers, d.Removed)
		before := *m
		next, err := m.apply(d)
		if err != nil {
			t.Fatal(err)
		}
		if m.Version != before.Version || len(m.Peers) != len(before.Peers) {
			t.Fatal("apply changed the old map")
		}
		m = next
		if len(m.Peers) != len(model) {
			t.Fatalf("%d peers, the model has %d", len(m.Peers), len(model))
		}
		for _, p := range m.Peers {
			if diff := cmp.Diff(model[p.Label], p, cmpSecrets); diff != "" {
				t.Fatal(diff)
			}
		}
		if _, err := ParseMap(m.Append(nil)); err != nil {
			t.Fatal(err)
		}
	}
	closed := &api.Delta{Closed: &api.PrefixList{Prefixes: []string{"10.8.0.0/16"}}}
	if next, err := m.apply(closed); err != nil || len(next.Closed) != 1 || next.Closed[0] != pfx("10.8.0.0/16") || m.Closed[0] != pfx("10.9.0.0/16") {
		t.Errorf("closed became %v (%v)", next.Closed, err)
	}
	if next, err := m.apply(&api.Delta{Closed: &api.PrefixList{}}); err != nil || len(next.Closed) != 0 {
		t.Errorf("closed did not become nothing (%v)", err)
	}
	closed.Closed.Prefixes[0] = testOverlay.String()
	if _, err := m.apply(closed); err == nil {
		t.Error("the overlay was closed")
	}
	self := nodeToWire(testNode(12))
	if _, err := m.apply(&api.Delta{Self: self}); err == nil {
		t.Error("another label for this node was taken")
	}
	if _, err := m.apply(&api.Delta{Peers: []*api.Member{nodeToWire(testNode(11))}}); err == nil {
		t.Error("a peer with this node's label was taken")
	}
}

func containsLabel(ls []uint32, l uint32) bool {
	for _, x := range ls {
		if x == l {
			return true
		}
	}
	return false
}

func withoutLabels(ps []*api.Member, ls []uint32) (out []*api.Member) {
	for _, p := range ps {
		if !containsLabel(ls, p.Label) {
			out = append(out, p)
		}
	}
	return out
}

func TestProblemOnTheWire(t *testing.T) {
	for k := range kindCodes {
		sent := problem(k, "do this", "that happened")
		got, ok := AsProblem(fmt.Errorf("call: %w", wireError(sent)))
		if !ok || *got != *sent {
			t.Errorf("%s became %+v", k, got)
		}
	}
	inner := errors.New("disk on fire at /var/lib/secret")
	if p, ok := AsProblem(wireError(inner)); !ok || p.Kind != KindInternal || strings.Contains(p.Message+p.Hint, "fire") {
		t.Errorf("an inner error became %+v", p)
	}
	if _, ok := AsProblem(inner); ok {
		t.Error("any error is a problem")
	}
}

func TestToken(t *testing.T) {
	m, now := key.NewMachine(), time.Unix(1e9, 0)
	const aud = "coordinator"
	good := jwt.RegisteredClaims{
		Issuer: tokenIssuer, Subject: m.Public().String(), Audience: jwt.ClaimStrings{aud},
		IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(tokenLife)),
	}
	sign := func(method jwt.SigningMethod, k any, spoil func(*jwt.RegisteredClaims)) string {
		c := good
		if spoil != nil {
			spoil(&c)
		}
		s, err := jwt.NewWithClaims(method, c).SignedString(k)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	eddsa := func(spoil func(*jwt.RegisteredClaims)) string { return sign(jwt.SigningMethodEdDSA, m.Signer(), spoil) }
	ours, err := signToken(m, aud, now)
	if err != nil {
		t.Fatal(err)
	}
	for _, ok := range []string{ours, eddsa(nil)} {
		if got, err := verifyToken(ok, []string{"other", aud}, now); err != nil || got != m.Public() {
			t.Errorf("%v, %v", got, err)
		}
	}
	parts := strings.Split(ours, ".")
	for name, c := range map[string]struct{ token, says string }{
		"none":             {sign(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, nil), "not signed"},
		"hmac of the key":  {sign(jwt.SigningMethodHS256, m.Public().Bytes(), nil), "not signed"},
		"another signer":   {sign(jwt.SigningMethodEdDSA, key.NewMachine().Signer(), nil), "not signed"},
		"no signature":     {parts[0] + "." + parts[1] + ".", "not signed"},
		"two parts":        {parts[0] + "." + parts[1], "malformed"},
		"empty":            {"", "malformed"},
		"huge":             {strings.Repeat("a", maxToken+1), "too long"},
		"padded":           {ours + "=", "malformed"},
		"another audience": {eddsa(func(c *jwt.RegisteredClaims) { c.Audience = jwt.ClaimStrings{"x"} }), "another coordinator"},
		"no audience":      {eddsa(func(c *jwt.RegisteredClaims) { c.Audience = nil }), "refused"},
		"another issuer":   {eddsa(func(c *jwt.RegisteredClaims) { c.Issuer = "x" }), "claims"},
		"no subject":       {eddsa(func(c *jwt.RegisteredClaims) { c.Subject = "" }), "not signed"},
		"no expiry":        {eddsa(func(c *jwt.RegisteredClaims) { c.ExpiresAt = nil }), "no time"},
		"no issue time":    {eddsa(func(c *jwt.RegisteredClaims) { c.IssuedAt = nil }), "no time"},
		"a long life":      {eddsa(func(c *jwt.RegisteredClaims) { c.ExpiresAt = jwt.NewNumericDate(now.Add(time.Hour)) }), "too long"},
		"the future": {eddsa(func(c *jwt.RegisteredClaims) {
			c.IssuedAt, c.ExpiresAt = jwt.NewNumericDate(now.Add(time.Hour)), jwt.NewNumericDate(now.Add(time.Hour+tokenLife))
		}), "1h0m0s ahead"},
		"the past": {eddsa(func(c *jwt.RegisteredClaims) {
			c.IssuedAt, c.ExpiresAt = jwt.NewNumericDate(now.Add(-time.Hour)), jwt.NewNumericDate(now.Add(tokenLife-time.Hour))
		}), "1h0m0s behind"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := verifyToken(c.token, []string{aud}, now)
			wantKind(t, err, KindInvalid, c.says)
		})
	}
}

func FuzzVerifyToken(f *testing.F) {
	// The fuzzer's processes have to agree on the key.
	m, err := key.ParseMachine([]byte("a key that is known to everybody"))
	if err != nil {
		f.Fatal(err)
	}
	now := time.Unix(1e9, 0)
	good, err := signToken(m, "a", now)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Fuzz(func(t *testing.T, s string) {
		// Only the key's holder makes tokens; a fuzzer finds at most this one.
		if got, err := verifyToken(s, []string{"a"}, now); err == nil && (got != m.Public() || s != good) {
			t.Errorf("%q was taken for %s", s, got)
		}
	})
}
