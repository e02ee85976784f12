package underlay

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/conn"

	"overlayd/overlay/key"
	"overlayd/overlay/relay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// deadline is how long a test waits for what should take no time.
const deadline = 10 * time.Second

var (
	testSecret  = key.NewSecret()
	testNetwork = relay.Network{7}
)

// startRelay runs a relay on loopback until the test ends, or stop is called.
func startRelay(t testing.TB, listen string) (s *relay.Server, stop func()) {
	t.Helper()
	s, err := relay.NewServer(relay.ServerOptions{
		Listen: netip.MustParseAddrPort(listen), Secret: testSecret, Log: slog.New(slog.DiscardHandler), Shards: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return s, stop
}

// at returns a relay as the map of the node with that label has it.
func at(label relay.Label, addrs ...netip.AddrPort) Relay {
	ticket := relay.Ticket{Network: testNetwork, Label: label, NotAfter: time.Now().Add(time.Hour), Serial: 1}.Append(nil)
	return Relay{ID: "r1", Name: "vps", Addrs: addrs, Ticket: ticket, Key: relay.SessionKey(testSecret, ticket)}
}

// packet is what came out of a Bind.
type packet struct {
	b  []byte
	ep conn.Endpoint
}

// host is a Bind at work.
type host struct {
	*Bind
	t     testing.TB
	key   key.Public
	label relay.Label
	got   chan packet
	read  sync.WaitGroup
}

// newHost runs a Bind until the test ends.
func newHost(t testing.TB, label relay.Label, o Options) *host {
	t.Helper()
	h := &host{Bind: New(o), t: t, key: key.NewPrivate().Public(), label: label, got: make(chan packet, 1000)}
	h.start()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- h.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		h.stop()
	})
	return h
}

// start opens the Bind and reads from it.
func (h *host) start() {
	h.t.Helper()
	fns, _, err := h.Open(0)
	if err != nil {
		h.t.Fatal(err)
	}
	for _, fn := range fns {
		h.read.Go(func() { h.receive(fn) })
	}
}

func (h *host) receive(fn conn.ReceiveFunc) {
	const batch = 8 // smaller than a train: what is left over must not be lost
	bufs, sizes, eps := make([][]byte, batch), make([]int, batch), make([]conn.Endpoint, batch)
	for i := range bufs {
		bufs[i] = make([]byte, 1<<16-1)
		sizes[i] = 1234 // as stale as can be
	}
	for {
		n, err := fn(bufs, sizes, eps)
		if err != nil {
			return
		}
		for i := range n {
			if sizes[i] == 0 {
				continue
			}
			select {
			case h.got <- packet{slices.Clone(bufs[i][:sizes[i]]), eps[i]}:
			default: // nobody takes that many out; the Bind must still be closable
			}
		}
	}
}

// stop closes the Bind and waits for its readers.
func (h *host) stop() {
	h.t.Helper()
	if err := h.Close(); err != nil {
		h.t.Error(err)
	}
	h.read.Wait()
}

func (h *host) as() Peer { return Peer{Key: h.key, Label: h.label} }

func (h *host) endpoint(other *host) conn.Endpoint {
	h.t.Helper()
	ep, err := h.ParseEndpoint(Endpoint(other.key))
	if err != nil {
		h.t.Fatal(err)
	}
	return ep
}

// next waits for a packet.
func (h *host) next() packet {
	h.t.Helper()
	select {
	case p := <-h.got:
		return p
	case <-time.After(deadline):
		h.t.Fatalf("nothing arrived; %v, relays %+v", h.Counters(), h.Relays())
		return packet{}
	}
}

// waitFor waits until the first relay's state is as wanted.
func (h *host) waitFor(state string) {
	h.t.Helper()
	h.waitRelay(func(r RelayStatus) bool { return r.State == state })
}

// waitRelay waits until the first relay is as wanted, and the ways by it too:
// they are made a moment after its session has changed.
func (h *host) waitRelay(ok func(RelayStatus) bool) {
	h.t.Helper()
	for end := time.Now().Add(deadline); ; time.Sleep(time.Millisecond) {
		if r := h.Relays(); len(r) > 0 && ok(r[0]) && h.waysFollow(r[0]) {
			return
		}
		if time.Now().After(end) {
			h.t.Fatalf("relays %+v", h.Relays())
		}
	}
}

// waysFollow reports whether the ways by the first relay are what its status says.
func (h *host) waysFollow(s RelayStatus) bool {
	h.mu.Lock() // whoever makes ways holds it
	defer h.mu.Unlock()
	r := h.roads.Load()
	up := len(r.reaches) > 0 && r.reaches[0].carrier != nil
	return up == (s.State == relay.Up.String()) && (!up || r.reaches[0].transport == s.Transport)
}

// data makes a WireGuard data message of n bytes.
func data(n int, fill byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = fill
	}
	copy(b, []byte{typeData, 0, 0, 0})
	return b
}

// pair makes two hosts that know each other and the relay.
func pair(t testing.TB, relayAddrs ...netip.AddrPort) (a, b *host) {
	t.Helper()
	a, b = newHost(t, 11, Options{}), newHost(t, 200, Options{})
	introduce(a, b)
	for _, h := range []*host{a, b} {
		h.SetRelays([]Relay{at(h.label, relayAddrs...)})
	}
	return a, b
}

// introduce makes hosts each other's peers.
func introduce(hosts ...*host) {
	for _, h := range hosts {
		var peers []Peer
		for _, other := range hosts {
			if other != h {
				peers = append(peers, other.as())
			}
		}
		h.SetPeers(peers)
	}
}
