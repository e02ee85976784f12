package overlay

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"overlayd/overlay/coord"
	"overlayd/overlay/filter"
)

// expiring runs a test with a node that watches the keys of a map. The control
// connection is what it is told, which changes nothing here.
func expiring(t *testing.T, m func() *coord.Map, test func(n *Node)) {
	synctest.Test(t, func(t *testing.T) {
		n, err := New(Options{StateDir: t.TempDir(), Userspace: true, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- n.watchExpiry(ctx) }()
		n.take(m(), func(*view) {})
		test(n)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestKeysExpireByThisClock: a peer's key ends at its moment without any word of
// the coordinator, and its flows with it; a renewal brings the peer back.
func TestKeysExpireByThisClock(t *testing.T) {
	const life = time.Hour + 300*time.Millisecond
	until := func(d time.Duration) *coord.Map {
		m := gatewayMap(1, allowPort(22, nil))
		m.Peers[0].Expires = time.Now().Add(d).Round(0)
		return m
	}
	expiring(t, func() *coord.Map { return until(life) }, func(n *Node) {
		peers, flows := func() int { return len(n.look().m.Peers) }, func() int {
			return len(n.guard.flows(time.Now(), func(filter.Flow) bool { return true }))
		}
		if v := asks(n.guard, time.Now(), 22); v != filter.Pass {
			t.Fatalf("at first: %s", v)
		}
		time.Sleep(life - time.Millisecond)
		synctest.Wait()
		if peers() != 1 || flows() != 1 {
			t.Errorf("before the end: %d peers, %d flows", peers(), flows())
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if peers() != 0 || flows() != 0 || asks(n.guard, time.Now(), 22) == filter.Pass {
			t.Errorf("at the end: %d peers, %d flows", peers(), flows())
		}
		if whole := n.look().whole; len(whole.Peers) != 1 {
			t.Error("the map of the next start has forgotten the peer")
		}

		n.take(until(life), func(*view) {})
		if v := asks(n.guard, time.Now(), 22); v != filter.Pass || peers() != 1 {
			t.Errorf("renewed: %s, %d peers", v, peers())
		}
		time.Sleep(life)
		synctest.Wait()
		if peers() != 0 || flows() != 0 {
			t.Errorf("at the second end: %d peers, %d flows", peers(), flows())
		}
	})
}

// TestOwnKeyExpires: a machine whose own key ends refuses by itself what it led to,
// and says why.
func TestOwnKeyExpires(t *testing.T) {
	m := func() *coord.Map {
		m := testMap(testNode("laptop", 11, coord.RoleMember, true), testNode("gw", 200, coord.RoleGateway, true, approved("192.168.1.0/24")))
		m.Self.State, m.Self.Expires = coord.NodeActive, time.Now().Add(time.Minute).Round(0)
		return m
	}
	expiring(t, m, func(n *Node) {
		if barred(n.look().m) != nil {
			t.Error("it has expired before")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		got := n.look().m
		if b := barred(got); b == nil || nodeState(n.look(), nil) != StateExpired || len(got.Peers) != 0 {
			t.Errorf("%v, %d peers", b, len(got.Peers))
		}
		if len(got.Closed) != 1 || got.Closed[0] != prefix("192.168.1.0/24") {
			t.Errorf("closed is %v", got.Closed)
		}
	})
}

// TestClockSetBack: who had been taken off by a clock that was wrong comes back.
func TestClockSetBack(t *testing.T) {
	expiring(t, func() *coord.Map {
		m := gatewayMap(1)
		m.Peers[0].Expires = time.Now().Add(time.Hour).Round(0)
		return m
	}, func(n *Node) {
		whole := n.look().whole
		n.taking.Lock()
		n.hold(whole, time.Now().Add(200*24*time.Hour), func(*view) {}) // as if it had been that late
		n.taking.Unlock()
		if len(n.look().m.Peers) != 0 {
			t.Error("the peer is still there")
		}
		time.Sleep(expireLook)
		synctest.Wait()
		if len(n.look().m.Peers) != 1 {
			t.Error("the peer does not come back")
		}
	})
}
