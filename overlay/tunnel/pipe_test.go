package tunnel

import (
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"overlayd/overlay/key"
)

// pipe is a Bind whose only peer is another pipe.
type pipe struct {
	rx, tx chan []byte

	mu     sync.Mutex // guards closed
	closed chan struct{}
}

// named is an endpoint that is only a name.
type named string

func (named) ClearSrc()             {}
func (named) SrcToString() string   { return "" }
func (n named) DstToString() string { return string(n) }
func (n named) DstToBytes() []byte  { return []byte(n) }
func (named) DstIP() netip.Addr     { return netip.IPv6LinkLocalAllNodes() }
func (named) SrcIP() netip.Addr     { return netip.Addr{} }

func newPipes() (a, b *pipe) {
	x, y := make(chan []byte, 1024), make(chan []byte, 1024)
	return &pipe{rx: x, tx: y}, &pipe{rx: y, tx: x}
}

func (p *pipe) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	closed := make(chan struct{})
	p.closed = closed
	return []conn.ReceiveFunc{func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		select {
		case <-closed:
			return 0, net.ErrClosed
		case b := <-p.rx:
			sizes[0], eps[0] = copy(bufs[0], b), named("other")
			return 1, nil
		}
	}}, 1, nil
}

func (p *pipe) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed != nil {
		close(p.closed)
		p.closed = nil
	}
	return nil
}

func (p *pipe) Send(bufs [][]byte, _ conn.Endpoint) error {
	for _, b := range bufs {
		select {
		case p.tx <- slices.Clone(b):
		default:
		}
	}
	return nil
}

func (p *pipe) SetMark(uint32) error                          { return nil }
func (p *pipe) ParseEndpoint(s string) (conn.Endpoint, error) { return named(s), nil }
func (p *pipe) BatchSize() int                                { return 1 }

// onceTUN can be closed twice, like a real one.
type onceTUN struct {
	tun.Device
	once sync.Once
}

func (o *onceTUN) Close() (err error) {
	o.once.Do(func() { err = o.Device.Close() })
	return err
}

// node is a device with what the test holds of it.
type node struct {
	*Device
	tun *tuntest.ChannelTUN
	dev tun.Device // tun, to be closed
	key key.Private
	ip  netip.Addr
}

func newNode(t *testing.T, bind conn.Bind, ip string, log io.Writer) *node {
	t.Helper()
	return newNodeWith(t, bind, key.NewPrivate(), ip, log)
}

func newNodeWith(t *testing.T, bind conn.Bind, k key.Private, ip string, log io.Writer) *node {
	t.Helper()
	n := &node{tun: tuntest.NewChannelTUN(), key: k, ip: netip.MustParseAddr(ip)}
	n.dev = &onceTUN{Device: n.tun.TUN()}
	var err error
	n.Device, err = New(Options{
		TUN: n.dev, Bind: bind, Key: n.key,
		Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

// as returns the node as a peer of others.
func (n *node) as() Peer {
	return Peer{Key: n.key.Public(), Endpoint: "other", AllowedIPs: []netip.Prefix{netip.PrefixFrom(n.ip, 32)}}
}
