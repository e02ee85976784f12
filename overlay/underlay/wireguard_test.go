package underlay_test

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"overlayd/overlay/key"
	"overlayd/overlay/relay"
	"overlayd/overlay/tunnel"
	"overlayd/overlay/underlay"
)

var (
	secret  = key.NewSecret()
	network = relay.Network{9}
)

// member is a whole node: WireGuard on an in-memory TUN over a Bind.
type member struct {
	t     *testing.T
	key   key.Private
	label relay.Label
	ip    netip.Addr
	tun   *tuntest.ChannelTUN
	bind  *underlay.Bind
	dev   *tunnel.Device
}

func newMember(t *testing.T, label relay.Label, o underlay.Options) *member {
	t.Helper()
	m := &member{
		t: t, key: key.NewPrivate(), label: label, tun: tuntest.NewChannelTUN(),
		ip:   netip.AddrFrom4([4]byte{172, 18, 0, byte(label)}),
		bind: underlay.New(o),
	}
	var err error
	m.dev, err = tunnel.New(tunnel.Options{TUN: &onceTUN{Device: m.tun.TUN()}, Bind: m.bind, Key: m.key})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- m.bind.Run(ctx) }()
	t.Cleanup(func() {
		m.dev.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return m
}

// onceTUN can be closed twice, like a real one.
type onceTUN struct {
	tun.Device
	once sync.Once
}

func (o *onceTUN) Close() (err error) {
	o.once.Do(func() { err = o.Device.Close() })
	return err
}

// meet makes all members each other's peers, behind the relay.
func meet(addr netip.AddrPort, members ...*member) {
	for _, m := range members {
		var lower []underlay.Peer
		var upper []tunnel.Peer
		for _, o := range members {
			if o != m {
				k := o.key.Public()
				lower = append(lower, underlay.Peer{Key: k, Label: o.label})
				upper = append(upper, tunnel.Peer{Key: k, Endpoint: underlay.Endpoint(k), AllowedIPs: []netip.Prefix{netip.PrefixFrom(o.ip, 32)}})
			}
		}
		ticket := relay.Ticket{Network: network, Label: m.label, NotAfter: time.Now().Add(time.Hour), Serial: 1}.Append(nil)
		m.bind.SetPeers(lower)
		m.bind.SetRelays([]underlay.Relay{{ID: "1", Addrs: []netip.AddrPort{addr}, Ticket: ticket, Key: relay.SessionKey(secret, ticket)}})
		if err := m.dev.SetPeers(upper); err != nil {
			m.t.Fatal(err)
		}
	}
}

// ping sends one packet and returns how long it took.
func (m *member) ping(to *member, patience time.Duration) time.Duration {
	m.t.Helper()
	start := time.Now()
	msg := tuntest.Ping(to.ip, m.ip)
	select {
	case m.tun.Outbound <- msg:
	case <-time.After(patience):
		m.t.Fatal("the device does not read")
	}
	select {
	case got := <-to.tun.Inbound:
		if !bytes.Equal(got, msg) {
			m.t.Fatal("another packet arrived")
		}
	case <-time.After(patience):
		m.t.Fatalf("%s to %s: nothing in %v; %v, %v", m.ip, to.ip, patience, m.bind.Counters(), to.bind.Counters())
	}
	return time.Since(start)
}

// attached waits until the members' sessions are up.
func (m *member) attached(members ...*member) {
	m.t.Helper()
	m.await("up", members)
}

// detached waits until they are not.
func (m *member) detached(members ...*member) {
	m.t.Helper()
	m.await("attaching", members)
}

func (m *member) await(state string, members []*member) {
	m.t.Helper()
	end := time.Now().Add(handshakeRetry)
	for _, o := range members {
		for o.bind.Relays()[0].State != state {
			if time.Now().After(end) {
				m.t.Fatalf("%s: %+v, want %s", o.ip, o.bind.Relays(), state)
			}
			time.Sleep(time.Millisecond)
		}
	}
}

func startServer(t *testing.T, listen netip.AddrPort) (s *relay.Server, stop func()) {
	t.Helper()
	s, err := relay.NewServer(relay.ServerOptions{Listen: listen, Secret: secret, Log: slog.New(slog.DiscardHandler), Shards: 1})
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

var anyPort = netip.MustParseAddrPort("127.0.0.1:0")

// handshakeRetry is when WireGuard repeats a handshake that got no answer. What
// takes less did not need that.
const handshakeRetry = 5 * time.Second

// TestWireGuard sends packets between three members, one of them on the relay's
// own machine, through a restart of the relay.
func TestWireGuard(t *testing.T) {
	s, stop := startServer(t, anyPort)
	laptop, gateway := newMember(t, 11, underlay.Options{}), newMember(t, 200, underlay.Options{})
	vps := newMember(t, 10, underlay.Options{Own: s.Attach(network, 10)})
	meet(s.LocalAddr(), laptop, gateway, vps)
	// A datagram for a node that has not attached yet is dropped by the relay.
	laptop.attached(laptop, gateway)
	for range 3 {
		laptop.ping(gateway, handshakeRetry)
		gateway.ping(laptop, handshakeRetry)
		laptop.ping(vps, handshakeRetry)
		vps.ping(gateway, handshakeRetry)
	}
	stop()
	laptop.detached(laptop, gateway)
	startServer(t, s.LocalAddr())
	laptop.attached(laptop, gateway)
	laptop.ping(gateway, handshakeRetry)
	gateway.ping(laptop, handshakeRetry)
}

// TestFirstHandshakeIsNotLost sends to a peer that is attached before this node
// is.
func TestFirstHandshakeIsNotLost(t *testing.T) {
	s, _ := startServer(t, anyPort)
	laptop, gateway := newMember(t, 11, underlay.Options{}), newMember(t, 200, underlay.Options{})
	nobody := newMember(t, 12, underlay.Options{})
	meet(s.LocalAddr(), gateway, laptop)
	laptop.bind.SetRelays(nil)
	gateway.attached(gateway)
	start := time.Now()
	laptop.tun.Outbound <- tuntest.Ping(gateway.ip, laptop.ip)
	laptop.tun.Outbound <- tuntest.Ping(nobody.ip, laptop.ip) // read: the first is on its way
	if p := laptop.bind.Path(gateway.key.Public()); p.Reason != "no_relay" {
		t.Errorf("path %+v", p)
	}
	meet(s.LocalAddr(), laptop, gateway)
	select {
	case <-gateway.tun.Inbound:
	case <-time.After(3 * handshakeRetry):
		t.Fatal("nothing arrived")
	}
	if d := time.Since(start); d > handshakeRetry {
		t.Errorf("the first packet took %v", d)
	}
}
