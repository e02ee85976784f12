package tunnel

import (
	"io"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
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
		c.received([][]byte{nil, p}, []int{0, len(p)}, []conn.Endpoint{nil, named(from)}, time.Now)
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
}

// TestForget: WireGuard is not made to forget a handshake that is under way.
func TestForget(t *testing.T) {
	a, b := key.NewPrivate().Public(), key.NewPrivate().Public()
	then := time.Unix(1000, 0)
	at := func(d time.Duration) func() time.Time { return func() time.Time { return then.Add(d) } }
	initiation, response, data := []byte{1, 0, 0, 0}, []byte{2, 0, 0, 0}, []byte{4, 0, 0, 0}
	for name, c := range map[string]struct {
		sent, got []byte
		peer      key.Public
		after     time.Duration
		busy      bool
	}{
		"an initiation left":                   {initiation, nil, a, yieldFor - 1, true},
		"an initiation left long ago":          {initiation, nil, a, yieldFor, false},
		"the clock was set back since":         {initiation, nil, a, -time.Hour, false},
		"an answer came":                       {nil, response, a, yieldFor - 1, true},
		"an answer came long ago":              {nil, response, a, yieldFor, false},
		"data only":                            {data, data, a, 0, false},
		"an initiation left for somebody else": {initiation, response, b, 0, false},
		"a device that is not followed":        {initiation, response, key.Public{}, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			met := newContacts(func(key.Public) {})
			met.follow([]Peer{{Key: a, Endpoint: "a"}, {Key: b, Endpoint: "b"}})
			if c.sent != nil {
				met.sends([][]byte{c.sent}, named("a"), at(0))
			}
			if c.got != nil { // after other datagrams from the same peer
				met.received([][]byte{data, c.got}, []int{4, 4}, []conn.Endpoint{named("a"), named("a")}, at(0))
			}
			forgot := false
			busy := met.forget(c.peer, at(c.after), func() {
				forgot = true
				if n := met.byKey[c.peer]; n != nil && n.mu.TryLock() {
					t.Error("an answer would not wait")
				}
			})
			if forgot == c.busy || busy.IsZero() == c.busy || c.busy && !busy.Equal(then) {
				t.Errorf("forgot: %v, busy since %v", forgot, busy)
			}
		})
	}
}

func TestContactsDoNotAllocate(t *testing.T) {
	c := newContacts(func(key.Public) {})
	c.follow([]Peer{{Key: key.NewPrivate().Public(), Endpoint: "a"}})
	var ep conn.Endpoint = named("a")
	bufs, sizes, eps := [][]byte{make([]byte, 64)}, []int{64}, []conn.Endpoint{ep}
	if n := testing.AllocsPerRun(100, func() {
		c.received(bufs, sizes, eps, time.Now)
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

// answered calls a function when an answer to an initiation has come, before
// WireGuard gets it.
type answered struct {
	*pipe
	call func()
}

func (a *answered) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, port, err := a.pipe.Open(port)
	receive := fns[0]
	fns[0] = func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		n, err := receive(bufs, sizes, eps)
		if n == 1 && bufs[0][0] == device.MessageResponseType {
			a.call()
		}
		return n, err
	}
	return fns, port, err
}

// A handshake that is begun in the very moment in which the answer to another one
// comes leads to no session that only one side can use.
func TestBegunWhenAnswered(t *testing.T) {
	for i := range 24 { // one in five met the moment, when nobody took care
		pa, pb := newPipes()
		bind := &answered{pipe: pa}
		a, b := newNode(t, bind, "10.1.0.1", io.Discard), newNode(t, pb, "10.1.0.2", io.Discard)
		ended := make(chan struct{})
		bind.call = sync.OnceFunc(func() {
			a.met.byKey[b.key.Public()].shake(time.Time{}) // it left a second ago, on a long way
			begun := make(chan struct{})
			go func() { // beginHandshake, slowly
				defer close(ended)
				peer := a.Device.dev.LookupPeer(device.NoisePublicKey(b.key.Public().Bytes()))
				a.met.forget(b.key.Public(), time.Now, func() {
					close(begun)
					for start := time.Now(); time.Since(start) < time.Duration(i)*10*time.Microsecond; {
					}
					peer.ExpireCurrentKeypairs()
				})
				peer.SendHandshakeInitiation(false)
			}()
			<-begun
		})
		for n, other := range map[*node]*node{a: b, b: a} {
			if err := n.SetPeers([]Peer{other.as()}); err != nil {
				t.Fatal(err)
			}
		}
		a.tun.Outbound <- tuntest.Ping(b.ip, a.ip)
		<-ended
		select {
		case <-b.tun.Inbound: // by whichever session
			ping(t, b, a)
		case <-time.After(30 * time.Millisecond):
			stats, err := a.Stats()
			if err != nil {
				t.Fatal(err)
			}
			if stats[b.key.Public()].LastHandshake.IsZero() {
				break // the next initiation makes one
			}
			select {
			case <-b.tun.Inbound:
				ping(t, b, a)
			case <-time.After(deadline): // WireGuard notices later than that
				t.Fatal("there is a session, and nothing arrives by it")
			}
		}
		a.Close()
		b.Close()
	}
}
