package coord

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"overlayd/internal/limit"
	"overlayd/overlay/key"
)

// TestOneTimeInvite lets a thousand machines race for one invite.
func TestOneTimeInvite(t *testing.T) {
	n := newNetwork(t)
	link := n.invite(Invite{})
	var (
		wg       errgroup.Group
		mu       sync.Mutex
		admitted []string
	)
	wg.SetLimit(atOnce)
	count := 1000
	if raceEnabled {
		count = 200
	}
	for range count {
		nd := n.stranger()
		wg.Go(func() error {
			err := nd.enrollSoon(link, "n")
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				admitted = append(admitted, nd.NodeID)
			} else {
				wantKind(t, err, KindDenied, "used up")
			}
			return nil
		})
	}
	wg.Wait()
	all, err := n.admin.Nodes(t.Context())
	if err != nil || len(all) != 1 || len(admitted) != 1 {
		t.Fatalf("%d machines were admitted, %d nodes are listed (%v)", len(admitted), len(all), err)
	}
}

// TestFiveHundred joins 500 nodes over TLS, which follow the network, and then
// counts what one node's change costs.
func TestFiveHundred(t *testing.T) {
	count := 500
	if testing.Short() || raceEnabled {
		count = 50
	}
	n := newNetwork(t)
	link := n.invite(Invite{Uses: count})
	began := time.Now()
	nodes, follows := make([]*node, count), make([]*following, count)
	var joining errgroup.Group
	joining.SetLimit(atOnce)
	for i := range count {
		nodes[i] = n.stranger()
		joining.Go(func() error { return nodes[i].enrollSoon(link, "n") })
	}
	if err := joining.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d nodes joined in %s", count, time.Since(began).Round(time.Millisecond))
	for i, nd := range nodes {
		follows[i] = n.follow(nd, FollowOptions{BootID: uint64(i + 1)})
		if i >= atOnce {
			follows[i-atOnce].await("the first map", func(*Map) bool { return true })
		}
	}
	for _, f := range follows {
		f.await("all peers online", func(m *Map) bool {
			return len(m.Peers) == count-1 && !slices.ContainsFunc(m.Peers, func(p Node) bool { return !p.Online })
		})
	}
	t.Logf("and all knew each other after %s", time.Since(began).Round(time.Millisecond))
	seen := map[uint32]bool{}
	for _, nd := range nodes {
		if seen[nd.Label] {
			t.Fatalf("the label %d was given twice", nd.Label)
		}
		seen[nd.Label] = true
	}

	changed := time.Now()
	if _, err := n.admin.RenameNode(t.Context(), nodes[0].NodeID, "changed"); err != nil {
		t.Fatal(err)
	}
	for _, f := range follows[1:] {
		f.await("the new name", func(m *Map) bool {
			i, ok := find(m.Peers, nodes[0].Label)
			return ok && m.Peers[i].Name == "changed"
		})
	}
	t.Logf("one change reached all %d in %s", count-1, time.Since(changed).Round(time.Millisecond))
	snap := n.server.ledger.now()
	sight := snap.sightOf(snap.nodes[nodes[1].NodeID], nil)
	d := n.server.delta(snap, snap.nodes[nodes[1].NodeID], sight, sight, dirt{labels: map[uint32]struct{}{nodes[0].Label: {}}})
	if size := proto.Size(d); size >= 1000 {
		t.Errorf("a change of one node costs %d bytes for each other", size)
	} else {
		t.Logf("and cost each %d bytes", size)
	}
	for _, f := range follows {
		f.cancel()
	}
	for _, f := range follows {
		if err := f.ended(); !errors.Is(err, context.Canceled) {
			t.Fatalf("follow ended with %v", err)
		}
	}
}

func TestEnroll(t *testing.T) {
	n := newNetwork(t)
	gw := n.join(Invite{Name: "lab-gw", Address: netip.MustParseAddr("172.18.0.200"), Routes: []netip.Prefix{pfx("192.168.1.0/24")}},
		"ignored", pfx("192.168.1.0/24"), pfx("192.168.2.0/24"))
	if gw.Name != "lab-gw" || gw.Label != 200 || gw.Addrs[0].String() != "172.18.0.200" || gw.Role != RoleGateway ||
		gw.Network != n.server.Network() || gw.Overlay != testOverlay {
		t.Errorf("the gateway is %+v", gw.Enrolled)
	}
	first, second := n.join(Invite{}, "Laptop.local"), n.join(Invite{}, "laptop")
	if first.Name != "laptop" || second.Name != "laptop-2" || first.Label != 1 || second.Label != 2 {
		t.Errorf("the laptops are %+v and %+v", first.Enrolled, second.Enrolled)
	}
	m := n.follow(first, FollowOptions{}).await("the gateway", func(m *Map) bool { return len(m.Peers) == 2 })
	if got := m.Peers[1].Routes; len(got) != 1 || got[0] != (Route{pfx("192.168.1.0/24"), true}) {
		t.Errorf("the gateway's routes are %v", got)
	}
	if len(m.Relays) != 1 || m.Relays[0].Name != "vps" || len(m.Passes) != 1 || m.Passes[0].Relay != "r1" {
		t.Errorf("relays %v, passes %v", m.Relays, m.Passes)
	}

	t.Run("again", func(t *testing.T) {
		link, before := n.invite(Invite{}), first.Enrolled
		first.private = key.NewPrivate() // a new WireGuard key is taken over
		if err := first.enroll(link, "other"); err != nil || first.NodeID != before.NodeID || first.Name != before.Name {
			t.Errorf("%+v, %v", first.Enrolled, err)
		}
		if n.server.ledger.now().invites[link.Invite].Used != 0 {
			t.Error("the invite was used")
		}
		if n.server.ledger.now().nodes[first.NodeID].WireGuard != first.private.Public() {
			t.Error("the WireGuard key is the old one")
		}
	})
	t.Run("a copied WireGuard key", func(t *testing.T) {
		thief := n.stranger()
		thief.private = second.private
		wantKind(t, thief.enroll(n.invite(Invite{}), "thief"), KindConflict, "laptop-2")
	})
	t.Run("refused", func(t *testing.T) {
		open := n.invite(Invite{Uses: 10})
		used := n.invite(Invite{})
		if err := n.stranger().enroll(used, "x"); err != nil {
			t.Fatal(err)
		}
		revoked := n.invite(Invite{})
		if err := n.admin.RevokeInvite(t.Context(), revoked.Invite); err != nil {
			t.Fatal(err)
		}
		wrong := n.invite(Invite{})
		wrong.Secret = key.NewSecret()
		unknown := open
		unknown.Invite = "ixxxxxxxxx"
		for _, c := range []struct {
			name  string
			link  Link
			kind  Kind
			words string
			adv   []netip.Prefix
		}{
			{"used", used, KindDenied, "used up", nil},
			{"revoked", revoked, KindDenied, "revoked", nil},
			{"wrong secret", wrong, KindDenied, "wrong", nil},
			{"unknown", unknown, KindDenied, "unknown", nil},
			{"default route", open, KindInvalid, "default route", []netip.Prefix{pfx("0.0.0.0/0")}},
			{"host bits", open, KindInvalid, "192.168.1.0/24", []netip.Prefix{pfx("192.168.1.7/24")}},
			{"overlay", open, KindConflict, "overlaps", []netip.Prefix{pfx("172.16.0.0/12")}},
		} {
			wantKind(t, n.stranger().enroll(c.link, "x", c.adv...), c.kind, c.words)
		}
		n.now.add(25 * time.Hour)
		wantKind(t, n.stranger().enroll(open, "x"), KindDenied, "expired")
	})
}

func TestWishes(t *testing.T) {
	n := newNetwork(t)
	at := func(s string) netip.Addr { return netip.MustParseAddr(s) }
	n.join(Invite{Address: at("172.18.0.11"), Name: "taken"}, "")
	promised := n.invite(Invite{Address: at("172.18.0.1"), Name: "soon"})
	for _, c := range []struct {
		name  string
		i     Invite
		kind  Kind
		words []string
	}{
		{"taken address", Invite{Address: at("172.18.0.11")}, KindConflict, []string{"taken by the node taken", "another address"}},
		{"promised address", Invite{Address: at("172.18.0.1")}, KindConflict, []string{"promised", promised.Invite}},
		{"outside", Invite{Address: at("10.0.0.1")}, KindConflict, []string{"outside", "172.18.0.1 and 172.18.255.254"}},
		{"network", Invite{Address: at("172.18.0.0")}, KindConflict, []string{"network address"}},
		{"broadcast", Invite{Address: at("172.18.255.255")}, KindConflict, []string{"broadcast address"}},
		{"taken name", Invite{Name: "taken"}, KindConflict, []string{"172.18.0.11", "another name"}},
		{"promised name", Invite{Name: "soon"}, KindConflict, []string{"promised"}},
		{"bad name", Invite{Name: "My Laptop"}, KindInvalid, []string{"my-laptop"}},
		{"two at one address", Invite{Uses: 2, Address: at("172.18.0.12")}, KindInvalid, []string{"one use"}},
		{"bad role", Invite{Role: "king"}, KindInvalid, []string{"gateway"}},
		{"too long", Invite{TTL: 10000 * time.Hour}, KindInvalid, []string{"a year"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := n.admin.Invite(t.Context(), c.i)
			wantKind(t, err, c.kind, c.words...)
		})
	}
	if nd := n.join(Invite{}, "soon"); nd.Label != 2 || nd.Name != "soon-2" {
		t.Errorf("a promise was not kept: %+v", nd.Enrolled)
	}
	late := n.stranger()
	if err := late.enroll(promised, ""); err != nil || late.Label != 1 || late.Name != "soon" {
		t.Errorf("%+v, %v", late.Enrolled, err)
	}
	relay := n.stranger()
	l := n.invite(Invite{})
	_, err := relay.c.Enroll(t.Context(), EnrollRequest{Invite: l.Invite, Secret: l.Secret, Role: RoleRelay, WireGuard: relay.private.Public()})
	wantKind(t, err, KindDenied, "not for a relay")
}

func TestRemoved(t *testing.T) {
	n := newNetwork(t)
	a, b := n.join(Invite{}, "a"), n.join(Invite{}, "b")
	fa, fb := n.follow(a, FollowOptions{BootID: 7}), n.follow(b, FollowOptions{})
	fa.await("b online", func(m *Map) bool { return len(m.Peers) == 1 && m.Peers[0].Online })
	fb.await("a's boot id", func(m *Map) bool { return len(m.Peers) == 1 && m.Peers[0].BootID == 7 })
	if _, err := n.admin.RemoveNode(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	gone := <-n.removed
	if gone.Label != b.Label {
		t.Errorf("Removed was called with %d", gone.Label)
	}
	n.server.presence.pass("next", "r1", key.Secret{}, time.Time{}, time.Unix(0, 0), func(serial uint64, _ time.Time) Pass {
		if serial <= gone.Serial {
			t.Errorf("a pass made after the removal has the serial %d: passes up to %d are refused", serial, gone.Serial)
		}
		return Pass{}
	})
	if rs := n.server.Removals(); !slices.ContainsFunc(rs, func(r Removal) bool { return r.Label == b.Label }) {
		t.Errorf("after a restart nobody would hear of the removal: %v", rs)
	}
	wantKind(t, fb.ended(), KindDenied, "removed")
	wantKind(t, n.follow(b, FollowOptions{}).ended(), KindDenied, "join again")
	fa.await("no b", func(m *Map) bool { return len(m.Peers) == 0 })
	if c := n.join(Invite{}, "c"); c.Label == b.Label {
		t.Error("the removed node's label was given again at once")
	}
	_, err := n.admin.RemoveNode(t.Context(), "b")
	wantKind(t, err, KindNotFound)
	if again := n.stranger(); true {
		again.machine, again.c = b.machine, b.c
		if err := again.enroll(n.invite(Invite{}), "b"); err != nil || again.Label == b.Label {
			t.Errorf("joining again: %+v, %v", again.Enrolled, err)
		}
	}
}

func TestRoutes(t *testing.T) {
	n := newNetwork(t)
	lan := pfx("192.168.1.0/24")
	laptop, gw := n.join(Invite{}, "laptop"), n.join(Invite{}, "gw")
	fl := n.follow(laptop, FollowOptions{})
	fg := n.follow(gw, FollowOptions{Advertise: func() []netip.Prefix { return []netip.Prefix{lan} }})
	fg.await("its own route waiting", func(m *Map) bool { return slices.Equal(m.Self.Routes, []Route{{lan, false}}) })
	if m := fl.await("gw", func(m *Map) bool { return len(m.Peers) == 1 }); len(m.Peers[0].Routes) != 0 {
		t.Errorf("a route that waits was shown: %v", m.Peers[0].Routes)
	}
	all, err := n.admin.Routes(t.Context())
	if err != nil || len(all) != 1 || all[0].Approved || !all[0].Advertised || all[0].Node != "gw" || !all[0].Online {
		t.Errorf("routes: %+v, %v", all, err)
	}
	if r, err := n.admin.ApproveRoute(t.Context(), "", lan); err != nil || !r.Approved {
		t.Fatalf("approve: %+v, %v", r, err)
	}
	fg.await("its route approved", func(m *Map) bool { return slices.Equal(m.Self.Routes, []Route{{lan, true}}) })
	fl.await("the route", func(m *Map) bool { return len(m.Peers[0].Routes) == 1 })
	if r, err := n.admin.WithdrawRoute(t.Context(), "gw", lan); err != nil || r.Approved {
		t.Fatalf("withdraw: %+v, %v", r, err)
	}
	fl.await("no route", func(m *Map) bool { return len(m.Peers[0].Routes) == 0 })
	_, err = n.admin.ApproveRoute(t.Context(), "gw", pfx("10.1.0.0/16"))
	wantKind(t, err, KindNotFound, "overlayd routes")
	_, err = n.admin.WithdrawRoute(t.Context(), "nobody", lan)
	wantKind(t, err, KindNotFound, "nobody")
}

func TestAdmin(t *testing.T) {
	n := newNetwork(t)
	l, err := n.admin.Invite(t.Context(), Invite{Name: "a", Routes: []netip.Prefix{pfx("10.1.0.0/16")}})
	if err != nil || l.Endpoint != n.addr || l.Pin != n.pin {
		t.Fatalf("invite: %v, %v", l, err)
	}
	nd := n.stranger()
	if err := nd.enroll(l, ""); err != nil {
		t.Fatal(err)
	}
	is, err := n.admin.Invites(t.Context())
	if err != nil || len(is) != 1 || is[0].State != InviteUsed || is[0].Used != 1 || is[0].Role != RoleGateway || is[0].TTL != DefaultInviteTTL {
		t.Errorf("invites: %+v, %v", is, err)
	}
	for _, ref := range []string{nd.NodeID, "a", "172.18.0.1"} {
		if info, err := n.admin.RenameNode(t.Context(), ref, "a"); err != nil || info.Machine != nd.machine.Public() {
			t.Errorf("%s: %+v, %v", ref, info, err)
		}
	}
	n.join(Invite{}, "b")
	_, err = n.admin.RenameNode(t.Context(), "a", "b")
	wantKind(t, err, KindConflict, "taken")
	_, err = n.admin.RenameNode(t.Context(), "a", "B_")
	wantKind(t, err, KindInvalid, "for example b")
	wantKind(t, n.admin.RevokeInvite(t.Context(), "nothing"), KindNotFound, "invite list")
	infos, err := n.admin.Nodes(t.Context())
	if err != nil || len(infos) != 2 || infos[0].Name != "a" || infos[0].Joined.IsZero() || infos[0].Online {
		t.Errorf("nodes: %+v, %v", infos, err)
	}
}

func TestPassesAreRenewed(t *testing.T) {
	p, now := newPresence(), time.Unix(1e9, 0)
	minted := 0
	get := func() Pass {
		return p.pass("n", "r1", key.Secret{}, time.Time{}, now, func(serial uint64, notAfter time.Time) Pass { minted++; return Pass{NotAfter: notAfter} })
	}
	first := get()
	if got := first.NotAfter.Sub(now); got != passLife {
		t.Errorf("a pass lives %s", got)
	}
	now = now.Add(passLife - passRenew)
	if get(); minted != 1 {
		t.Error("a pass was renewed too soon")
	}
	now = now.Add(time.Second)
	if next := get(); minted != 2 || !next.NotAfter.After(first.NotAfter) {
		t.Error("a pass was not renewed")
	}
	now = now.Add(-30 * 24 * time.Hour) // the clock was set back: no relay would take a pass from the future for long
	if get(); minted != 3 {
		t.Error("a pass that lives too long was kept")
	}
}

// TestPassSerials: what Removals says of a label's earlier nodes must not fall on
// the one that has it now, wherever the clock went.
func TestPassSerials(t *testing.T) {
	joined := time.Unix(1e9, 0)
	for _, now := range []time.Time{joined, joined.Add(time.Second), joined.Add(-time.Hour)} {
		newPresence().pass("n", "r1", key.Secret{}, joined, now, func(serial uint64, _ time.Time) Pass {
			if serial <= serialAt(joined) {
				t.Errorf("%s after joining the serial is %d, of before", now.Sub(joined), serial)
			}
			return Pass{}
		})
	}
}

// TestPassIsPushed moves the clock, and awaits the new pass as a change.
func TestPassIsPushed(t *testing.T) {
	n := newNetwork(t)
	nd := n.join(Invite{}, "a")
	f := n.follow(nd, FollowOptions{})
	first := f.await("a pass", func(m *Map) bool { return len(m.Passes) == 1 })
	n.server.presence.mu.Lock()
	p := n.server.presence.passes[passFor{nd.NodeID, "r1"}]
	p.NotAfter = p.NotAfter.Add(-3 * 24 * time.Hour) // as if it were three days old
	n.server.presence.passes[passFor{nd.NodeID, "r1"}] = p
	n.server.presence.mu.Unlock()
	n.join(Invite{}, "b")
	f.await("another pass", func(m *Map) bool { return !m.Passes[0].Key.Equal(first.Passes[0].Key) })
}

func TestSlowWatcher(t *testing.T) {
	w, now := newWatcher("n", 1, time.Unix(0, 0)), time.Unix(100, 0)
	for l := range uint32(maxDirty) {
		w.mark(now.Add(time.Duration(l)), false, []uint32{l})
		w.mark(now.Add(time.Duration(l)), false, []uint32{l / 2})
	}
	if d := w.dirty; d.whole || len(d.labels) != maxDirty || !d.since.Equal(now) {
		t.Errorf("after %d changes: whole %v, %d labels", maxDirty, d.whole, len(d.labels))
	}
	w.mark(now, true, []uint32{1 << 20})
	if d := w.take(); !d.whole || d.labels != nil || !d.relays {
		t.Errorf("after one more: %+v", d)
	}
	if d := w.take(); !d.since.IsZero() || d.whole {
		t.Errorf("what was taken is still there: %+v", d)
	}
}

func TestOverlayStays(t *testing.T) {
	store, err := OpenBolt(filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	o := ServerOptions{Store: store, Endpoint: "127.0.0.1:443"}
	_, err = NewServer(o)
	wantKind(t, err, KindInvalid, "--overlay")
	o.Overlay = testOverlay
	s, err := NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	id := s.Network()
	o.Overlay = netip.Prefix{}
	if s, err := NewServer(o); err != nil || s.Overlay() != testOverlay || s.Network() != id {
		t.Errorf("without a prefix: %v", err)
	}
	o.Overlay = pfx("172.19.0.0/16")
	_, err = NewServer(o)
	wantKind(t, err, KindConflict, "--overlay 172.18.0.0/16")
	for _, bad := range []string{"172.18.0.1/16", "0.0.0.0/7", "10.0.0.0/31", "127.0.0.0/16"} {
		o.Overlay = netip.MustParsePrefix(bad)
		if _, err := NewServer(o); err == nil {
			t.Errorf("the overlay %s was taken", bad)
		}
	}
}

// TestSecretsStay looks for secrets in the log, the database's records and
// errors.
func TestSecretsStay(t *testing.T) {
	n := newNetwork(t)
	link := n.invite(Invite{})
	wrong := link
	wrong.Secret = key.NewSecret()
	text := fmt.Sprint(n.stranger().enroll(wrong, "x"), link, wrong) + fmt.Sprintf("%+v %#v %q %x", link, link, link, link)
	nd := n.stranger()
	if err := nd.enroll(link, "x"); err != nil {
		t.Fatal(err)
	}
	n.follow(nd, FollowOptions{}).await("a map", func(*Map) bool { return true })
	text += n.log.String()
	records, _, err := n.server.o.Store.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		text += string(r.Value)
	}
	for name, secret := range map[string]key.Secret{"secret": link.Secret, "wrong secret": wrong.Secret} {
		b := secret.Expose()
		for _, leak := range []string{string(b), base64.RawURLEncoding.EncodeToString(b)[:12], base64.StdEncoding.EncodeToString(b)[:12], fmt.Sprintf("%x", b)[:12]} {
			if strings.Contains(text, leak) {
				t.Errorf("the %s leaks: %s", name, text)
			}
		}
	}
}

func TestFailedEnrolmentsAreLimited(t *testing.T) {
	n := newNetwork(t)
	wrong := n.invite(Invite{})
	good := n.invite(Invite{})
	wrong.Secret = key.NewSecret()
	for i := range limit.Burst + 1 {
		err := n.stranger().enroll(wrong, "x")
		if i < limit.Burst {
			wantKind(t, err, KindDenied, "wrong")
		} else {
			wantKind(t, err, KindDenied, "too many")
		}
	}
	wantKind(t, n.stranger().enroll(good, "x"), KindDenied, "wait")
	n.now.add(limit.ForgiveEvery + time.Second)
	if err := n.stranger().enroll(good, "x"); err != nil {
		t.Error(err)
	}
}

func TestPinMismatch(t *testing.T) {
	n := newNetwork(t)
	link := n.invite(Invite{})
	_, other, err := SelfSigned(key.NewMachine(), "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	right := n.pin
	n.pin = other
	nd := n.stranger()
	wantKind(t, nd.enroll(link, "x"), KindDenied, right.String(), other.String())
	n.pin = key.Pin{}
	nd = n.stranger()
	if err := nd.enroll(link, "x"); err == nil {
		t.Error("a self-signed certificate passed the ordinary checks")
	}
	if n.server.ledger.now().invites[link.Invite].Used != 0 {
		t.Error("the secret reached the server")
	}
	// A follower goes on trying: it may be behind a captive portal for a while.
	n.pin = other
	f := n.follow(n.stranger(), FollowOptions{})
	for lost := 0; lost < 2; {
		f.mu.Lock()
		lost = 0
		for _, s := range f.states {
			if s.Phase == PhaseLost {
				lost++
			}
		}
		moved := f.moved
		f.mu.Unlock()
		if lost < 2 {
			<-moved
		}
	}
}

func TestClockSkew(t *testing.T) {
	n := newNetwork(t)
	nd := n.stranger()
	off := &clock{off: 3 * time.Hour}
	c, err := NewClient(ClientOptions{Endpoint: n.addr, Pin: n.pin, Machine: nd.machine, Now: off.Now})
	if err != nil {
		t.Fatal(err)
	}
	nd.c = c
	wantKind(t, nd.enroll(n.invite(Invite{}), "x"), KindInvalid, "ahead of", "set the clock")
	off.add(-6 * time.Hour)
	wantKind(t, nd.enroll(n.invite(Invite{}), "x"), KindInvalid, "behind")
	off.add(3 * time.Hour)
	if err := nd.enroll(n.invite(Invite{}), "x"); err != nil {
		t.Error(err)
	}
}

func TestUnreachable(t *testing.T) {
	c, err := NewClient(ClientOptions{Endpoint: "127.0.0.1:1", Machine: key.NewMachine()})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Enroll(t.Context(), EnrollRequest{WireGuard: key.NewPrivate().Public()})
	wantKind(t, err, KindUnreachable, "127.0.0.1:1", "TCP port")
}
