package tunnel

import (
	"io"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"overlayd/overlay/key"
)

func TestContacts(t *testing.T) {
	a, b := key.NewPrivate().Public(), key.NewPrivate().Public()
	var stranded []key.Public
	c := newContacts(func(k key.Public) { stranded = append(stranded, k) })
	c.follow([]Peer{{Key: a, Endpoint: "a"}, {Key: b, Endpoint: "b"}})
	data, response := make([]byte, 64), make([]byte, 92)
	data[0], response[0] = 4, 2
	receive := func(from string, p []byte) {
		c.received([][]byte{nil, p}, []int{0, len(p)}, []conn.Endpoint{nil, named(from)})
	}
	receive("b", response)
	receive("b", data)
	if len(stranded) != 0 {
		t.Error("a peer that shook hands counts as stranded")
	}
	receive("nobody", data)
	receive("a", data)
	receive("a", data)
	if len(stranded) != 1 || stranded[0] != a {
		t.Errorf("%d peers are stranded, want one, once", len(stranded))
	}
	c.follow([]Peer{{Key: b, Endpoint: "b"}})
	c.follow([]Peer{{Key: b, Endpoint: "b"}, {Key: a, Endpoint: "a"}})
	receive("a", data)
	receive("b", data)
	if len(stranded) != 2 || stranded[1] != a {
		t.Errorf("%d are stranded after one came back", len(stranded))
	}

	now := time.Unix(1000, 0)
	c.sends([][]byte{{1, 0, 0, 0}}, named("b"), func() time.Time { return now })
	c.sends([][]byte{{4, 0, 0, 0}}, named("a"), func() time.Time { return now })
	if !c.initiated(b).Equal(now) || !c.initiated(a).IsZero() || !c.initiated(key.Public{}).IsZero() {
		t.Errorf("initiated %v and %v", c.initiated(b), c.initiated(a))
	}
}

func TestContactsDoNotAllocate(t *testing.T) {
	c := newContacts(func(key.Public) {})
	c.follow([]Peer{{Key: key.NewPrivate().Public(), Endpoint: "a"}})
	var ep conn.Endpoint = named("a")
	bufs, sizes, eps := [][]byte{make([]byte, 64)}, []int{64}, []conn.Endpoint{ep}
	if n := testing.AllocsPerRun(100, func() {
		c.received(bufs, sizes, eps)
		c.sends(bufs, ep, time.Now)
	}); n != 0 {
		t.Errorf("%v allocations per batch", n)
	}
}

// A device that was made anew gets packets of the session that its predecessor
// had, and nobody tells the other of it.
func TestPredecessorsSession(t *testing.T) {
	pa, pb := newPipes()
	a, b := newNode(t, pa, "10.1.0.1", io.Discard), newNode(t, pb, "10.1.0.2", io.Discard)
	for n, other := range map[*node]*node{a: b, b: a} {
		if err := n.SetPeers([]Peer{other.as()}); err != nil {
			t.Fatal(err)
		}
	}
	ping(t, a, b)
	b.Close()
	again := newNodeWith(t, pb, b.key, "10.1.0.2", io.Discard)
	if err := again.SetPeers([]Peer{a.as()}); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	for end := start.Add(deadline); ; {
		a.tun.Outbound <- tuntest.Ping(again.ip, a.ip)
		select {
		case <-again.tun.Inbound:
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("the session is back after %v", took)
			}
			return
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(end) {
			t.Fatal("the session is not back")
		}
	}
}
