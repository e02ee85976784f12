package coord

import (
	"net"
	"net/netip"
	"path/filepath"
	"testing"

	"overlayd/overlay/key"
)

// TestRestart stops a coordinator and starts another one on its database, under
// a follower that nobody touches.
func TestRestart(t *testing.T) {
	path, addr, machine := filepath.Join(t.TempDir(), "db"), "127.0.0.1:0", key.NewMachine()
	var (
		nd   *node
		f    *following
		was  *Map
		link Link
	)
	t.Run("first", func(first *testing.T) {
		n := openNetwork(first, path, addr, machine)
		addr = n.addr
		nd = n.join(Invite{Address: netip.MustParseAddr("172.18.0.77")}, "a")
		link = n.invite(Invite{})
		n.t = t // the follower outlives this coordinator
		f = n.follow(nd, FollowOptions{BootID: 1})
		was = f.await("itself", func(m *Map) bool { return m.Self.Label == 77 && m.Self.BootID == 1 })
	})
	if t.Failed() {
		return
	}
	n := openNetwork(t, path, addr, machine)
	other := n.stranger()
	if err := other.enroll(link, "b"); err != nil {
		t.Fatalf("an invite from before: %v", err)
	}
	m := f.await("b", func(m *Map) bool { return len(m.Peers) == 1 && m.Peers[0].Name == "b" })
	if m.Version <= was.Version || m.Network != was.Network || m.Self.WireGuard != was.Self.WireGuard {
		t.Errorf("the map was %+v, and is %+v", was, m)
	}
}

func openNetwork(t *testing.T, path, addr string, machine key.Machine) *network {
	t.Helper()
	store, err := OpenBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return startNetwork(t, store, ln, machine)
}
