package overlay

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"

	"overlayd/overlay/coord"
	"overlayd/overlay/key"
	"overlayd/overlay/underlay"
)

const (
	// pingTimeout is how long an echo is waited for before it counts as lost.
	pingTimeout = 2 * time.Second
	// pingInterval is the pause between echoes when the caller names none.
	pingInterval = time.Second
	// pingSize is the payload of the ping everybody knows.
	pingSize = 56
)

// Pong is the answer to one echo request, or the lack of one.
type Pong struct {
	Seq  int
	Addr netip.Addr
	RTT  time.Duration
	Lost bool
	// Refused says who answered that it is not allowed, a node's name or an
	// address; empty: nobody. Such an echo is lost as well.
	Refused string
	Path    PongPath
}

// PongPath is the way of an echo request. When it changed before the answer
// came, the way that is less direct counts.
type PongPath struct {
	Direct    bool   // the packets go there without anybody in between
	Kind      string // as in Status; "": to this machine itself
	Transport string
	Relay     string // its name, when there is one in between
	Endpoint  string // where the packets are sent to
	Via       string // the node that carries the target, when it is another one
	Reason    string // why the way is not better
}

// String returns it in words: "relay vps udp", "direct udp 198.51.100.2:41641".
func (p PongPath) String() string {
	if p.Kind == "" {
		return "this machine"
	}
	words := []string{p.Kind}
	for _, w := range []string{p.Relay, p.Transport} {
		if w != "" {
			words = append(words, w)
		}
	}
	if p.Kind == underlay.KindDirect {
		words = append(words, p.Endpoint)
	}
	if p.Via != "" {
		words = append(words, "via "+p.Via)
	}
	return strings.Join(words, " ")
}

// pingTarget finds the address of a node's name, or reads an address.
func pingTarget(m *coord.Map, target string) (netip.Addr, error) {
	if a, err := netip.ParseAddr(target); err == nil {
		if !a.Is4() {
			return a, fault(ExitUsage, "ping its IPv4 address, or its name", "ping %s: only IPv4 addresses can be pinged", target)
		}
		return a, nil
	}
	for _, n := range slices.Concat([]coord.Node{m.Self}, m.Peers, m.Hosted) {
		if strings.EqualFold(n.Name, target) && len(n.Addrs) > 0 {
			return n.Addrs[0], nil
		}
	}
	return netip.Addr{}, fault(ExitUsage, "`overlayd peers` lists the nodes", "no node is called %q, and it is no address", target)
}

// ping sends ICMP echo requests one after the other until count of them (0: no
// end) are answered or lost, ctx ends, or each returns an error. c is a raw ICMP
// socket, which is closed then. path says how they go.
func ping(ctx context.Context, c net.PacketConn, addr netip.Addr, count int, interval time.Duration, path func() PongPath, each func(Pong) error) error {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if interval <= 0 {
		interval = pingInterval
	}
	p := pinger{conn: c, addr: addr, id: rand.N(1 << 16)}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for seq := 1; ; seq++ {
		before := path()
		pong, err := p.echo(seq)
		pong.Path = between(before, path())
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if err := each(pong); err != nil {
			return err
		}
		if seq == count {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// listenICMP opens a raw ICMP socket into the overlay.
func (m *machine) listenICMP() (net.PacketConn, error) {
	if m.stack != nil {
		return m.stack.ListenICMP()
	}
	c, err := icmp.ListenPacket("ip4:icmp", "0.0.0.0")
	if err != nil {
		return nil, fmt.Errorf("open ICMP socket: %w", err)
	}
	return c, nil
}

type pinger struct {
	conn net.PacketConn // a raw ICMP socket
	addr netip.Addr
	id   int
}

// echo sends one request and waits for its answer.
func (p *pinger) echo(seq int) (Pong, error) {
	pong := Pong{Seq: seq, Addr: p.addr, Lost: true}
	nonce := rand.Uint64()
	data := binary.BigEndian.AppendUint64(make([]byte, 0, pingSize), nonce)
	msg := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: p.id, Seq: seq & 0xffff, Data: data[:pingSize]}}
	b, err := msg.Marshal(nil)
	if err != nil {
		return pong, fmt.Errorf("encode echo: %w", err)
	}
	sent := time.Now()
	// A send that the kernel refuses (no route, no key yet) is a lost echo.
	if _, err := p.conn.WriteTo(b, &net.IPAddr{IP: p.addr.AsSlice()}); err != nil {
		return pong, nil
	}
	if err := p.conn.SetReadDeadline(sent.Add(pingTimeout)); err != nil {
		return pong, fmt.Errorf("wait for echo: %w", err)
	}
	buf := make([]byte, 1500)
	for {
		size, from, err := p.conn.ReadFrom(buf)
		if err != nil {
			return pong, nil // the deadline: lost
		}
		if p.refuses(buf[:size], seq&0xffff) {
			pong.Refused = from.String()
			return pong, nil
		}
		if p.answers(buf[:size], nonce) {
			pong.RTT, pong.Lost = time.Since(sent), false
			return pong, nil
		}
	}
}

// answers reports whether b is the reply to the request with this nonce.
func (p *pinger) answers(b []byte, nonce uint64) bool {
	m, err := icmp.ParseMessage(1, b) // 1 is ICMP for IPv4 in the protocol registry
	if err != nil || m.Type != ipv4.ICMPTypeEchoReply {
		return false
	}
	e, ok := m.Body.(*icmp.Echo)
	return ok && e.ID == p.id && len(e.Data) >= 8 && binary.BigEndian.Uint64(e.Data) == nonce
}

// prohibited are the codes of "destination unreachable" by which a machine says
// that it must not pass something (RFC 1812 section 5.2.7.1).
var prohibited = []int{9, 10, 13}

// refuses reports whether b says that the request with this number is not
// allowed.
func (p *pinger) refuses(b []byte, seq int) bool {
	m, err := icmp.ParseMessage(1, b)
	if err != nil || m.Type != ipv4.ICMPTypeDestinationUnreachable || !slices.Contains(prohibited, m.Code) {
		return false
	}
	body, ok := m.Body.(*icmp.DstUnreach)
	if !ok {
		return false
	}
	h, err := ipv4.ParseHeader(body.Data)
	if err != nil || len(body.Data) < h.Len+8 || !h.Dst.Equal(p.addr.AsSlice()) {
		return false
	}
	echo := body.Data[h.Len:]
	return int(binary.BigEndian.Uint16(echo[4:])) == p.id && int(binary.BigEndian.Uint16(echo[6:])) == seq
}

// pathTo says how packets reach an address: the path of the peer that carries it.
func (v view) pathTo(addr netip.Addr) (PongPath, error) {
	if slices.Contains(v.m.Self.Addrs, addr) {
		return PongPath{Direct: true}, nil
	}
	peer := v.plan.carrier(addr)
	asked := targetText(protoICMP, netip.AddrPortFrom(addr, 0))
	if closed, is := v.plan.closedAt(addr); peer == nil && is {
		return PongPath{}, fault(ExitDenied, requestHint(asked), "ping %s: %s", addr, closedWords(closed))
	}
	if peer == nil {
		return PongPath{}, fault(ExitUnreachable, outsideHint(asked),
			"ping %s: no node carries that address that this machine may reach, so no packet would enter the overlay", addr)
	}
	path := v.live.bind.Path(peer.Key)
	out := PongPath{Kind: path.Kind, Transport: path.Transport, Endpoint: path.Endpoint, Reason: path.Reason}
	own := path.Transport == underlay.TransportLocal
	out.Direct = path.Kind == underlay.KindDirect || own || peer.AtRelay && path.Kind == underlay.KindRelay
	for _, r := range v.m.Relays {
		if r.ID == path.RelayID && path.Kind == underlay.KindRelay {
			out.Relay = r.Name
		}
	}
	if !peer.owns(addr) {
		out.Via = peer.Name
	}
	for _, n := range v.m.Peers {
		if n.WireGuard == peer.Key && !n.Online && path.Kind != underlay.KindDirect {
			out.Reason = reasonOffline
		}
	}
	return out, nil
}

// between returns which of the ways before and after an echo it is said to have
// gone.
func between(before, after PongPath) PongPath {
	if before.Direct && !after.Direct {
		return after
	}
	return before
}

// carrier is the peer whose allowed prefixes match an address best; nil when
// none does.
func (p *Plan) carrier(addr netip.Addr) *PlanPeer {
	var best *PlanPeer
	bits := -1
	for i := range p.Peers {
		for _, prefix := range p.Peers[i].AllowedIPs {
			if prefix.Contains(addr) && prefix.Bits() > bits {
				best, bits = &p.Peers[i], prefix.Bits()
			}
		}
	}
	return best
}

// atRelay reports whether a node is the relay's own, so that nothing lies between
// the two.
func (p *Plan) atRelay(k key.Public, relayID string) bool {
	return slices.ContainsFunc(p.Peers, func(o PlanPeer) bool {
		return o.Key == k && o.AtRelay && slices.ContainsFunc(p.Relays, func(r underlay.Relay) bool {
			return r.ID == relayID && r.Label == o.Label
		})
	})
}

// owns reports whether an address is the peer's own, not one behind it.
func (p *PlanPeer) owns(addr netip.Addr) bool {
	for _, prefix := range p.AllowedIPs {
		if prefix.Addr() == addr && prefix.IsSingleIP() {
			return true
		}
	}
	return false
}

// nameOf returns the name of the node that has an address, or the address.
func nameOf(m *coord.Map, addr string) string {
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return addr
	}
	for _, n := range slices.Concat(m.Peers, m.Hosted) {
		if slices.Contains(n.Addrs, a) {
			return n.Name
		}
	}
	return addr
}
